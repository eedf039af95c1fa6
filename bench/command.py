"""`blockdraft bench ...` and `blockdraft roofline measure`."""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import click

from ..roofline.output import output_options, table
from .names import OPS

_OPTIONS = [
    click.option(
        "--quick",
        is_flag=True,
        help="One small case of each op, for function rather than for figures.",
    ),
    click.option(
        "--reference",
        is_flag=True,
        help="Time the reference implementation, too, which is slow. [always with --quick, and "
        "where there is no other]",
    ),
    click.option(
        "--dtype",
        "dtypes",
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
        "having",
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
        help="Write the results (schema 2).",
    ),
]


def _options(function: Callable) -> Callable:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.group(invoke_without_command=True)
@_options
@click.pass_context
def bench(context: click.Context, **options) -> None:
    """Time blockdraft's ops and their peers on the same inputs, against this machine's limits (no
    subcommand: all)."""
    if context.invoked_subcommand is None:
        _run("all", **options)


def _command(op: str, name: str, hidden: bool = False) -> click.Command:
    what = "every op" if op == "all" else op

    @click.command(name, help=f"Time {what}.", hidden=hidden)
    @_options
    def command(**options) -> None:
        _run(op, **options)

    return command


for _op, _short in OPS.items():
    bench.add_command(_command(_op, _op))
    if _short:
        bench.add_command(_command(_op, _short, hidden=True))
bench.add_command(_command("all", "all"))


@bench.command()
@click.option("--batch", type=click.IntRange(1), multiple=True, default=(1, 8), show_default=True)
@click.option(
    "--context", type=click.IntRange(1), multiple=True, default=(1024, 8192), show_default=True
)
@click.option(
    "--proposals", type=click.IntRange(0, 16), multiple=True, default=(0, 1, 3), show_default=True
)
@click.option("--layers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--vocab", type=click.IntRange(8), default=262272, show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: torch's choice]")
@click.option("--passes", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results."
)
def step(**options) -> None:
    """Time whole passes of a stack of ZAYA1-8B's layers with random weights, by op.

    Plain decoding (one row a request) is measured beside 16 verify rows and each number of
    proposals of 16 masks. Every option in brackets may be repeated.
    """
    from .step import run

    run(**options)


def _run(
    op: str,
    quick: bool,
    reference: bool,
    dtypes: tuple[str, ...],
    threads: int | None,
    impl: str | None,
    having: tuple[str, ...],
    device: str,
    path: Path | None,
) -> None:
    import torch

    from . import limits, measure, results, suite
    from .case import DTYPES
    from .tables import show_results

    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError(
            "--device: expected a device that torch sees, got cuda on a machine without one"
        )
    if threads:
        torch.set_num_threads(threads)
    chosen = list(dtypes) or (["float32"] if quick else ["bfloat16", "float32"])
    cases = suite.cases(op, chosen, quick, device, having)
    if not cases:
        raise click.UsageError(f"--case: expected what a case of {op} has, got {' '.join(having)}")
    if impl and impl not in (names := suite.own_names(cases)):
        raise click.UsageError(f"--impl: expected one of {', '.join(sorted(names))}, got {impl}")
    if device == "cpu":
        ceilings = limits.of_cpu(torch.get_num_threads())
    else:
        ceilings = limits.of_gpu(DTYPES[chosen[0]])
    options = measure.Options(
        only=impl, reference=reference or quick, device=device, seconds=0.3 if quick else 2.0
    )
    with _progress(cases, ceilings, options.seconds) as on_case, torch.inference_mode():
        found = measure.run(cases, ceilings, options, on_case)
    data = {
        "schema": results.SCHEMA,
        "machine": results.machine(device),
        "limits": ceilings.to_json(),
        "results": found,
    }
    if path:
        results.save(path, data)
    show_results(data)
    if all(result["is_peer"] for result in found):
        raise click.UsageError(f"--impl: expected one that runs a case of these, got {impl}")
    failed = measure.failures(found)
    if failed:
        sys.exit(f"{len(failed)} implementations failed their check")


@contextmanager
def _progress(cases: list, ceilings, seconds: float):
    """Prints how long the run will take, then the progress: a bar on a terminal, otherwise a line
    for each case."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .estimate import Estimate, in_words

    console = Console(highlight=False, stderr=True)
    estimate = Estimate(cases, ceilings, seconds)
    console.print(f"{len(cases)} cases, about {in_words(sum(estimate.guesses))}", soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("", total=len(cases), left="")

        def on_case(case) -> None:
            label = f"{case.op} {case.label} {case.dtype}"
            left = f"about {in_words(estimate.next())} left"
            bar.update(task, completed=estimate.done - 1, description=label, left=left)
            if not console.is_terminal:
                line = f"{estimate.done}/{len(cases)} {label}, {left}"
                console.print(line, soft_wrap=True, markup=False)

        yield on_case


def _load(path: str) -> dict:
    from . import results

    try:
        return results.load(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@bench.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False))
@click.argument("head", type=click.Path(exists=True, dir_okay=False))
def compare(base: str, head: str) -> None:
    """Exit 1 if an op is slower in HEAD than in BASE: 10 % + 0.02 ms + 2 MAD, after the drift of
    the peers."""
    from . import compare as policy
    from .tables import show_verdicts

    before, after = _load(base), _load(head)
    verdicts = policy.compare(before, after)
    show_verdicts(before, after, verdicts)
    sys.exit(1 if any(verdict.regressed for verdict in verdicts) else 0)


@bench.command("plot")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    help="Folder for the PNGs.",
)
def plot_command(file: str, out: Path) -> None:
    """Ratio bars, and the cases on the roofline, as PNGs."""
    from . import plots

    for path in plots.plot(_load(file), out):
        click.echo(path)


def _cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@click.command("measure")
@click.option(
    "--threads", type=click.IntRange(1), help="Only this many threads. [default: 1 and all]"
)
@output_options
def measure_command(threads: int | None):
    """Measure this CPU's ceilings: memory read bandwidth, rates of fp32 multiply-adds, bf16
    products and exponentials."""
    from . import limits

    counts = [threads] if threads else sorted({1, _cpu_count()})
    found = [limits.of_cpu(count) for count in counts]

    def show() -> None:
        from .tables import limit_cells

        names = (
            "threads",
            "read GB/s",
            "multiply-add Gflop/s",
            "bf16 Gflop/s",
            "exp G/s",
        )
        table("This CPU, measured now", names, map(limit_cells, found))

    return [limit.to_json() for limit in found], show
