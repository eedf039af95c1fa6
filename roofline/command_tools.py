"""`blockdraft roofline plot` and `check`."""

from dataclasses import asdict
from pathlib import Path

import click

from ..bench.names import OPS, stem
from . import calibrate_tables, canvas, plots, tool_tables
from . import check as checking
from . import whole_pass as whole
from .devices import load
from .options import acceptance_options, workload_options
from .output import output_options, progress
from .setting import drafting_branches, prepare


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("roofline-plots"),
    show_default=True,
    help="Folder.",
)
@workload_options
@acceptance_options
@click.option(
    "--proposals",
    type=int,
    default=3,
    show_default=True,
    help="P of the block pass on the roofline.",
)
@click.option(
    "--slack",
    type=float,
    default=0.25,
    show_default=True,
    help="What proposals may add to the pass that only verifies.",
)
@output_options
def plot(proposals: int, slack: float, out: Path, **options) -> tuple:
    """The roofline with every op, proposals against context, a heat map of the best P (PNG, SVG),
    and a page with sliders."""
    setting = prepare(**options)
    steady = drafting_branches(setting.accepting, proposals)
    subject = canvas.Subject(
        setting.title, setting.work, setting.rates, setting.launch_us, steady, setting.calibrated
    )
    known = list(load(options["devices_file"]).values())
    paths = plots.draw_all(subject, setting.device, known, setting.accepting, slack, out)

    def show() -> None:
        for path in paths:
            click.echo(path)

    return [{"file": str(path)} for path in paths], show


@click.command()
@click.option(
    "--op",
    "modules",
    type=click.Choice([*checking.SHAPES, *(s for s in map(OPS.get, checking.SHAPES) if s)]),
    multiple=True,
    help="May be repeated.  [default: all whose C++ kernel is built]",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="float32",
    show_default=True,
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 60),
    default=0.5,
    show_default=True,
    help="Spent on each shape.",
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the times as a result file, for `calibrate`.",
)
@click.option(
    "--whole-pass", is_flag=True, help="Predict passes of the decoder, too; needs every op."
)
@output_options
def check(
    modules: tuple[str, ...],
    dtype: str,
    threads: int,
    seconds: float,
    save: Path | None,
    whole_pass: bool,
) -> tuple:
    """The model against this CPU: efficiency and fixed cost of each op, fitted on some shapes,
    predict others; exit 1 beyond 25 %."""
    built = checking.available()
    chosen = list(dict.fromkeys(map(stem, modules))) or built
    missing = [m for m in chosen if m not in built]
    if missing or not built:
        raise ValueError(
            f"--op: expected one of {', '.join(built) or 'nothing (no C++ kernel is built)'}, "
            f"got {', '.join(missing)}"
        )
    if whole_pass and set(chosen) != set(checking.SHAPES):
        raise ValueError(
            f"--whole-pass: expected every op ({', '.join(checking.SHAPES)}), "
            f"got {', '.join(chosen)}"
        )
    count = checking.shape_count(chosen) + whole_pass * len(whole.PROPOSALS)
    passes = []
    with progress(count) as begin:
        found, data = checking.run(chosen, dtype, threads, seconds, on_shape=begin)
        if whole_pass:
            calibration = checking.calibrated(data, dtype)
            calibration, passes = whole.predict(calibration, whole.measure(dtype, begin))
    if save:
        from ..bench import results

        results.save(save, data)
    rows = [
        {
            **asdict(c),
            "predicted_ms": c.predicted_ms,
            "error": c.error,
            "ideal_error": c.ideal_error,
        }
        for c in found
    ]
    rows += [{"op": "pass", "case": p.name, **p.to_row()} for p in passes]
    far_off = any(abs(c.error) > 0.25 for c in found if c.held_out)
    far_off |= any(abs(p.errors["error"]) > 0.25 for p in passes)

    def show() -> None:
        tool_tables.predictions(found, dtype, threads)
        if passes:
            calibrate_tables.passes(passes, calibration)

    return rows, show, int(far_off)
