"""Mixing the drafter's logits into the target's: what it wins in speed, and what it costs."""

from typing import NamedTuple

from rich.progress import Progress
from rich.table import Table

from .. import BlockDecoder, BlockLayout
from ..models.zaya import ZayaModel
from .completions import Completions, in_turn

WEIGHTS = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)  # of the target's logits; 1 is lossless


class Point(NamedTuple):
    """One weight: tokens of a forward, nats of a generated token under the autoregressive model
    alone, share of repeated windows, bytes per second, and the same relative to lossless."""

    weight: float
    rate: float
    nats: float
    repetition: float
    bytes_per_s: float
    speed: float


def sweep(
    model: ZayaModel,
    texts: list[list[int]],
    tokens: int,
    layout: BlockLayout,
    branches: tuple[int, ...] | None,
    progress: Progress,
) -> list[Point]:
    """Completions at temperature 1 for each of WEIGHTS, which take turns, piece by piece."""
    decoder = BlockDecoder(model, layout, branches=branches)
    runs = [
        Completions(f"mix {weight:g}", decoder, texts, tokens, 1.0, weight) for weight in WEIGHTS
    ]
    in_turn(runs, progress)
    return [
        Point(
            run.mix,
            run.rate,
            run.nats,
            run.repetition,
            run.bytes_per_s,
            run.bytes_per_s / runs[0].bytes_per_s,
        )
        for run in runs
    ]


def table(points: list[Point], layout: BlockLayout) -> Table:
    out = Table(
        box=None,
        title=f"K = {layout.K}, P = {layout.P}, M = {layout.M}, temperature 1",
        title_justify="left",
    )
    for name in ("target's weight", "tokens/forward", "nats/byte", "repetition", "bytes/s", ""):
        out.add_column(name, justify="right")
    for point in points:
        out.add_row(
            f"{point.weight:g}" + (" (lossless)" if point.weight == 1 else ""),
            f"{point.rate:.2f}",
            f"{point.nats:.3f}",
            f"{point.repetition:.1%}",
            f"{point.bytes_per_s:.0f}",
            f"{point.speed:.2f}x",
        )
    return out
