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
from . import plot_pareto, study
from . import search as searching
from .command_passes import max_proposals_option
from .devices import ceilings, find, load
from .options import (
    acceptance_options,
    context_option,
    device_option,
    model_options,
    workload_options,
)
from .output import numbers, output_options
from .setting import linked, prepare


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
    rows = study.search_rows(setting, limits, keep)

    def show() -> None:
        tables.search(setting, rows, limits)

    return rows, show


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
    rows = study.memory_rows(setting, contexts, proposals, reserve)

    def show() -> None:
        tables.memory(setting, rows, reserve)

    return rows, show


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
        setting.accepting, range(study.most_proposals(setting, max_proposals) + 1)
    )
    dollars = deploying.prices(price, [d.name for d in chosen])
    found = {}
    lacking = {}
    for device in chosen:
        try:
            rates = ceilings(device, setting.work.dtype, options["basis"])
            rates = replace(rates, activations=options["activations"])
            rates = linked(rates, options["tp"], options["link"])
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
