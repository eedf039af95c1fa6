"""`blockdraft roofline ...`: devices, blocks, kinds of attention, step, plan, sweep. Heavy imports wait until a command runs."""

from dataclasses import replace

import click

from . import rows as table_rows
from .output import number, numbers, output_options, table

_FILE = click.Path(exists=True, dir_okay=False)
_BASES = click.Choice(["peak", "sustained", "achieved"])


def _options(*options):
    def apply(function):
        for option in reversed(options):
            function = option(function)
        return function
    return apply


_devices_file = click.option("--devices", "devices_file", type=_FILE, help="TOML that extends or overrides devices.toml.")
_model = click.option("--model", default="ZAYA1-8B", show_default=True, help="Name, or a folder with a ZAYA config.json.")
_device = click.option("--device", default="MI300X", show_default=True, help='Name in any case; "cpu" is this machine.')
_batch = click.option("--batch", type=int, default=16, show_default=True, help="Requests.")
_context = click.option("--context", type=int, default=8192, show_default=True, help="Cached tokens of each request.")
_work = _options(
    _model,
    click.option("--drafts", type=int, default=16, show_default=True, help="K: drafts under test; K + 1 verify rows."),
    click.option("--mask-rows", type=int, help="M: rows of a proposal.  [default: K + 1]"),
    click.option("--dtype", default="bf16", show_default=True, help="Of weights, activations and products."),
    click.option("--kv-dtype", help="Of the cache.  [default: --dtype]"),
    click.option("--lm-head", default="twice", show_default=True,
                 help="twice: verify rows, then the chosen drafts; once: all rows."),
    click.option("--routing", callback=numbers, help="Share of rows of each expert, or @FILE.  [default: uniform]"),
    click.option("--basis", type=_BASES, default="achieved", show_default=True,
                 help="peak: quoted FLOP/s and bandwidth; sustained: quoted FLOP/s, achieved bandwidth; achieved: both."),
    click.option("--launch-us", type=float, default=0.0, show_default=True, help="Microseconds added for each kernel launch."),
    _devices_file)
_acceptance = _options(
    click.option("--mean", type=float, help="Mean tokens a pass with full drafts.  [default: 4.6, Zyphra's lossless figure]"),
    click.option("--alpha", type=float, help="Probability of each draft, independent."),
    click.option("--histogram", callback=numbers, help="How often 0, 1, ..., K drafts of K were accepted, or @FILE."),
    click.option("--offsets", callback=numbers,
                 help="Factor on the acceptance by mask offset, M numbers, or @FILE; alone: the acceptance itself."))


@click.group()
def roofline():
    """How many draft blocks a device can afford, for a model, batch and context, and why."""


@roofline.command()
@click.option("--sources", is_flag=True, help="Every figure with its source, date and confidence.")
@_devices_file
@output_options
def devices(sources, devices_file):
    """Devices and their figures: quoted ones and achieved ones."""
    from .devices import load

    rows = table_rows.device_figures(load(devices_file).values())

    def show():
        if sources:
            texts = list(dict.fromkeys(f"{r['source']} ({r['date']})" for r in rows))
            table("Figures, dense", ("device", "figure ", "kind ", "value", "confidence ", "source", "note "), (
                (r["device"], r["figure"], r["kind"], f"{r['value']:g}", r["confidence"],
                 texts.index(f"{r['source']} ({r['date']})") + 1, r["note"]) for r in rows),
                ("Of several figures of a kind the first is used. Sources, with the date of publication or reading:",
                 *(f"{i:3} {text}" for i, text in enumerate(texts, 1))))
            return
        used = {(r["device"], r["figure"], r["kind"]): r for r in rows if r["used"]}
        names = list(dict.fromkeys(r["device"] for r in rows))
        lines = dict.fromkeys((r["figure"], r["kind"]) for r in sorted(rows, key=lambda r: r["kind"] == "achieved"))
        table("Dense figures, without sparsity", ("figure", "kind ", *names), (
            (figure, kind, *(table_rows.cell(used.get((name, figure, kind))) for name in names)) for figure, kind in lines),
            ("? unconfirmed. quoted: by the vendor; achieved: measured by somebody. `devices --sources` names source and date of each.",))
    return rows, show


