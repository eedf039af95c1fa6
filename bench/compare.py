"""Decides for each result whether HEAD is slower than BASE.

Results of the same (op, case, dtype, threads, impl) are compared. The speed of a machine drifts
between runs, so HEAD's times are first divided by the drift of the peers, whose code did not
change: the median of their HEAD/BASE ratios, within 0.8 .. 1.25. A result has regressed if

    head > base * (1 + RELATIVE) + ABSOLUTE + NOISE * (mad_base + mad_head)

or if it failed its check in HEAD but not in BASE, or is missing from HEAD. Peers never regress.
"""

import statistics
from dataclasses import dataclass

from .results import key

RELATIVE, ABSOLUTE, NOISE = 0.10, 0.02, 2.0  # fraction; milliseconds; median absolute deviations


@dataclass(frozen=True)
class Verdict:
    key: tuple[str, str, str, int, str]  # see `results.key`
    base: float
    head: float | None  # after division by the drift
    allowed: float | None
    regressed: bool
    why: str


def drift(base: dict, head: dict) -> float:
    """The median HEAD/BASE ratio of the peers' times, within bounds; 1 without peers."""
    before, after = (_peers(data) for data in (base, head))
    ratios = [after[k] / before[k] for k in before.keys() & after.keys()]
    return min(max(statistics.median(ratios), 0.8), 1.25) if ratios else 1.0


def _peers(data: dict) -> dict[tuple, float]:
    return {key(r): r["ms"] for r in data["results"] if r["is_peer"] and r["ms"]}


def compare(base: dict, head: dict) -> list[Verdict]:
    """A verdict for each of blockdraft's results that was timed in BASE."""
    scale = drift(base, head)
    after = {key(result): result for result in head["results"]}
    return [
        _judge(before, after.get(key(before)), scale)
        for before in base["results"]
        if not before["is_peer"] and before["ms"] is not None
    ]


def _judge(before: dict, after: dict | None, scale: float) -> Verdict:
    base = before["ms"]
    if after is None or after["ms"] is None:
        why = "missing" if after is None else f"failed: {after.get('error')}"
        return Verdict(key(before), base, None, None, True, why)
    noise = NOISE * (before["mad"] + after["mad"] / scale)
    allowed = base * (1 + RELATIVE) + ABSOLUTE + noise
    head = after["ms"] / scale
    slower = head > allowed
    return Verdict(key(before), base, head, allowed, slower, "slower" if slower else "")
