"""`blockdraft roofline calibrate` and `explain`: what measurements say of a device."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from . import calibrate_tables as tables
from . import calibration as calibrating
from . import plan as planning
from . import whole_pass
from .options import acceptance_options, workload_options
from .output import numbers, output_options, pairs
from .setting import drafting_branches, prepare
from .step import pass_ops, pass_seconds

_IN = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUT = click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the calibration, for --calibration of the other commands.",
)


@click.command()
@click.argument("results", type=_IN)
@click.option(
    "--impl", default="cpp", show_default=True, help="The implementation whose times count."
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
)
@click.option(
    "--step",
    "steps",
    type=_IN,
    help="File of `bench step --json`: the host's cost is that of its first pass, the other passes "
    "are predicted.",
)
@click.option(
    "--touched",
    callback=pairs,
    help="Experts of a layer that the passes of --step touch: ROWS:EXPERTS,...  [default: as the "
    "file says]",
)
@_OUT
@output_options
def calibrate(
    results: Path,
    impl: str,
    dtype: str,
    steps: Path | None,
    touched: tuple[tuple[float, float], ...] | None,
    out: Path | None,
) -> tuple:
    """Efficiency and fixed microseconds of each op, from a RESULTS file of `bench` or of `check
    --save` on the target device; or of `isa --predict --save`, which is no measurement."""
    from ..bench.results import load

    found = calibrating.of_results(load(results), impl, dtype, results.name)
    passes = []
    if steps:
        measured = whole_pass.read(steps)
        if touched:
            measured = whole_pass.routed(measured, touched)
        found, passes = whole_pass.predict(found, measured)
    if out:
        calibrating.save(out, found)
    rows = [{"op": op, **asdict(fit)} for op, fit in found.ops.items()]
    rows += [{"op": "pass", "case": each.name, **each.to_row()} for each in passes]

    def show() -> None:
        tables.fits(found)
        if passes:
            tables.passes(passes, found)

    return rows, show


@click.command()
@workload_options
@acceptance_options
@click.option("--proposals", type=int, default=3, show_default=True)
@click.option("--branches", callback=numbers, help="The branches that were measured.")
@click.option(
    "--measured",
    callback=numbers,
    required=True,
    help="Tokens per second of the batch: autoregressive, block diffusion.",
)
@_OUT
@output_options
def explain(
    proposals: int,
    branches: Sequence[float] | None,
    measured: tuple[float, ...],
    out: Path | None,
    **options,
) -> tuple:
    """One efficiency of every op and one launch cost that explain two measured rates."""
    setting = prepare(**options)
    if len(measured) != 2 or not all(rate > 0 for rate in measured):
        raise ValueError(f"--measured: expected two rates above 0, got {list(measured)}")
    steady = drafting_branches(setting.accepting, proposals, branches)
    works = [setting.work.autoregressive(), planning.drafting(setting.work, steady)]
    tokens = [1.0, steady.tokens_per_pass]
    ideal = [
        (pass_seconds(w, setting.rates), sum(op.launches for op in pass_ops(w))) for w in works
    ]
    seconds = [setting.work.batch * t / rate for t, rate in zip(tokens, measured, strict=True)]
    source = f"{measured[0]:g} and {measured[1]:g} tokens/s"
    found = calibrating.of_two_rates(*ideal, tuple(seconds), source)
    found = replace(found, device=setting.rates.device, dtype=setting.work.dtype)
    if out:
        calibrating.save(out, found)
    rates = replace(setting.rates, calibration=found)
    rows = [
        {
            "mode": mode,
            "tokens_per_pass": t,
            "launches": count,
            "ideal_ms": 1e3 * ideal_s,
            "measured_ms": 1e3 * measured_s,
            "explained_ms": 1e3 * pass_seconds(w, rates),
            "ideal_tokens_per_s": setting.work.batch * t / ideal_s,
            "measured_tokens_per_s": rate,
            "explained_tokens_per_s": setting.work.batch * t / pass_seconds(w, rates),
            "efficiency": 1 / found.others.whole,
            "launch_us": found.launch_us,
        }
        for mode, t, (ideal_s, count), measured_s, rate, w in zip(
            ("autoregressive", "block"), tokens, ideal, seconds, measured, works, strict=True
        )
    ]

    reach = calibrating.explicable(*ideal, seconds[0])

    def show() -> None:
        tables.explained(setting, rows, works[1], reach)

    return rows, show
