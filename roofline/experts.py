"""How the rows of a pass spread over the experts of a layer: how many are touched, how far the
busiest one lies above the mean, and what tiles and waves of workgroups add."""

from dataclasses import dataclass
from math import ceil, exp, lgamma, log

from . import budget
from .step import expected_experts
from .workload import Workload

# Rows of a matrix instruction's tile, to which an expert's rows are padded: 16x16x16 and 16x16x32
TILE = 16


@dataclass(frozen=True)
class Spread:
    """Of one layer and one pass; rows are taken as independent.

    touched         experts that get a row
    mean_rows       of a touched expert; longest_rows: expected of the busiest one
    padded          rows with those that fill tiles, over rows
    workgroups      of the gate and up product; None without compute units
    idle            share of the compute units' time that the last wave of workgroups leaves
    """

    touched: float
    experts: int
    mean_rows: float
    longest_rows: float
    padded: float
    workgroups: int | None = None
    idle: float | None = None

    @property
    def text(self) -> str:
        waves = ""
        if self.workgroups is not None:
            waves = (
                f", {self.workgroups} workgroups of the gate and up product, whose last wave "
                f"leaves {self.idle:.0%} of the compute units' time idle"
            )
        return (
            f"Experts of a layer: {self.touched:.1f} of {self.experts} touched by "
            f"{self.mean_rows:.0f} rows each, the busiest by {self.longest_rows:.0f}; tiles of "
            f"{TILE} rows add {self.padded - 1:.0%} to the products{waves}. Not in the times."
        )


def spread(w: Workload, compute_units: int | None = None) -> Spread:
    experts = w.model.num_experts
    routing = w.routing or (1.0,) * experts
    total = sum(routing)
    shares = [share / total for share in routing]
    rows = w.pass_rows
    counts = {share: binomial(rows, share) for share in set(shares)}
    touched = expected_experts(w)
    padded = sum(p * TILE * ceil(n / TILE) for share in shares for n, p in enumerate(counts[share]))
    groups = idle = None
    if compute_units:
        launch = budget.launches(w.model, rows)[0]
        groups = launch.groups
        places = compute_units * launch.groups_per_unit
        idle = 1 - groups / (places * ceil(groups / places))
    return Spread(
        touched,
        experts,
        rows / touched,
        _longest([counts[share] for share in shares]),
        padded / rows,
        groups,
        idle,
    )


def binomial(rows: int, share: float) -> list[float]:
    """The probability of each number of rows, 0 .. rows."""
    if share <= 0 or share >= 1:
        return [float(n == (rows if share else 0)) for n in range(rows + 1)]
    return [
        exp(
            lgamma(rows + 1)
            - lgamma(n + 1)
            - lgamma(rows - n + 1)
            + n * log(share)
            + (rows - n) * log(1 - share)
        )
        for n in range(rows + 1)
    ]


def _longest(counts: list[list[float]]) -> float:
    """The expected greatest number, as if the experts' numbers were independent."""
    below = [0.0] * len(counts)
    expected = 0.0
    for n in range(len(counts[0])):
        below = [min(1.0, b + count[n]) for b, count in zip(below, counts, strict=True)]
        none_above = 1.0
        for b in below:
            none_above *= b
        expected += 1 - none_above
        if none_above > 1 - 1e-9:
            break
    return expected
