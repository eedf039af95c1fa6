"""Checks, then times implementations. One whose output disagrees with the reference is reported as
failed and is not timed."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..registry import Unsupported
from .case import Case, Implementation, Prepared
from .limits import Limits
from .timing import interleaved, median_and_mad, on_gpu

# Peers written in torch round every intermediate to the storage type (four or five times in an
# expert), where blockdraft's implementations keep fp32, so their RMS error may be twice as large.
PEER_SLACK = 2.0
LAST_LEVEL_CACHE = 512 << 20  # larger than any GPU has (MI300X and MI355X: 256 MiB)


@dataclass(frozen=True)
class Options:
    """only: the only one of blockdraft's implementations to time (peers always are). reference:
    time the reference too; otherwise it is timed only if no other backend runs. seconds: to spend
    on each implementation of a case."""

    only: str | None = None
    reference: bool = False
    device: str = "cpu"
    seconds: float = 2.0


def run(
    cases: list[Case],
    limits: Limits,
    options: Options,
    on_case: Callable[[Case], None] = lambda case: None,
) -> list[dict]:
    """Results (see `results`) of every implementation of every case."""
    results = []
    for case in cases:
        on_case(case)
        results += _run_case(case, limits, options)
    return results


def slack(implementation: Implementation) -> float:
    return PEER_SLACK if implementation.is_peer else 1.0


def _run_case(case: Case, limits: Limits, options: Options) -> list[dict]:
    prepared = case.build()
    results, ready = [], []
    for implementation in prepared.implementations:
        if not _wanted(implementation, results, options):
            continue
        result = _empty(case, implementation, limits)
        try:
            call = _checked_call(implementation, prepared, result)
        except Unsupported:  # a backend for other devices or dtypes
            continue
        results.append(result)
        if call is not None:
            ready.append((result, implementation, call))
    _time(ready, case, options)
    limit = limits.milliseconds(case.cost, case.dtype)
    best = min((result["ms"] for result, _, _ in ready if result["is_peer"]), default=None)
    for result, _, _ in ready:
        result["of_limit"] = limit / result["ms"]
        result["vs_best_peer"] = best / result["ms"] if best else None
    return results


def _wanted(implementation: Implementation, earlier: list[dict], options: Options) -> bool:
    if implementation.is_peer:
        return True
    if options.only is not None:
        return implementation.name == options.only
    # The reference is the last backend, so it is wanted if none ran before it.
    return implementation.name != "reference" or options.reference or not earlier


def _empty(case: Case, implementation: Implementation, limits: Limits) -> dict:
    return dict(
        op=case.op,
        case=case.label,
        dtype=case.dtype,
        threads=limits.threads,
        flops=case.cost.flops + case.cost.vector_flops,
        vector_flops=case.cost.vector_flops,
        bytes=case.cost.bytes,
        exps=case.cost.exps,
        tiled=case.cost.tiled,
        impl=implementation.name,
        is_peer=implementation.is_peer,
        ms=None,
        mad=None,
        of_limit=None,
        vs_best_peer=None,
        checked=False,
        prepare_ms=None,
        error=None,
    )


def _checked_call(
    implementation: Implementation, prepared: Prepared, result: dict
) -> Callable[[], Any] | None:
    """The call to time. If it cannot run or is wrong: None, and the error in `result`. Raises
    Unsupported."""
    try:
        began = time.perf_counter()
        call = implementation.prepare()
        if implementation.is_peer:
            result["prepare_ms"] = (time.perf_counter() - began) * 1e3
        prepared.check(call(), slack(implementation))
    except Unsupported:
        raise
    # A peer that is not installed or a wrong implementation must not stop the others.
    except Exception as error:
        first_line = str(error).splitlines()[0] if str(error) else ""
        result["error"] = f"{type(error).__name__}: {first_line}"
        return None
    result["checked"] = True
    return call


def _time(ready: list[tuple], case: Case, options: Options) -> None:
    if not ready:
        return
    if options.device == "cpu":
        samples = interleaved([call for _, _, call in ready], options.seconds)
    else:
        copies = max(1, min(16, int(LAST_LEVEL_CACHE // max(case.cost.bytes, 1)) + 1))
        others = [
            {implementation.name: implementation for implementation in case.build().implementations}
            for _ in range(copies - 1)
        ]
        samples = [
            on_gpu([call] + [other[implementation.name].prepare() for other in others])
            for _, implementation, call in ready
        ]
    for (result, _, _), own in zip(ready, samples):
        result["ms"], result["mad"] = median_and_mad(own)


def failures(results: Iterable[dict]) -> list[dict]:
    """The results of blockdraft's implementations that failed their check. A peer may fail."""
    return [result for result in results if not result["checked"] and not result["is_peer"]]
