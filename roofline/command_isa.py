"""`blockdraft roofline isa`: the kernels as compiled, and the times that a model predicts."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import click

from . import isa as compiler
from . import predict as model
from . import predicted_tables, tool_tables, verdicts
from .assembly import ARCHES
from .devices import find, load
from .kernel_work import shapes
from .output import output_options, progress

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("sources", nargs=-1, type=FILE)
@click.option(
    "--arch",
    type=click.Choice(list(ARCHES)),
    multiple=True,
    help="May be repeated.  [default: both]",
)
@click.option(
    "--kind", type=click.Choice(["all", "hip", "triton"]), default="all", show_default=True
)
@click.option("--flag", multiple=True, help="For clang, such as -DNAME=1; may be repeated.")
@click.option(
    "--predict",
    is_flag=True,
    help="A timing model's times of the project's kernels for shapes of ZAYA1-8B on MI300X and "
    "MI355X, instead of their hot loops.",
)
@click.option("--op", "ops", multiple=True, help="With --predict: only this op; may be repeated.")
@click.option(
    "--verdicts", "verdict_file", type=FILE, help="With --predict: of `pytest --verdicts FILE`."
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --predict and one --arch: the ops' times as `calibrate` reads them.",
)
@output_options
def isa(
    sources: tuple[Path, ...],
    arch: tuple[str, ...],
    kind: str,
    flag: tuple[str, ...],
    predict: bool,
    ops: tuple[str, ...],
    verdict_file: Path | None,
    save: Path | None,
) -> tuple:
    """Registers, LDS, spills, occupancy and hot loop of HIP files SOURCES, or of all the project's
    HIP and Triton kernels. Exit status 1 if gfx950 would execute an instruction wrongly."""
    targets = arch or tuple(ARCHES)
    if not predict:
        if ops or verdict_file or save:
            raise ValueError("isa: --op, --verdicts, --save: expected them with --predict")
        return compiled(sources, targets, kind, flag)
    if sources or flag:
        raise ValueError("isa: --predict: expected no SOURCES and no --flag")
    if save and len(targets) > 1:
        raise ValueError(f"isa: --save: expected one --arch, got {', '.join(targets)}")
    backends = {"all": ("cpp", "triton"), "hip": ("cpp",), "triton": ("triton",)}[kind]
    known = verdicts.load(verdict_file) if verdict_file else verdicts.Verdicts()
    rows = list(predictions(targets, backends, ops, known))
    if save:
        found = find(model.DEVICES[targets[0]], load())
        save.write_text(json.dumps(model.results(rows, found), indent=1) + "\n")
    return rows, lambda: predicted_tables.show(rows), wrong(rows)


def predictions(targets, backends, ops, known) -> Iterator[dict]:
    chosen = [shape for shape in shapes() if not ops or shape.op in ops]
    if not chosen:
        names = ", ".join(dict.fromkeys(shape.op for shape in shapes()))
        raise ValueError(f"isa: --op: expected one of {names}, got {', '.join(ops)}")
    devices = load()
    pairs = [(b, shape) for b in backends for shape in chosen if b in shape.launches]
    with progress(len(targets) * len(pairs)) as begin:
        for target in targets:
            kernels = model.Compiled(target)
            device = find(model.DEVICES[target], devices)
            for backend, shape in pairs:
                begin(f"{shape.op} {backend} {shape.label} {target}")
                yield from model.predicted(shape, backend, kernels, device, known)


def compiled(sources, targets, kind, flag) -> tuple:
    files = list(sources)
    if not sources and kind != "triton":
        files = compiler.hip_sources()
    kernels = []
    if not sources and kind != "hip":
        kernels = [(target, *k) for target in targets for k in compiler.triton_compilations(target)]
    rows = []
    with progress(len(targets) * len(files) + len(kernels)) as begin:
        for target in targets:
            for source in files:
                name = compiler.source_name(source)
                begin(f"{name} {target}")
                for report in compiler.compile_hip(source, target, flag):
                    rows.append({"source": name, **asdict(report)})
        for target, name, fn, types, constexprs, options in kernels:
            begin(f"{name} {target}")
            report = compiler.compile_triton(fn, types, constexprs, target, options)
            module = fn.__module__.rsplit(".", 1)[-1]
            rows.append({"source": f"{module}.py", **asdict(replace(report, kernel=name))})
    if not rows:
        raise ValueError(
            f"isa: expected .hip files as arguments, or kernels in {compiler.OPS}/*/hip.hip "
            "and triton_kernels/, got none"
        )

    def show() -> None:
        tool_tables.kernels(rows)
        tool_tables.hot_loops(rows)

    return rows, show, wrong(rows)


def wrong(rows: list[dict]) -> int:
    """The exit status, after a word on what the silicon executes wrongly."""
    found = {(r["kernel"], r["arch"]): r["misexecuted"] for r in rows if r.get("misexecuted")}
    for (kernel, arch), count in found.items():
        plural = "s" * (count > 1)
        click.echo(f"{kernel}: {count} instruction{plural} that {arch} executes wrongly", err=True)
    return int(bool(found))
