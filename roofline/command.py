"""`blockdraft roofline ...`: devices, blocks, kinds of attention, step, plan, sweep. Heavy imports
wait until a command runs."""

from dataclasses import replace

import click

from . import rows as table_rows
from .models import title
from .options import (
    BASES,
    acceptance_law,
    acceptance_options,
    batch_option,
    context_option,
    device_option,
    devices_option,
    drafting_branches,
    model_option,
    model_options,
    prepare,
    workload_options,
)
from .output import number, numbers, output_options, table


@click.group()
def roofline():
    """How many draft blocks a device can afford, for a model, batch and context, and why."""


@roofline.command()
@click.option("--sources", is_flag=True, help="Every figure with its source, date and confidence.")
@click.option("--cpu", is_flag=True, help="This machine as well, probed for some seconds.")
@devices_option
@output_options
def devices(sources, cpu, devices_file):
    """Devices and their figures: quoted ones and achieved ones."""
    from .devices import find, load

    known = load(devices_file)
    rows = table_rows.device_figures([*known.values(), *([find("cpu", known)] if cpu else [])])

    def show():
        if sources:
            texts = list(dict.fromkeys(f"{r['source']} ({r['date']})" for r in rows))
            table(
                "Figures, dense",
                ("device", "figure ", "kind ", "value", "confidence ", "source"),
                (
                    (
                        r["device"],
                        r["figure"],
                        r["kind"],
                        f"{r['value']:.5g}",
                        r["confidence"],
                        texts.index(f"{r['source']} ({r['date']})") + 1,
                    )
                    for r in rows
                ),
                (
                    "Of several figures of a kind the first is used. Sources, with the date of publication or reading:",
                    *(f"{i:3} {text}" for i, text in enumerate(texts, 1)),
                    *(
                        f"{r['device']} {r['figure']} {r['value']:.5g}: {r['note']}"
                        for r in rows
                        if r["note"]
                    ),
                ),
                keys=3,
            )
            return
        used = {(r["device"], r["figure"], r["kind"]): r for r in rows if r["used"]}
        names = list(dict.fromkeys(r["device"] for r in rows))
        lines = dict.fromkeys(
            (r["figure"], r["kind"]) for r in sorted(rows, key=lambda r: r["kind"] == "achieved")
        )
        table(
            "Dense figures, without sparsity",
            ("figure", "kind ", *names),
            (
                (figure, kind, *(table_rows.cell(used.get((name, figure, kind))) for name in names))
                for figure, kind in lines
            ),
            (
                "? unconfirmed. quoted: by the vendor; achieved: measured by somebody. `devices --sources` names source and date of each.",
            ),
        )

    return rows, show


@roofline.command()
@model_option
@click.option("--device", multiple=True, help="May be repeated.  [default: all]")
@batch_option
@context_option
@click.option(
    "--slack",
    type=float,
    default=0.25,
    show_default=True,
    help="What the proposals may add to the whole pass, as a share of the pass that only verifies.",
)
@devices_option
@output_options
def blocks(model, device, batch, context, slack, devices_file):
    """Blocks t and proposals t - 1 that are free in attention over a long prefix, under each
    assumption; then whole passes."""
    from .blocks import verdict
    from .devices import find, load
    from .models import find as find_model

    known, config = load(devices_file), find_model(model)
    chosen = [find(name, known) for name in device] or list(known.values())
    rows = table_rows.block_readings(chosen, config)
    whole = table_rows.whole_passes(chosen, config, batch, context, slack)

    def show():
        names = [d.name for d in chosen]
        by = {(r["reading"], r["device"]): r for r in rows}
        readings = dict.fromkeys(r["reading"] for r in rows)
        table(
            f"{title(model)}: blocks t (proposals t - 1) that reading a long prefix pays for; 16-row blocks, bf16",
            ("FLOP/s / bandwidth", *names),
            (
                (reading, *(table_rows.t_cell(by[reading, name]) for name in names))
                for reading in readings
            ),
            (
                "t = FLOP/s / bandwidth / FLOP per byte of one block's attention. - no such figure known. ? rests on an unconfirmed figure.",
                *verdict(known, config),
            ),
        )
        bases = {r["basis"]: [] for r in whole}
        for r in whole:
            bases[r["basis"]].append(number(r["proposals"], ".1f") + "?" * bool(r["unconfirmed"]))
        table(
            f"\nWhole pass at batch {batch}, context {context}: proposals that add at most {slack:.0%} to the pass that only verifies",
            ("17-row blocks, bf16", *names),
            ((basis, *cells) for basis, cells in bases.items()),
            (
                "Bases are explained by `step --help`; the figures behind them and their sources by `devices --sources`.",
            ),
        )

    return rows + whole, show


@roofline.command()
@model_option
@click.option(
    "--rows",
    "query_rows",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="Query rows of a request.",
)
@click.option("--device", default="MI300X", show_default=True)
@click.option("--basis", type=BASES, default="peak", show_default=True)
@devices_option
@output_options
def attention(model, query_rows, device, basis, devices_file):
    """CCGQA beside MHA, GQA and MLA with the same cache: intensity, and the blocks that are
    free."""
    from .blocks import kinds
    from .devices import BASIS_TEXT, ceilings, find, load
    from .models import find as find_model

    rates = ceilings(find(device, load(devices_file)), "bf16", basis)
    rows = table_rows.attention_kinds(kinds(find_model(model)), query_rows, rates)

    def show():
        cache = rows[0]["cache_bytes_per_token"]
        table(
            f"{title(model)}: one block's attention, {query_rows} rows, with {cache:.0f} bytes of bf16 cache a token, on {rates.device}",
            (
                "kind",
                "query heads",
                "flop/byte, 1 row",
                f"flop/byte, {query_rows} rows",
                "t free blocks",
                "of the ridge",
            ),
            (
                (
                    r["kind"],
                    r["query_heads"],
                    f"{r['intensity_1_row']:.2f}",
                    f"{r['intensity']:.1f}",
                    f"{r['t']:.2f}",
                    f"{r['intensity'] / rates.ridge_flops_per_byte:.0%}",
                )
                for r in rows
            ),
            (
                f"{BASIS_TEXT[basis]}: ridge {rates.ridge_flops_per_byte:.1f} flop/byte. t < 1: even the verify block is bound by products.",
            ),
        )

    return rows, show


