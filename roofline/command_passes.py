"""`blockdraft roofline step`, `plan` and `sweep`: the time of whole passes."""

from collections.abc import Sequence

import click

from . import pass_tables as tables
from . import study
from . import sweep as sweeping
from .options import (
    acceptance_options,
    device_option,
    model_options,
    workload_options,
)
from .output import numbers, output_options
from .plan import best
from .setting import prepare

max_proposals_option = click.option(
    "--max-proposals",
    type=int,
    help="P from 0 (autoregressive) up to this.  [default: 8, or K + 1 where that is less]",
)


@click.command()
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
def step(proposals: int, branches: Sequence[float] | None, **options) -> tuple:
    """Time, bound and share of each op, autoregressive and block diffusion side by side."""
    setting = prepare(**options)
    rows, drafting = study.step_rows(setting, proposals, branches)

    def show() -> None:
        tables.step(setting, rows, drafting)

    return rows, show


@click.command()
@workload_options
@acceptance_options
@max_proposals_option
@click.option("--simulate", type=int, help="Check the tokens a pass by this many simulated passes.")
@output_options
def plan(max_proposals: int | None, simulate: int | None, **options) -> tuple:
    """The best P and branches for a device, batch, context and acceptance, in the steady state."""
    setting = prepare(**options)
    most = study.most_proposals(setting, max_proposals)
    rows = study.plan_rows(setting, most, simulate)
    other = None
    if setting.otherwise is not None:
        options = study.options_of(setting, setting.otherwise, most, setting.trusted)
        other = best(options)

    def show() -> None:
        tables.plan(setting, rows, other)

    return rows, show


@click.command()
@device_option
@click.option("--batches", callback=numbers, default="1,4,16,64", show_default=True)
@click.option("--contexts", callback=numbers, default="1024,8192,32768,131072", show_default=True)
@model_options
@acceptance_options
@max_proposals_option
@output_options
def sweep(
    max_proposals: int | None, batches: Sequence[float], contexts: Sequence[float], **options
) -> tuple:
    """Every batch, context and P; the table shows the best P of each batch and context."""
    setting = prepare(batch=1, context=0, **options)
    rows = sweeping.run(
        setting.work,
        setting.accepting,
        setting.rates,
        batches,
        contexts,
        study.most_proposals(setting, max_proposals),
        setting.launch_us,
        setting.calibrated,
    )

    def show() -> None:
        tables.sweep(setting, rows)

    return rows, show
