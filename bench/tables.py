"""What the commands print."""

from itertools import groupby

from rich.console import Console
from rich.table import Table

from . import compare
from .limits import Limits
from .results import case_name
from .timing import UNSTEADY, disagree

_HEADINGS = ("implementation", "ms", "± mad", "of limit", "vs best peer", "convert ms")
_WIDTHS = (26, 9, 9, 8, 12, 10)


def show_results(data: dict) -> None:
    """Prints every result under its case, then unsteady times and errors."""
    console = Console(highlight=False)
    console.print(f"{data['machine']['device']}, {_ceilings(data['limits'])}", soft_wrap=True)
    console.print(_table([_HEADINGS]))
    for name, results in groupby(data["results"], case_name):
        console.print()
        console.print(f"[bold]{name}[/bold]", soft_wrap=True)
        console.print(_table([_cells(result) for result in results]))
    console.print()
    console.print(
        "* blockdraft. of limit: limit time / ms. "
        "vs best peer: ms of the fastest peer / ms, above 1 is faster.",
        soft_wrap=True,
    )
    _show_unsteady(console, data["results"])
    for result in data["results"]:
        if result.get("error"):
            line = f"{case_name(result)} {result['impl']}: {result['error']}"
            console.print(line, soft_wrap=True, markup=False)


def _table(lines: list[tuple[str, ...]]) -> Table:
    """Columns have fixed widths, so that all tables are aligned."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    for i, width in enumerate(_WIDTHS):
        table.add_column(width=width, justify="right" if i else "left")
    for cells in lines:
        table.add_row(*cells)
    return table


def _ceilings(limits: dict) -> str:
    return (
        f"{limits['threads']} threads: read {limits['read_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"multiply-add {limits['flops_per_s'] / 1e9:.0f} Gflop/s "
        f"(bf16 {limits['bf16_flops_per_s'] / 1e9:.0f}), exp {limits['exps_per_s'] / 1e9:.2f} G/s"
    )


def _cells(result: dict) -> tuple[str, ...]:
    name = f"  {result['impl']}" if result["is_peer"] else f"[bold]* {result['impl']}[/bold]"
    if result["ms"] is None:
        wrong = (result.get("error") or "").startswith("AssertionError")
        return name, "cannot run" if result["is_peer"] and not wrong else "FAILED"
    ratio = f"{result['vs_best_peer']:.2f}x" if result["vs_best_peer"] else ""
    convert = f"{result['prepare_ms']:.0f}" if result.get("prepare_ms") is not None else ""
    mad = f"{'! ' * disagree(result['ms'], result['mad'])}{result['mad']:.3f}"
    return name, f"{result['ms']:.3f}", mad, f"{result['of_limit']:.2f}", ratio, convert


def _show_unsteady(console: Console, results: list[dict]) -> None:
    timed = [result for result in results if result["ms"] is not None]
    unsteady = sum(disagree(result["ms"], result["mad"]) for result in timed)
    if unsteady:
        console.print(
            f"! The samples of {unsteady} of {len(timed)} times disagree (mad above "
            f"{UNSTEADY:.0%} of the median): another program may be running. Measure again, or "
            "set OMP_WAIT_POLICY=passive.",
            soft_wrap=True,
        )


def show_verdicts(before: dict, after: dict, verdicts: list[compare.Verdict]) -> None:
    console = Console(highlight=False)
    drift = compare.drift(before, after)
    console.print(f"drift of the peers, divided out of head: {drift:.3f}")
    table = Table("result", box=None, pad_edge=False)
    for name in ("base ms", "head ms", "allowed"):
        table.add_column(name, justify="right")
    table.add_column("")
    for verdict in verdicts:
        op, case, dtype, _, implementation = verdict.key
        times = (verdict.base, verdict.head, verdict.allowed)
        table.add_row(
            f"{op} {case} {dtype} [bold]{implementation}[/bold]",
            *(f"{time:.3f}" if time is not None else "-" for time in times),
            f"REGRESSED: {verdict.why}" if verdict.regressed else "ok",
        )
    console.print(table)
    slower = sum(verdict.regressed for verdict in verdicts)
    console.print(f"{slower} of {len(verdicts)} results regressed")


def limit_cells(limits: Limits) -> tuple[int | str, ...]:
    """A line of the table of `blockdraft roofline measure`."""
    return (
        limits.threads,
        f"{limits.read_bytes_per_s / 1e9:.1f}",
        f"{limits.flops_per_s / 1e9:.1f}",
        f"{limits.bf16_flops_per_s / 1e9:.1f}",
        f"{limits.exps_per_s / 1e9:.2f}",
    )
