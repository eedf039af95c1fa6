"""`blockdraft roofline step`, `plan` and `sweep`: the time of whole passes."""

from collections.abc import Sequence

import click

from . import pass_tables as tables
from . import plan as planning
from . import rows as table_rows
from . import sweep as sweeping
from .devices import Ceilings
from .options import (
    Setting,
    acceptance_options,
    device_option,
    drafting_branches,
    model_options,
    prepare,
    workload_options,
)
from .output import numbers, output_options

# P of `plan` and `sweep` where there are so many branches
MAX_PROPOSALS = 8

max_proposals_option = click.option(
    "--max-proposals",
    type=int,
    help="P from 0 (autoregressive) up to this.  [default: 8, or K + 1 where that is less]",
)


def most_proposals(setting: Setting, asked: int | None) -> int:
    """The greatest P."""
    branches = setting.work.verify_rows
    if asked is None:
        return min(MAX_PROPOSALS, branches)
    if not 0 <= asked <= branches:
        raise ValueError(
            f"--max-proposals: expected 0 .. {branches} (one for each branch), got {asked}"
        )
    return asked


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
    steady = drafting_branches(setting.accepting, proposals, branches)
    drafting = planning.drafting(setting.work, steady)
    rows = table_rows.steps(
        setting.work.autoregressive(),
        drafting,
        steady.tokens_per_pass,
        setting.rates,
        setting.launch_us,
        setting.calibrated,
    )

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
    most = most_proposals(setting, max_proposals)
    found = _options(setting, setting.accepting, most, setting.rates)
    rows = table_rows.plans(found, setting.accepting, simulate, setting.work, setting.rates)
    if setting.calibrated:
        measured = _options(setting, setting.accepting, most, setting.calibrated)
        table_rows.beside(rows, measured)
    other = None
    if setting.otherwise is not None:
        other = planning.best(_options(setting, setting.otherwise, most, setting.trusted))

    def show() -> None:
        tables.plan(setting, rows, other)

    return rows, show


def _options(
    setting: Setting, accepting: planning.Accepting, most: int, rates: Ceilings
) -> list[planning.Option]:
    choices = planning.candidates(accepting, range(most + 1))
    return planning.plan(setting.work, choices, rates, setting.launch_us)


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
        most_proposals(setting, max_proposals),
        setting.launch_us,
        setting.calibrated,
    )

    def show() -> None:
        tables.sweep(setting, rows)

    return rows, show
