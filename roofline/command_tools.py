"""`blockdraft roofline plot`, `isa` and `check`."""

from dataclasses import asdict, replace
from pathlib import Path

import click

from .check import SHAPES
from .models import title
from .options import (
    acceptance_law,
    acceptance_options,
    drafting_branches,
    prepare,
    workload_options,
)
from .output import number, output_options, progress, table

_ARCHES = ("gfx942", "gfx950")


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--arch", type=click.Choice(_ARCHES), multiple=True, help="May be repeated.  [default: both]"
)
@click.option(
    "--kind", type=click.Choice(["all", "hip", "triton"]), default="all", show_default=True
)
@click.option("--flag", multiple=True, help="For clang, such as -DNAME=1; may be repeated.")
@output_options
def isa(sources, arch, kind, flag):
    """Registers, LDS, spills, occupancy and hot loop of HIP files SOURCES, or of all the project's
    HIP and Triton kernels."""
    from . import isa as compiler

    files = list(sources) or (compiler.hip_sources() if kind != "triton" else [])
    targets, rows = arch or _ARCHES, []
    kernels = (
        [(target, *k) for target in targets for k in compiler.triton_compilations(target)]
        if kind != "hip" and not sources
        else []
    )
    with progress(len(targets) * len(files) + len(kernels)) as begin:
        for target in targets:
            for source in files:
                begin(f"{source.name} {target}")
                rows += [
                    {"source": source.name, **asdict(r)}
                    for r in compiler.compile_hip(source, target, flag)
                ]
        for target, name, fn, types, constexprs, options in kernels:
            begin(f"{name} {target}")
            report = compiler.compile_triton(fn, types, constexprs, target, options)
            rows.append(
                {
                    "source": f"{fn.__module__.rsplit('.', 1)[-1]}.py",
                    **asdict(replace(report, kernel=name)),
                }
            )
    if not rows:
        raise ValueError(
            f"isa: expected .hip files as arguments, or kernels in {compiler.CSRC}/*.hip and triton_kernels/, got none"
        )

    def show():
        table(
            "Kernels as compiled, without an AMD device",
            ("kernel ", "arch ", "VGPR", "AGPR", "SGPR", "LDS B", "spill v/s", "waves/SIMD "),
            (
                (
                    r["kernel"],
                    r["arch"],
                    r["vgpr"],
                    r["agpr"],
                    r["sgpr"],
                    r["lds"],
                    f"{r['vgpr_spill']}/{r['sgpr_spill']}",
                    f"{r['waves_per_simd']} ({r['limited_by']})",
                )
                for r in rows
            ),
            (
                "spill v/s: VGPRs to memory, SGPRs to lanes of VGPRs. waves/SIMD: occupancy, and what limits it.",
            ),
            keys=2,
        )
        classes = ("mfma", "valu", "trans", "salu", "lds", "vmem", "branch", "wait")
        columns = (
            "kernel ",
            "arch ",
            "instr",
            *classes,
            "16 B loads",
            "per mfma",
            "mfma cyc",
            "issue cyc",
            "bound ",
        )
        table(
            "\nHot loop, one iteration of a wave",
            columns,
            (
                (
                    r["kernel"],
                    r["arch"],
                    r["loop_instructions"],
                    *(r[f"loop_{c}"] for c in classes),
                    r["loop_loads_16_bytes"],
                    "-"
                    if r["instructions_per_mfma"] is None
                    else f"{r['instructions_per_mfma']:.1f}",
                    number(r["loop_mfma_cycles"], "d") + "?" * r["mfma_cycles_unconfirmed"],
                    r["loop_issue_cycles"],
                    r["bound"],
                )
                for r in rows
            ),
            (
                "Each instruction counts once, those of branches and loops within the hot loop as well. mfma cyc: the matrix unit's cycles "
                "for a wave; issue cyc: 4 an instruction, the least in which one wave issues them. bound: the larger over all waves of a "
                "SIMD (vector instructions count 4 cycles, exponentials 16). - cycles not known, ? not confirmed.",
            ),
            keys=2,
        )

    return rows, show


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
def plot(mean, alpha, histogram, offsets, proposals, slack, out, **setting):
    """The roofline with every op, proposals against context, a heat map of the best P (PNG, SVG),
    and a page with sliders."""
    from . import page, plots, sweep
    from .devices import ceilings, load

    work, rates, device = prepare(**setting)
    law, launch_us, name = (
        acceptance_law(work, mean, alpha, histogram, offsets),
        setting["launch_us"],
        title(setting["model"]),
    )
    steady = drafting_branches(law, proposals)
    drafting = replace(work, branches=steady.branches, accepted=steady.tokens_per_pass - 1)
    known = list(load(setting["devices_file"]).values())
    quoted = rates if device.name == "cpu" else ceilings(device, work.dtype, "peak")
    where, rest = (
        f"{name}, {work.dtype}, {rates.device}",
        plots.subtitle(rates.basis, launch_us, rates.unconfirmed),
    )
    accepting = f"{steady.tokens_per_pass:.2f} tokens a pass"
    paths = plots.roofline(
        quoted,
        rates,
        {"autoregressive": work.autoregressive(), "block diffusion": drafting},
        launch_us,
        f"{where}, batch {work.batch}, context {work.context_tokens}, P = {proposals}, {accepting}\n{rest}",
        out,
    )
    able = []
    for other in known:
        try:
            able.append(ceilings(other, work.dtype, rates.basis))
        except ValueError:
            continue
    paths += plots.blocks_against_context(
        able,
        work,
        slack,
        launch_us,
        f"{name}, {work.dtype}, batch {work.batch}\n{plots.subtitle(rates.basis, launch_us)}",
        out,
    )
    contexts = [n for n in page.CONTEXTS if n <= work.model.max_position_embeddings]
    rows = sweep.run(work, law, rates, page.BATCHES, contexts, page.MAX_PROPOSALS, launch_us)
    paths += plots.heat_map(rows, f"{where}, {accepting} with P = {proposals}\n{rest}", out)
    content = page.data(name, work, known + [device] * (device not in known), launch_us)
    paths.append(page.write(out / "blocks.html", content))

    def show():
        for path in paths:
            click.echo(path)

    return [{"file": str(path)} for path in paths], show


