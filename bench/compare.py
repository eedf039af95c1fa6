"""Did HEAD become slower than BASE? The policy, row by row.

Both files' rows of one (op, case, dtype, threads, impl) are compared. Machines drift between runs,
so HEAD's times are first divided by the drift of the peers, code that did not change: the median of
their HEAD/BASE ratios, within 0.8 .. 1.25. A row has regressed if

    head > base * (1 + RELATIVE) + ABSOLUTE + NOISE * (mad_base + mad_head)

or if it failed its check in HEAD but not in BASE, or is missing from HEAD. Peers never regress.
"""

import statistics
from dataclasses import dataclass

from .results import key

RELATIVE, ABSOLUTE, NOISE = 0.10, 0.02, 2.0  # share; milliseconds; median absolute deviations


@dataclass(frozen=True)
class Verdict:
    row: tuple
    base: float | None
    head: float | None  # after division by the drift
    allowed: float | None
    regressed: bool
    why: str


def drift(base: dict, head: dict) -> float:
    """Median HEAD/BASE ratio of the peers' times; 1 without any."""
    ours, theirs = (
        {key(r): r["ms"] for r in data["rows"] if r["is_peer"] and r["ms"]} for data in (base, head)
    )
    ratios = [theirs[k] / ours[k] for k in ours.keys() & theirs.keys()]
    return min(max(statistics.median(ratios), 0.8), 1.25) if ratios else 1.0


def compare(base: dict, head: dict) -> list[Verdict]:
    scale = drift(base, head)
    after = {key(r): r for r in head["rows"]}
    verdicts = []
    for before in base["rows"]:
        if before["is_peer"] or before["ms"] is None:
            continue
        name, now = key(before), after.get(key(before))
        if now is None or now["ms"] is None:
            why = "missing" if now is None else f"failed: {now.get('error')}"
            verdicts.append(Verdict(name, before["ms"], None, None, True, why))
            continue
        allowed = (
            before["ms"] * (1 + RELATIVE) + ABSOLUTE + NOISE * (before["mad"] + now["mad"] / scale)
        )
        time = now["ms"] / scale
        verdicts.append(
            Verdict(
                name,
                before["ms"],
                time,
                allowed,
                time > allowed,
                "slower" if time > allowed else "",
            )
        )
    return verdicts
