"""A case of an op, and the implementations that are measured on its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .. import ops  # noqa: F401  (registers)
from ..plan import Plan
from ..registry import OPS, Unsupported
from ..roofline.costs import Cost

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Implementation:
    """`prepare()` converts the inputs for the implementation (timed separately) and returns the
    call to time."""

    name: str
    prepare: Callable[[], Callable[[], Any]]
    is_peer: bool = True


@dataclass(frozen=True)
class Prepared:
    """The implementations of a case, on its inputs. `check(output, slack)` raises AssertionError if
    an output is wrong; slack multiplies the tolerance."""

    implementations: list[Implementation]
    check: Callable[[Any, float], None]


@dataclass(frozen=True)
class Case:
    """An op on inputs of one size and dtype. `cost` is the least work; `build()` allocates the
    inputs."""

    op: str
    parameters: dict[str, Any]
    dtype: str
    cost: Cost
    build: Callable[[], Prepared]

    @property
    def label(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.parameters.items())


class Normal:
    """Normal random tensors of one dtype on one device, the same in every run."""

    def __init__(self, dtype: torch.dtype, device: str):
        self.dtype = dtype
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        values = scale * torch.randn(shape, generator=self.generator)
        return values.to(self.dtype).to(self.device)


def own(
    name: str, call: Callable[[], Any], out: torch.Tensor | None = None, is_peer: bool = False
) -> Implementation:
    """One of blockdraft's implementations, which need no conversion. `out`, which it writes, is set
    to NaN first, so that an earlier implementation's result does not count as its own."""

    def prepare() -> Callable[[], Any]:
        if out is not None:
            out.fill_(torch.nan)
        return call

    return Implementation(name, prepare, is_peer)


def unstored(
    what: str, dtype: torch.dtype, call: Callable[[], Any], out: torch.Tensor
) -> Implementation:
    """Our own C++ kernel as a peer of itself: on the same numbers, not stored in fp8 or fp4."""
    return own(f"blockdraft, {what} in {dtype}".replace("torch.", ""), call, out, is_peer=True)


def backends(
    op: str, call: Callable[[str], Any], out: torch.Tensor | None = None
) -> list[Implementation]:
    """Every backend registered for an op, `call(backend)` runs it; and the C++ kernel once more,
    planned."""
    found = []
    for name in OPS[op].backends:
        found.append(own(name, lambda name=name: call(name), out))
        if name == "cpp":
            found.append(planned(call, out))
    return found


PLANNED = "planned"


def planned(call: Callable[[str], Any], out: torch.Tensor | None) -> Implementation:
    """The C++ kernel as a decode runs it, by a `Plan`: without checks. Only on a CPU: on a GPU all
    kernels are timed without what the host does."""

    def prepare() -> Callable[[], Any]:
        plan = Plan()
        result = plan.record(call, "cpp")
        if plan.device.type != "cpu":
            raise Unsupported("planned: expected inputs of a CPU")
        if out is not None:
            out.fill_(torch.nan)

        def run() -> Any:
            plan.run()
            return result

        return run

    return Implementation(PLANNED, prepare, is_peer=False)


def compiled(name: str, function: Callable, *inputs: Any) -> Implementation:
    """A peer under torch.compile; the compilation counts as preparation."""

    def prepare() -> Callable[[], Any]:
        run = torch.compile(function, dynamic=False)
        run(*inputs)
        return lambda: run(*inputs)

    return Implementation(name, prepare)
