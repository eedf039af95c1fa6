"""`blockdraft bench ...` and `blockdraft roofline measure`."""

import sys
from pathlib import Path

import click

from ..roofline.output import output_options, table
from .results import OPS

_OPTIONS = [
    click.option(
        "--quick",
        is_flag=True,
        help="One small case of each op, for function rather than for figures.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float16", "float32"]),
        multiple=True,
        help="May be repeated. [default: bfloat16 and float32; quick: float32]",
    ),
    click.option(
        "--threads", type=click.IntRange(1), help="CPU threads. [default: torch's choice]"
    ),
    click.option("--impl", help="Of blockdraft's implementations only this one (peers stay)."),
    click.option(
        "--case",
        "cases",
        multiple=True,
        help="Only cases that have this, such as L=8192; may be repeated.",
        metavar="NAME=VALUE",
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        show_default=True,
        help="cuda is ROCm's name, too.",
    ),
    click.option(
        "--json",
        "path",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the results (schema 1).",
    ),
]


def _options(function):
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.group(invoke_without_command=True)
@_options
@click.pass_context
def bench(context, **options):
    """Time blockdraft's ops and their peers on the same inputs, against this machine's limits (no
    subcommand: all)."""
    if context.invoked_subcommand is None:
        _run("all", **options)


def _rows_command(op: str) -> click.Command:
    @click.command(op, help=f"Time {'every op' if op == 'all' else op}.")
    @_options
    def command(**options):
        _run(op, **options)

    return command


for _op in (*OPS, "all"):
    bench.add_command(_rows_command(_op))


def _run(op, quick, dtype, threads, impl, cases, device, path):
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from . import limits, measure, results
    from .rows import DTYPES, all_rows

    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError(
            "--device: expected a device that torch sees, got cuda on a machine without one"
        )
    if threads:
        torch.set_num_threads(threads)
    dtypes = list(dtype) or (["float32"] if quick else ["bfloat16", "float32"])
    console = Console(highlight=False, stderr=True)
    builders = all_rows(op, dtypes, quick, device, cases)
    if not builders:
        raise click.UsageError(f"--case: expected what a case of {op} has, got {' '.join(cases)}")
    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress,
        torch.inference_mode(),
    ):
        task = progress.add_task("limits of this machine", total=len(builders) + 1)

        def on_row(label):
            progress.update(task, advance=1, description=label)
            if not console.is_terminal:
                console.print(label)

        ceiling = (
            limits.of_cpu(torch.get_num_threads())
            if device == "cpu"
            else limits.of_gpu(DTYPES[dtypes[0]])
        )
        rows = measure.run(
            builders,
            ceiling,
            only=impl,
            device=device,
            seconds=0.3 if quick else 2.0,
            on_row=on_row,
        )
    data = {
        "schema": 1,
        "machine": results.machine(device),
        "limits": ceiling.to_json(),
        "rows": rows,
    }
    if path:
        results.save(path, data)
    show(data)
    if all(row["is_peer"] for row in rows):
        raise click.UsageError(
            f"--impl: expected one of blockdraft's implementations of {op}, got {impl!r}"
        )
    failed = measure.failures(rows)
    if failed:
        sys.exit(f"{len(failed)} rows failed their check")