@roofline.command()
@workload_options
@acceptance_options
@click.option(
    "--proposals",
    type=int,
    default=3,
    show_default=True,
    help="P, with the best branches for the acceptance.",
)
@click.option("--branches", callback=numbers, help="These branches instead, 1..K+1.")
@output_options
def step(mean, alpha, histogram, offsets, proposals, branches, **setting):
    """Time, bound and share of each op, autoregressive and block diffusion side by side."""
    work, rates, _ = prepare(**setting)
    law, launch_us = acceptance_law(work, mean, alpha, histogram, offsets), setting["launch_us"]
    steady = drafting_branches(law, proposals, branches)
    drafting = replace(work, branches=steady.branches, accepted=steady.tokens_per_pass - 1)
    rows = table_rows.steps(
        work.autoregressive(), drafting, steady.tokens_per_pass, rates, launch_us
    )

    def show():
        # the block pass has every op of the other
        ops = list(dict.fromkeys(r["op"] for r in reversed(rows)))[::-1]
        by = {(r["op"], r["mode"]): r for r in rows}
        table(
            f"{title(setting['model'])} on {rates.device}, batch {work.batch}, context {work.context_tokens}, "
            f"{drafting.rows} rows a request: V = {work.verify_rows}, P = {len(steady.branches)} x M = {work.mask_rows}, "
            f"branches {' '.join(map(str, steady.branches))}",
            (
                "op",
                "AR us",
                "share",
                "bound ",
                "block us",
                "share",
                "bound ",
                "GFLOP",
                "MB",
                "launches",
            ),
            (
                table_rows.step_line(op, by.get((op, "autoregressive")), by.get((op, "block")))
                for op in ops
            ),
            table_rows.step_notes(rows, work, rates, launch_us),
        )

    return rows, show


@roofline.command()
@workload_options
@acceptance_options
@click.option(
    "--max-proposals",
    type=int,
    default=8,
    show_default=True,
    help="P from 0 (autoregressive) up to this.",
)
@click.option("--simulate", type=int, help="Check the tokens a pass by this many simulated passes.")
@output_options
def plan(mean, alpha, histogram, offsets, max_proposals, simulate, **setting):
    """The best P and branches for a device, batch, context and acceptance, in the steady state."""
    from .plan import candidates
    from .plan import plan as options_of

    work, rates, _ = prepare(**setting)
    law = acceptance_law(work, mean, alpha, histogram, offsets)
    if not 0 <= max_proposals <= work.verify_rows:
        raise ValueError(
            f"--max-proposals: expected 0 .. {work.verify_rows} (one for each branch), got {max_proposals}"
        )
    options = options_of(
        work, candidates(law, range(max_proposals + 1)), rates, setting["launch_us"]
    )
    rows = table_rows.plans(options, law, simulate)

    def show():
        columns = (
            "P",
            "branches ",
            "tokens/pass",
            *(["simulated"] if simulate else []),
            "drafts/pass",
            "pass ms",
            "tokens/s",
            "vs AR",
            "",
        )
        table(
            f"{title(setting['model'])} on {rates.device}, batch {work.batch}, context {work.context_tokens}: P proposals, best branches",
            columns,
            (table_rows.plan_line(r, bool(simulate)) for r in rows),
            table_rows.rate_notes(rates, setting["launch_us"]),
        )

    return rows, show


@roofline.command()
@device_option
@click.option("--batches", callback=numbers, default="1,4,16,64", show_default=True)
@click.option("--contexts", callback=numbers, default="1024,8192,32768,131072", show_default=True)
@model_options
@acceptance_options
@click.option("--max-proposals", type=int, default=8, show_default=True)
@output_options
def sweep(mean, alpha, histogram, offsets, max_proposals, batches, contexts, **setting):
    """Every batch, context and P; the table shows the best P of each batch and context."""
    from .sweep import run

    work, rates, _ = prepare(batch=1, context=0, **setting)
    law = acceptance_law(work, mean, alpha, histogram, offsets)
    rows = run(work, law, rates, batches, contexts, max_proposals, setting["launch_us"])

    def show():
        best = {(r["batch"], r["context_tokens"]): r for r in rows if r["best"]}
        lengths = list(dict.fromkeys(r["context_tokens"] for r in rows))
        table(
            f"{title(setting['model'])} on {rates.device}: best P, tokens/s of the batch (speed-up over autoregressive)",
            ("batch", *(f"context {n}" for n in lengths)),
            (
                (b, *(table_rows.sweep_cell(best[b, n]) for n in lengths))
                for b in dict.fromkeys(r["batch"] for r in rows)
            ),
            (
                "* weights and cache exceed the device's memory.",
                *table_rows.rate_notes(rates, setting["launch_us"]),
            ),
        )

    return rows, show