@click.command()
@click.option(
    "--op",
    "modules",
    type=click.Choice(list(SHAPES)),
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
@output_options
def check(modules, dtype, threads, seconds):
    """The model against this CPU: one efficiency an op, fitted on some shapes, predicts others;
    exit 1 beyond 25 %."""
    from . import check as reality

    built = reality.available()
    missing = [m for m in modules if m not in built]
    if missing or not built:
        raise ValueError(
            f"--op: expected one of {', '.join(built) or 'nothing (no C++ kernel is built)'}, got {', '.join(missing)}"
        )
    chosen = list(modules) or built
    with progress(reality.shape_count(chosen)) as begin:
        found = reality.run(chosen, dtype, threads, seconds, on_shape=begin)
    rows = [{**asdict(c), "predicted_ms": c.predicted_ms, "error": c.error} for c in found]
    held = [c for c in found if c.held_out]

    def show():
        worst = {c.op: max((h.error for h in held if h.op == c.op), key=abs) for c in found}
        table(
            f"Predicted against measured on this CPU, {dtype}, {threads} thread{'s' * (threads > 1)}",
            (
                "op",
                "case ",
                "used to ",
                "limit ms",
                "measured ms",
                "of limit",
                "predicted ms",
                "error",
            ),
            (
                (
                    c.op,
                    c.case,
                    "predict" if c.held_out else "fit",
                    f"{c.limit_ms:.3f}",
                    f"{c.measured_ms:.3f}",
                    f"{c.limit_ms / c.measured_ms:.2f}",
                    f"{c.predicted_ms:.3f}",
                    f"{c.error:+.1%}",
                )
                for c in found
            ),
            (
                f"{c.op}: efficiency {c.efficiency:.3f}, fitted; worst error of the {sum(h.op == c.op for h in held)} shapes held out: "
                f"{worst[c.op]:+.1%}"
                for c in {c.op: c for c in found}.values()
            ),
            keys=2,
        )

    return rows, show, int(any(abs(c.error) > 0.25 for c in held))
