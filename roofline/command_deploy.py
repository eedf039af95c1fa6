"""`blockdraft roofline search`, `memory` and `deploy`: the layout, the batch and the device of a
deployment."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from . import deploy as deploying
from . import deploy_tables as tables
from . import memory as memories
from . import plan as planning
from . import plot_pareto
from . import search as searching
from .command_passes import max_proposals_option, most_proposals
from .devices import ceilings, find, load
from .options import (
    Setting,
    acceptance_options,
    context_option,
    device_option,
    model_options,
    prepare,
    workload_options,
)
from .output import numbers, output_options
from .step import expected_experts, pass_seconds


@click.command()
@workload_options
@acceptance_options
@click.option("--max-drafts", type=int, default=16, show_default=True, help="The greatest K.")
@click.option("--max-mask-rows", type=int, default=24, show_default=True, help="The greatest M.")
@click.option("--max-proposals", type=int, default=8, show_default=True, help="The greatest P.")
@click.option("--keep", type=click.IntRange(1, 100), default=8, show_default=True)
@output_options
def search(max_drafts: int, max_mask_rows: int, max_proposals: int, keep: int, **options) -> tuple:
    """The best K, M, P and branches together. --drafts and --mask-rows are those that the
    acceptance was measured with."""
    setting = prepare(**options)
    limits = searching.Limits(max_drafts, max_mask_rows, max_proposals)
    found = searching.search(
        setting.work, setting.accepting, setting.trusted, limits, setting.launch_us, keep
    )
    base = next(f for f in found if not f.steady.branches)
    rows = [_found(setting, f, base) for f in found]

    def show() -> None:
        tables.search(setting, rows, limits)

    return rows, show


def _found(setting: Setting, found: searching.Found, base: searching.Found) -> dict:
    work = planning.drafting(
        replace(setting.work, verify_rows=found.drafts + 1, mask_rows=found.mask_rows),
        found.steady,
    )
    ideal_s = pass_seconds(work, setting.rates, setting.launch_us)
    row = {
        "drafts": found.drafts,
        "mask_rows": found.mask_rows,
        "proposals": found.proposals,
        "branches": list(found.steady.branches),
        "rows": work.rows,
        "tokens_per_pass": found.steady.tokens_per_pass,
        "touched_experts": expected_experts(work),
        "ideal_pass_ms": 1e3 * ideal_s,
        "pass_ms": 1e3 * found.pass_seconds,
        "calibrated": setting.calibrated is not None,
        "tokens_per_s": found.tokens_per_s,
        "speed_up": found.tokens_per_s / base.tokens_per_s,
        "exact": found.exact,
        "capped": " ".join(found.capped),
        "fits": memories.fits(work, setting.rates),
    }
    return row


@click.command()
@device_option
@click.option("--contexts", callback=numbers, default="1024,8192,32768,131072", show_default=True)
@model_options
@acceptance_options
@click.option("--proposals", type=int, default=3, show_default=True, help="P; 0: autoregressive.")
@click.option(
    "--reserve",
    type=float,
    default=memories.RESERVE,
    show_default=True,
    help="Share of the memory that is left to everything else.",
)
@output_options
def memory(contexts: Sequence[float], proposals: int, reserve: float, **options) -> tuple:
    """What a deployment keeps in memory, by context, and how many requests fit."""
    setting = prepare(batch=1, context=0, **options)
    steady, _ = planning.candidates(setting.accepting, [proposals])[0]
    rows = []
    for context in contexts:
        if context != int(context):
            raise ValueError(f"contexts: expected integers, got {context!r}")
        work = planning.drafting(replace(setting.work, context_tokens=int(context)), steady)
        rows.append(_memory(setting, work, reserve))

    def show() -> None:
        tables.memory(setting, rows, reserve)

    return rows, show


def _memory(setting: Setting, work, reserve: float) -> dict:
    found = memories.of(work)
    itemsize = memories.ITEMSIZE_BYTES[work.kv_dtype]
    return {
        "device": setting.rates.device,
        "context_tokens": work.context_tokens,
        "proposals": len(work.branches),
        "weights_gb": found.weights / 1e9,
        "cache_mb": found.cache / 1e6,
        "cache_mb_without_windows": memories.kv_bytes_unwindowed(
            work.model, work.context_tokens + work.verify_rows, itemsize
        )
        / 1e6,
        "states_mb": found.states / 1e6,
        "activations_mb": found.activations / 1e6,
        "logits_mb": found.logits / 1e6,
        "room_gb": memories.room(setting.rates.memory_gb, reserve) / 1e9,
        "max_batch": memories.max_batch(work, setting.rates, reserve),
    }


@click.command()
@click.option(
    "--device", "names", multiple=True, help="May be repeated.  [default: every known device]"
)
@context_option
@model_options
@acceptance_options
@max_proposals_option
@click.option("--limit-ms", type=float, help="The most milliseconds a token of a request may take.")
@click.option("--price", multiple=True, help="DEVICE=DOLLARS_AN_HOUR; may be repeated.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the plot of users' against GPUs' tokens per second.",
)
@output_options
def deploy(
    names: tuple[str, ...],
    max_proposals: int | None,
    limit_ms: float | None,
    price: tuple[str, ...],
    out: Path | None,
    **options,
) -> tuple:
    """Devices side by side: the batch that fits and keeps the time per token, tokens per second of
    a user and of the GPU, and what a million tokens cost."""
    known = load(options["devices_file"])
    chosen = [find(name, known) for name in names] or list(known.values())
    setting = prepare(batch=1, device=chosen[0].name, **options)
    choices = planning.candidates(
        setting.accepting, range(most_proposals(setting, max_proposals) + 1)
    )
    dollars = deploying.prices(price, [d.name for d in chosen])
    found = {}
    lacking = {}
    for device in chosen:
        try:
            rates = replace(
                ceilings(device, setting.work.dtype, options["basis"]),
                activations=options["activations"],
            )
        except ValueError as error:
            lacking[device.name] = str(error)
            continue
        if setting.calibrated:
            rates = replace(rates, calibration=setting.calibrated.calibration)
        found[device.name] = deploying.servings(
            setting.work, choices, rates, setting.launch_us, limit_ms, dollars.get(device.name)
        )
    if not found:
        raise ValueError("; ".join(lacking.values()))
    rows = [s.to_row() for servings in found.values() for s in servings]
    paths = plot_pareto.draw(setting, found, limit_ms, out) if out else []

    def show() -> None:
        tables.deploy(setting, found, lacking, limit_ms)
        for path in paths:
            click.echo(path)

    return rows, show
