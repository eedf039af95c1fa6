"""Ops and their backends. Each backend of each op is one torch operator,
`blockdraft::<op>_<backend>`, of the op's schema."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

ORDER = ("triton", "cpp", "reference")  # backend=None takes the first that supports the arguments
OPS: dict[str, "Op"] = {}

_LIBRARY = torch.library.Library("blockdraft", "DEF")


@dataclass(frozen=True)
class Backend:
    run: Callable  # the operator's overload, bound once
    # arguments -> the reason why they cannot run here, or None
    unsupported: Callable[..., str | None]


class Unsupported(ValueError):
    """A backend asked for by name cannot run with these arguments; the message says why."""


class Op:
    """A schema with out arguments, `(Tensor x, Tensor(a!) out) -> ()`, and the backends registered
    for it."""

    def __init__(self, name: str, schema: str):
        self.name, self.schema, self.backends = name, schema, {}
        OPS[name] = self

    def register(
        self,
        backend: str,
        function: Callable | None,
        unsupported: Callable[..., str | None] = lambda *args: None,
    ) -> None:
        """Add a backend. Without a function it is the C++ extension that implements the
        operator."""
        name = f"{self.name}_{backend}"
        _LIBRARY.define(name + self.schema)
        if function is not None:
            _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"blockdraft::{name}", lambda *args: None, lib=_LIBRARY)
        self.backends[backend] = Backend(getattr(torch.ops.blockdraft, name).default, unsupported)

    def __call__(self, backend: str | None, *args) -> None:
        self.select(backend, *args).run(*args)

    def select(self, backend: str | None, *args) -> Backend:
        """The named backend, or the first that supports the arguments; one asked for by name raises
        with its reason."""
        if backend is None:
            return next(
                b for b in map(self.backends.get, ORDER) if b and b.unsupported(*args) is None
            )
        if backend not in self.backends:
            raise ValueError(
                f"{self.name}: backend: expected one of {', '.join(self.backends)}, got {backend!r}"
            )
        reason = self.backends[backend].unsupported(*args)
        if reason:
            raise Unsupported(
                f"{self.name}: backend: expected one that supports these arguments, got {backend!r}: {reason}"
            )
        return self.backends[backend]
