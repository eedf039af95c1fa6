"""The cases of every op. The module with the name of an op has

cases(quick)                        the parameters of each case; quick: one small case
cost(parameters, itemsize)          the least work of a case
build(parameters, dtype, device)    its inputs, implementations and check: a `Prepared`
"""

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from .. import registry
from .case import DTYPES, PLANNED, Case
from .names import OPS


def module(op: str) -> ModuleType:
    """The module that measures an op."""
    return import_module(f".{op}", __package__)


def case(op: str, parameters: dict[str, Any], dtype: str, device: str = "cpu") -> Case:
    """The case of these parameters, which need not be one of `cases`."""
    measured = module(op)
    return Case(
        op,
        parameters,
        dtype,
        measured.cost(parameters, DTYPES[dtype].itemsize),
        partial(measured.build, parameters, DTYPES[dtype], device),
    )


def cases(
    op: str, dtypes: list[str], quick: bool, device: str = "cpu", having: Sequence[str] = ()
) -> list[Case]:
    """The cases of an op ("all": of each) that have every "name=value" of `having`."""
    return [
        case(name, parameters, dtype, device)
        for name in (OPS if op == "all" else [op])
        for dtype in dtypes
        for parameters in module(name).cases(quick)
        if set(having) <= {f"{key}={value}" for key, value in parameters.items()}
    ]


def own_names(cases: list[Case]) -> set[str]:
    """The names of blockdraft's own implementations: an op's backends, or what the first case of
    anything else has."""
    found = set()
    for op, case in {case.op: case for case in reversed(cases)}.items():
        if op in registry.OPS:
            found |= {*registry.OPS[op].backends, PLANNED}
        else:
            found |= {each.name for each in case.build().implementations if not each.is_peer}
    return found