def show(data: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console, limits = Console(highlight=False), data["limits"]
    console.print(
        f"{data['machine']['device']}, {limits['threads']} threads: read {limits['read_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"multiply-add {limits['flops_per_s'] / 1e9:.0f} Gflop/s (bf16 {limits['bf16_flops_per_s'] / 1e9:.0f}), "
        f"exp {limits['exps_per_s'] / 1e9:.2f} G/s",
        soft_wrap=True,
    )
    table = Table("implementation", box=None, pad_edge=False)
    for name in ("ms", "± mad", "of limit", "vs best peer", "convert ms"):
        table.add_column(name, justify="right")
    last = None
    for row in data["rows"]:
        this = f"{row['op']}  {row['case']}  {row['dtype']}"
        if this != last:
            table.add_row(*[""] * (last is not None))
            table.add_row(f"[bold]{this}[/bold]")
        last = this
        name = f"  {row['impl']}" if row["is_peer"] else f"[bold]* {row['impl']}[/bold]"
        if row["ms"] is None:
            absent = row["is_peer"] and not (row.get("error") or "").startswith("AssertionError")
            table.add_row(name, "cannot run" if absent else "FAILED")
            continue
        ratio = f"{row['vs_best_peer']:.2f}x" if row["vs_best_peer"] else ""
        convert = f"{row['prepare_ms']:.0f}" if row.get("prepare_ms") is not None else ""
        table.add_row(
            name, f"{row['ms']:.3f}", f"{row['mad']:.3f}", f"{row['of_limit']:.2f}", ratio, convert
        )
    console.print(table)
    console.print(
        "* blockdraft. of limit: limit time / ms. vs best peer: ms of the fastest peer / ms, above 1 is faster.",
        soft_wrap=True,
    )
    for row in data["rows"]:
        if row.get("error"):
            console.print(
                f"{row['op']} {row['case']} {row['dtype']} {row['impl']}: {row['error']}",
                soft_wrap=True,
                markup=False,
            )


@bench.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False))
@click.argument("head", type=click.Path(exists=True, dir_okay=False))
def compare(base, head):
    """Exit 1 if a row of HEAD is slower than in BASE: 10 % + 0.02 ms + 2 MAD, after the drift of
    the peers."""
    from rich.console import Console
    from rich.table import Table

    from . import compare as policy
    from . import results

    try:
        before, after = results.load(base), results.load(head)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    verdicts = policy.compare(before, after)
    console = Console(highlight=False)
    console.print(f"drift of the peers, divided out of head: {policy.drift(before, after):.3f}")
    table = Table("row", box=None, pad_edge=False)
    for name in ("base ms", "head ms", "allowed"):
        table.add_column(name, justify="right")
    table.add_column("")
    for v in verdicts:
        op, case, dtype, _, implementation = v.row
        numbers = [f"{x:.3f}" if x is not None else "-" for x in (v.base, v.head, v.allowed)]
        table.add_row(
            f"{op} {case} {dtype} [bold]{implementation}[/bold]",
            *numbers,
            f"REGRESSED: {v.why}" if v.regressed else "ok",
        )
    console.print(table)
    slower = sum(v.regressed for v in verdicts)
    console.print(f"{slower} of {len(verdicts)} rows regressed")
    sys.exit(1 if slower else 0)


@bench.command("plot")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    help="Folder for the PNGs.",
)
def plot_command(file, out):
    """Ratio bars, and the rows on the roofline, as PNGs."""
    from . import plots, results

    try:
        data = results.load(file)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for path in plots.plot(data, out):
        click.echo(path)


@click.command("measure")
@click.option(
    "--threads", type=click.IntRange(1), help="Only this many threads. [default: 1 and all]"
)
@output_options
def measure_command(threads):
    """Measure this CPU's ceilings: memory read bandwidth, rates of fp32 multiply-adds, bf16
    products and exponentials."""
    import os

    from . import limits

    counts = (
        [threads]
        if threads
        else sorted(
            {
                1,
                len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else os.cpu_count(),
            }
        )
    )
    found = [limits.of_cpu(n) for n in counts]
    return [limit.to_json() for limit in found], lambda: table(
        "This CPU, measured now",
        ("threads", "read GB/s", "multiply-add Gflop/s", "bf16 Gflop/s", "exp G/s"),
        (
            (
                limit.threads,
                f"{limit.read_bytes_per_s / 1e9:.1f}",
                f"{limit.flops_per_s / 1e9:.1f}",
                f"{limit.bf16_flops_per_s / 1e9:.1f}",
                f"{limit.exps_per_s / 1e9:.2f}",
            )
            for limit in found
        ),
    )