@roofline.command()
@_model
@click.option("--device", multiple=True, help="May be repeated.  [default: all]")
@_batch
@_context
@click.option("--slack", type=float, default=0.25, show_default=True,
              help="What the proposals may add to the whole pass, as a share of the pass that only verifies.")
@_devices_file
@output_options
def blocks(model, device, batch, context, slack, devices_file):
    """Blocks t and proposals t - 1 that are free in attention over a long prefix, under each assumption; then whole passes."""
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
        table(f"{model}: blocks t (proposals t - 1) that reading a long prefix pays for; 16-row blocks, bf16", ("FLOP/s / bandwidth", *names),
              ((reading, *(table_rows.t_cell(by[reading, name]) for name in names)) for reading in readings),
              ("t = FLOP/s / bandwidth / FLOP per byte of one block's attention. - no such figure known. ? rests on an unconfirmed figure.",
               *verdict(known, config)))
        bases = {r["basis"]: [] for r in whole}
        for r in whole:
            bases[r["basis"]].append(number(r["proposals"], "d"))
        table(f"\nWhole pass at batch {batch}, context {context}: proposals that add at most {slack:.0%} to the pass that only verifies",
              ("17-row blocks, bf16", *names), ((basis, *cells) for basis, cells in bases.items()),
              ("Bases are explained by `step --help`; the figures behind them and their sources by `devices --sources`.",))
    return rows + whole, show


@roofline.command()
@_model
@click.option("--rows", "query_rows", type=click.IntRange(1, 4096), default=16, show_default=True, help="Query rows of a request.")
@click.option("--device", default="MI300X", show_default=True)
@click.option("--basis", type=_BASES, default="peak", show_default=True)
@_devices_file
@output_options
def attention(model, query_rows, device, basis, devices_file):
    """CCGQA beside MHA, GQA and MLA with the same cache: intensity, and the blocks that are free."""
    from .blocks import kinds
    from .devices import BASIS_TEXT, ceilings, find, load
    from .models import find as find_model

    rates = ceilings(find(device, load(devices_file)), "bf16", basis)
    rows = table_rows.attention_kinds(kinds(find_model(model)), query_rows, rates)

    def show():
        cache = rows[0]["cache_bytes_per_token"]
        table(f"{model}: one block's attention, {query_rows} rows, with {cache:.0f} bytes of bf16 cache a token, on {rates.device}",
              ("kind", "query heads", "flop/byte, 1 row", f"flop/byte, {query_rows} rows", "t free blocks", "of the ridge"),
              ((r["kind"], r["query_heads"], f"{r['intensity_1_row']:.2f}", f"{r['intensity']:.1f}", f"{r['t']:.2f}",
                f"{r['intensity'] / rates.ridge_flops_per_byte:.0%}") for r in rows),
              (f"{BASIS_TEXT[basis]}: ridge {rates.ridge_flops_per_byte:.1f} flop/byte. t < 1: even the verify block is bound by products.",))
    return rows, show


def _setting(model, drafts, mask_rows, dtype, kv_dtype, lm_head, routing, basis, launch_us, devices_file, device, batch, context):
    """The workload without branches, and the device's ceilings."""
    from .devices import ceilings, find, load
    from .models import find as find_model
    from .step import Workload

    if not 0 <= drafts <= 256:
        raise ValueError(f"--drafts: expected 0 .. 256, got {drafts}")
    work = Workload(find_model(model), batch, context, drafts + 1, drafts + 1 if mask_rows is None else mask_rows, (), dtype,
                    kv_dtype or dtype, lm_head, routing, 0)
    return work, ceilings(find(device, load(devices_file)), dtype, basis)


def _law(work, mean, alpha, histogram, offsets):
    from .acceptance import from_options

    return from_options(work.verify_rows - 1, work.mask_rows, mean, alpha, histogram, offsets)


