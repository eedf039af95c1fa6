"""Check, then time: a row whose output disagrees with the reference is reported as failed and not
timed."""

import time
from collections.abc import Callable, Iterable

from ..registry import Unsupported
from .limits import Limits
from .rows import Row
from .timing import interleaved, median_and_mad, on_gpu

# Peers written in torch round every intermediate to the storage type (four or five times in an
# expert, where ours keep fp32), so their RMS error may be twice what is allowed to blockdraft's own
# implementations.
PEER_SLACK = 2.0
LAST_LEVEL_CACHE = 512 << 20  # rotate over more than this on a GPU (MI300X and MI355X have 256 MiB)


def run(
    builders: list[Callable[[], Row]],
    limits: Limits,
    *,
    only: str | None = None,
    device: str = "cpu",
    seconds: float = 2.0,
    on_row: Callable[[str], None] = lambda label: None,
) -> list[dict]:
    """Result rows (see `results`) of every implementation of every row; `only` keeps blockdraft's
    implementations of that name and all peers."""
    results = []
    for build in builders:
        row = build()
        on_row(f"{row.op} {row.label} {row.dtype}")
        results += _row(row, build, limits, only, device, seconds)
    return results


def _row(row: Row, build, limits: Limits, only, device, seconds) -> list[dict]:
    base = dict(
        op=row.op,
        case=row.label,
        dtype=row.dtype,
        threads=limits.threads,
        flops=row.cost.flops + row.cost.vector_flops,
        bytes=row.cost.bytes,
        exps=row.cost.exps,
    )
    chosen = [i for i in row.implementations if i.is_peer or only in (None, i.name)]
    results, ready = [], []
    for implementation in chosen:
        result = dict(
            base,
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
        results.append(result)
        try:
            began = time.perf_counter()
            call = implementation.prepare()
            if implementation.is_peer:
                result["prepare_ms"] = (time.perf_counter() - began) * 1e3
            row.check(call(), PEER_SLACK if implementation.is_peer else 1.0)
        except Unsupported:  # a backend for other devices or dtypes
            results.pop()
            continue
        # a peer that is not installed, an implementation that is wrong: say it, time the others
        except Exception as error:
            result["error"] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            continue
        result["checked"] = True
        ready.append((result, implementation, call))
    _time(ready, row, build, device, seconds)
    limit = limits.milliseconds(row.cost, row.dtype)
    best = min((r["ms"] for r, i, _ in ready if i.is_peer), default=None)
    for result, _, _ in ready:
        result["of_limit"] = limit / result["ms"]
        result["vs_best_peer"] = best / result["ms"] if best else None
    return results


def _time(ready, row: Row, build, device, seconds) -> None:
    if device == "cpu":
        samples = interleaved([call for _, _, call in ready], seconds) if ready else []
    else:
        copies = max(1, min(16, int(LAST_LEVEL_CACHE // max(row.cost.bytes, 1)) + 1))
        others = [{i.name: i for i in build().implementations} for _ in range(copies - 1)]
        samples = [
            on_gpu([call] + [other[i.name].prepare() for other in others]) for _, i, call in ready
        ]
    for (result, _, _), own in zip(ready, samples):
        result["ms"], result["mad"] = median_and_mad(own)


def failures(rows: Iterable[dict]) -> list[dict]:
    """blockdraft's own rows that failed their check; a peer that cannot run is not a failure."""
    return [row for row in rows if not row["checked"] and not row["is_peer"]]
