"""Ops and their backends. An op is declared once, by the NamedTuple of its arguments; each backend
of it is one torch operator, `<NAMESPACE>::<op>_<backend>`, of the schema that follows from them."""

import inspect
import operator
import string
import threading
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch

from .namespace import NAMESPACE

# backend=None takes the first that supports the arguments. Both kernels run on AMD, where the
# timing model (roofline isa --predict) has the C++ ones ahead
ORDER = ("cpp", "triton", "reference")
OPS: dict[str, "Op"] = {}

# What an op does to a tensor among its arguments, if it does not only read it.
Out = Annotated[torch.Tensor, "out"]  # writes it: the reference's results go there
InPlace = Annotated[torch.Tensor, "in place"]  # changes it, as its reference does
Scratch = Annotated[torch.Tensor, "scratch"]  # leaves anything in it

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_SCALARS = {int: "int", float: "float", bool: "bool"}


class Call(NamedTuple):
    """A kernel of an op, and its arguments."""

    op: str
    kernel: Callable[..., None]
    arguments: tuple[Any, ...]


class _Recorder(threading.local):
    """Where this thread's calls are recorded instead of run, if they are."""

    calls: list[Call] | None = None


_RECORDER = _Recorder()


@contextmanager
def recording(calls: list[Call]) -> Iterator[None]:
    """Within, kernels are added to `calls` with their arguments, instead of run (see `Plan`)."""
    before, _RECORDER.calls = _RECORDER.calls, calls
    try:
        yield
    finally:
        _RECORDER.calls = before


def is_recording() -> bool:
    return _RECORDER.calls is not None


class Argument(NamedTuple):
    """One argument of the operator: a field of Args, or of a group of tensors (Rows, Sampling)
    there."""

    name: str  # "window", "rows_branch"
    path: str  # "window", "rows.branch"
    kind: str  # "Tensor", "Tensor?", "int", "float", "bool"
    role: str | None  # "out", "in place", "scratch" of a tensor that is written


def _argument(name: str, path: str, hint: Any) -> Argument:
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    role = hint.__metadata__[0] if typing.get_origin(hint) is Annotated else None
    hint = hint.__origin__ if role else hint
    kind = "Tensor" if hint is torch.Tensor else _SCALARS[hint]
    return Argument(name, path, kind + "?" * optional, role)


def arguments(args: type) -> list[Argument]:
    """Of the operator, in the order of Args; a group's come with its name before theirs."""
    found = []
    for name, hint in typing.get_type_hints(args, include_extras=True).items():
        if isinstance(hint, type) and issubclass(hint, torch.Tensor | int | float):
            found.append(_argument(name, name, hint))
        elif isinstance(hint, type):
            members = typing.get_type_hints(hint, include_extras=True).items()
            found += [_argument(f"{name}_{m}", f"{name}.{m}", h) for m, h in members]
        else:
            found.append(_argument(name, name, hint))
    return found


def schema(args: list[Argument]) -> str:
    """`(Tensor x, Tensor(a!) out) -> ()`."""
    letters = iter(string.ascii_lowercase)
    kinds = [
        a.kind.replace("Tensor", f"Tensor({next(letters)}!)") if a.role else a.kind for a in args
    ]
    return f"({', '.join(f'{kind} {a.name}' for kind, a in zip(kinds, args))}) -> ()"


class Unsupported(ValueError):
    """A backend asked for by name cannot run with these arguments; the message says why."""


def everything(args: Any) -> None:
    """No reason why these arguments are not supported."""


@dataclass(frozen=True)
class Backend:
    run: Callable[..., None]  # the operator's overload, bound once
    unsupported: Callable[[Any], str | None]  # Args -> the reason why they cannot run here, or None


class Op:
    """An op by the type of its arguments, and the backends registered for it."""

    def __init__(self, name: str, args: type):
        self.name, self.args = name, args
        self.arguments = arguments(args)
        self.schema = schema(self.arguments)
        # torch.compile follows this function, but not operator.attrgetter
        self.flatten = eval(
            f"lambda args: ({', '.join(f'args.{a.path}' for a in self.arguments)},)"
        )
        counts = {name: 0 for name in args._fields}
        for argument in self.arguments:
            counts[argument.path.partition(".")[0]] += "." in argument.path
        hints = typing.get_type_hints(args)
        self._groups = [(hints[name], count) for name, count in counts.items()]
        self.backends: dict[str, Backend] = {}
        OPS[name] = self

    def unflatten(self, *values: Any) -> Any:
        """Args of the operator's arguments."""
        left = iter(values)
        parts = (
            group(*(next(left) for _ in range(count))) if count else next(left)
            for group, count in self._groups
        )
        return self.args(*parts)

    def register(
        self,
        backend: str,
        run: Callable[[Any], None] | None,
        unsupported: Callable[[Any], str | None] = everything,
    ) -> None:
        """Add a backend, a function of Args. Without one, the C++ extension has the operator."""
        name = f"{self.name}_{backend}"
        _LIBRARY.define(name + self.schema)
        if run is not None:
            _LIBRARY.impl(name, lambda *v: run(self.unflatten(*v)), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", lambda *v: None, lib=_LIBRARY)
        overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        self.backends[backend] = Backend(overload, unsupported)

    def __call__(self, backend: str | None, args: Any) -> None:
        run, values = self.select(backend, args).run, self.flatten(args)
        if torch.compiler.is_compiling() or not is_recording():
            run(*values)
        else:
            _RECORDER.calls.append(Call(self.name, run, values))

    def select(self, backend: str | None, args: Any) -> Backend:
        """The named backend, or the first that supports the arguments. One asked for by name raises
        with its reason."""
        if backend is None:
            for name in ORDER:
                found = self.backends.get(name)
                if found is not None and found.unsupported(args) is None:
                    return found
        if backend not in self.backends:
            expected = ", ".join(self.backends)
            raise ValueError(f"{self.name}: backend: expected one of {expected}, got {backend!r}")
        reason = self.backends[backend].unsupported(args)
        if reason:
            raise Unsupported(
                f"{self.name}: backend: expected one that supports these arguments, "
                f"got {backend!r}: {reason}"
            )
        return self.backends[backend]


def first_tensor(args: Any) -> torch.Tensor:
    """The op runs on its device."""
    for value in args:
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError("expected a tensor among the arguments")


def by_name(op: Op, function: Callable, **derived: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A reference as a backend: called with the fields of Args that its parameters are named after
    (`derived`: with what is made of Args), its results are copied to the outputs in their order.

    Autocast is off meanwhile: it would compute fp32 inputs in bf16.
    """
    names = list(inspect.signature(function).parameters)
    missing = set(names) - set(op.args._fields) - set(derived)
    assert not missing, f"{op.name}: the reference takes {missing}, which Args has not"
    outputs = [a.path for a in op.arguments if a.role == "out"]
    read = {name: derived.get(name) or operator.attrgetter(name) for name in names}

    def run(args: Any) -> None:
        with torch.autocast(first_tensor(args).device.type, enabled=False):
            results = function(**{name: get(args) for name, get in read.items()})
        results = (results,) if isinstance(results, torch.Tensor) else results
        for path, result in zip(outputs, results, strict=True):
            output = getattr(args, path)
            if output is not None:
                output.copy_(result)

    return run
