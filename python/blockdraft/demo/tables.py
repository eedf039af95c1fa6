"""What the demo prints at its end."""

from collections import Counter

from rich.console import Console
from rich.table import Table

from .completions import Completions


def rates(plain: Completions, greedy: Completions, sampled: Completions, ratio: str) -> Table:
    """Tokens of a forward and speed of each way of decoding."""
    table = Table(box=None)
    for name in ("", "tokens/forward", "bytes/s", "wall clock", "repetition", "output"):
        table.add_column(name, justify="left" if name in ("", "output") else "right")
    texts = ([done.tokens for done in run.completions] for run in (plain, greedy))
    same = "equals" if next(texts) == next(texts) else "DIFFERS FROM"
    rows = [
        (plain, "1.00x", ""),
        (greedy, ratio, f"{same} autoregressive"),
        (sampled, "", "lossless by law"),
    ]
    for run, wall, output in rows:
        table.add_row(
            run.name,
            f"{run.rate:.2f}",
            f"{run.bytes_per_s:.0f}",
            wall,
            f"{run.repetition:.1%}",
            output,
        )
    return table


def by_op(runs: list[Completions], predicted: dict[str, float]) -> Table:
    """Microseconds of a pass, by op; `predicted` are those of the last run."""
    table = Table(
        box=None,
        title="us a pass, by op (share)",
        caption="predicted: by the roofline, calibrated by passes of other layouts (error)",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    table.add_column("predicted", justify="right")
    columns = [times_of_pass(run) for run in runs]
    measured = columns[-1]
    for name in sorted(measured, key=lambda op: -measured[op]):
        cells = [
            f"{us.get(name, 0):.0f} ({us.get(name, 0) / sum(us.values()):.0%})" for us in columns
        ]
        table.add_row(name, *cells, _against(predicted[name], measured[name]))
    totals = [sum(us.values()) for us in columns]
    cells = (f"{total:.0f}" for total in totals)
    table.add_row("total", *cells, _against(sum(predicted.values()), totals[-1]))
    return table


def _against(predicted: float, measured: float) -> str:
    return f"{predicted:.0f} ({predicted / measured - 1:+.0%})"


def times_of_pass(run: Completions) -> dict[str, float]:
    """Microseconds by op; what is `between` is Python, small torch calls and the read-out."""
    times = {op: 1e6 * seconds / run.passes for op, seconds in run.ops.items()}
    return {**times, "between": 1e6 * run.seconds / run.passes - sum(times.values())}


def histogram(console: Console, title: str, values: list[int]) -> None:
    counts = Counter(values)
    console.print(f"{title} ({len(values)} forwards)")
    for n in range(1, max(counts) + 1):
        share = counts[n] / len(values)
        console.print(f"  {n:>3} {share:6.1%} {'#' * round(60 * share)}")
    console.print()
