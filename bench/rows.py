"""A row of the benchmark: one case of one op, its implementations and peers on the same inputs, and
its check."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..roofline.costs import Cost

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Implementation:
    """`prepare()` converts the row's inputs to what the implementation wants (timed apart) and
    returns the call to time."""

    name: str
    prepare: Callable[[], Callable[[], Any]]
    is_peer: bool = True


@dataclass
class Row:
    op: str
    case: dict[str, Any]
    dtype: str
    cost: Cost
    implementations: list[Implementation]
    # (result, slack of the tolerance): AssertionError if the result is wrong
    check: Callable[[Any, float], None]

    @property
    def label(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.case.items())


def own(name: str, call: Callable[[], Any], out: torch.Tensor | None = None) -> Implementation:
    """One of blockdraft's backends: nothing to convert. `out`, which it writes, is poisoned first:
    what an earlier implementation left there must not pass for its result."""

    def prepare():
        if out is not None:
            out.fill_(torch.nan)
        return call

    return Implementation(name, prepare, is_peer=False)


def backends(
    op_name: str, call: Callable[[str], Any], out: torch.Tensor | None = None
) -> list[Implementation]:
    """Every backend registered for an op; `call(backend)` runs it."""
    from .. import ops  # noqa: F401  (registers)
    from ..registry import OPS

    return [
        own(backend, lambda backend=backend: call(backend), out)
        for backend in OPS[op_name].backends
    ]


def all_rows(
    op: str, dtypes: list[str], quick: bool, device: str = "cpu", having: Sequence[str] = ()
) -> list[Callable[[], Row]]:
    """Builders of an op's rows (inputs are made only when a row's turn comes), of cases that have
    every "name=value" of `having`."""
    from . import accept, attention, cca, commit, decode, moe, sample

    modules = {
        "attention": attention,
        "cca": cca,
        "moe": moe,
        "accept": accept,
        "sample": sample,
        "commit": commit,
        "decode": decode,
    }
    chosen = list(modules) if op == "all" else [op]
    return [
        lambda module=modules[name], case=case, dtype=dtype: module.build(case, dtype, device)
        for name in chosen
        for dtype in dtypes
        for case in modules[name].cases(quick)
        if set(having) <= {f"{key}={value}" for key, value in case.items()}
    ]
