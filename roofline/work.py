"""What the timing model is told of an op: its launches for a shape."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .route import Trip

BYTES = 2  # of an element


class Work(NamedTuple):
    """A launch. code: a part of the C++ kernel's symbol, or the name of a Triton compilation. busy:
    the waves of a workgroup that multiply matrices, if not all. bytes: the least from HBM. streams:
    whether loads come from there, or a part of the source lines of those that do. trips: None where
    every loop runs once. others: what the waves that are not `busy` run, if they multiply as
    well."""

    kernel: str
    code: str
    groups: int
    trips: tuple[Trip, ...] | None = ()
    bytes: float = 0
    busy: int | None = None
    streams: bool | str = True
    others: tuple[Trip, ...] | None = None


class Shape(NamedTuple):
    """launches: by backend, of an architecture. flops, exps: the least of the whole op."""

    op: str
    label: str
    launches: dict[str, Callable[[str], Iterator[Work]]]
    flops: float = 0
    exps: float = 0


def ceil(a: float, b: float) -> int:
    return int(-(-a // b))