@roofline.command()
@_device
@_batch
@_context
@_work
@_acceptance
@click.option("--proposals", type=int, default=3, show_default=True, help="P, with the best branches for the acceptance.")
@click.option("--branches", callback=numbers, help="These branches instead, 1..K+1.")
@output_options
def step(mean, alpha, histogram, offsets, proposals, branches, device, **setting):
    """Time, bound and share of each op, autoregressive and block diffusion side by side."""
    from .plan import best_branches, steady_state

    work, rates = _setting(device=device, **setting)
    law, launch_us = _law(work, mean, alpha, histogram, offsets), setting["launch_us"]
    if branches is not None and any(c != int(c) for c in branches):
        raise ValueError(f"--branches: expected integers, got {list(branches)}")
    steady = steady_state(law, map(int, branches)) if branches is not None else best_branches(law, proposals)[0]
    drafting = replace(work, branches=steady.branches, accepted=steady.tokens_per_pass - 1)
    rows = table_rows.steps(work.autoregressive(), drafting, steady.tokens_per_pass, rates, launch_us)

    def show():
        ops = list(dict.fromkeys(r["op"] for r in reversed(rows)))[::-1]  # the block pass has every op of the other
        by = {(r["op"], r["mode"]): r for r in rows}
        table(f"{setting['model']} on {rates.device}, batch {work.batch}, context {work.context_tokens}, "
              f"{drafting.rows} rows a request: V = {work.verify_rows}, P = {len(steady.branches)} x M = {work.mask_rows}, "
              f"branches {' '.join(map(str, steady.branches))}",
              ("op", "AR us", "share", "bound ", "block us", "share", "bound ", "GFLOP", "MB", "launches"),
              (table_rows.step_line(op, by.get((op, "autoregressive")), by.get((op, "block"))) for op in ops),
              table_rows.step_notes(rows, work, rates, launch_us))
    return rows, show


@roofline.command()
@_device
@_batch
@_context
@_work
@_acceptance
@click.option("--max-proposals", type=int, default=8, show_default=True, help="P from 0 (autoregressive) up to this.")
@click.option("--simulate", type=int, help="Check the tokens a pass by this many simulated passes.")
@output_options
def plan(mean, alpha, histogram, offsets, max_proposals, simulate, device, **setting):
    """The best P and branches for a device, batch, context and acceptance, in the steady state."""
    from .plan import candidates
    from .plan import plan as options_of

    work, rates = _setting(device=device, **setting)
    law = _law(work, mean, alpha, histogram, offsets)
    if not 0 <= max_proposals <= work.verify_rows:
        raise ValueError(f"--max-proposals: expected 0 .. {work.verify_rows} (one for each branch), got {max_proposals}")
    options = options_of(work, candidates(law, range(max_proposals + 1)), rates, setting["launch_us"])
    rows = table_rows.plans(options, law, simulate)

    def show():
        columns = ("P", "branches ", "tokens/pass", *(["simulated"] if simulate else []), "drafts/pass", "pass ms", "tokens/s",
                   "vs AR", "")
        table(f"{setting['model']} on {rates.device}, batch {work.batch}, context {work.context_tokens}: P proposals, best branches",
              columns, (table_rows.plan_line(r, bool(simulate)) for r in rows), table_rows.rate_notes(rates, setting["launch_us"]))
    return rows, show


@roofline.command()
@_device
@click.option("--batches", callback=numbers, default="1,4,16,64", show_default=True)
@click.option("--contexts", callback=numbers, default="1024,8192,32768,131072", show_default=True)
@_work
@_acceptance
@click.option("--max-proposals", type=int, default=8, show_default=True)
@output_options
def sweep(mean, alpha, histogram, offsets, max_proposals, batches, contexts, device, **setting):
    """Every batch, context and P; the table shows the best P of each batch and context."""
    from .sweep import run

    work, rates = _setting(device=device, batch=1, context=0, **setting)
    law = _law(work, mean, alpha, histogram, offsets)
    rows = run(work, law, rates, batches, contexts, max_proposals, setting["launch_us"])

    def show():
        best = {(r["batch"], r["context_tokens"]): r for r in rows if r["best"]}
        lengths = list(dict.fromkeys(r["context_tokens"] for r in rows))
        table(f"{setting['model']} on {rates.device}: best P, tokens/s of the batch (speed-up over autoregressive)",
              ("batch", *(f"context {n}" for n in lengths)),
              ((b, *(table_rows.sweep_cell(best[b, n]) for n in lengths)) for b in dict.fromkeys(r["batch"] for r in rows)),
              ("* weights and cache exceed the device's memory.", *table_rows.rate_notes(rates, setting["launch_us"])))
    return rows, show
