"""`blockdraft roofline step`, `plan` and `sweep`: the time of whole passes."""

from collections.abc import Sequence

import click

from . import pass_tables as tables
from . import plan as planning
from . import rows as table_rows
from . import sweep as sweeping
from .models import title
from .options import (
    acceptance_of,
    acceptance_options,
    device_option,
    drafting_branches,
    model_options,
    prepare,
    workload_options,
)
from .output import numbers, output_options

Numbers = Sequence[float] | None


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
def step(
    mean: float | None,
    alpha: float | None,
    histogram: Numbers,
    offsets: Numbers,
    proposals: int,
    branches: Numbers,
    **setting,
) -> tuple:
    """Time, bound and share of each op, autoregressive and block diffusion side by side."""
    work, rates, _ = prepare(**setting)
    launch_us = setting["launch_us"]
    acceptance = acceptance_of(work, mean, alpha, histogram, offsets)
    steady = drafting_branches(acceptance, proposals, branches)
    drafting = planning.drafting(work, steady)
    rows = table_rows.steps(
        work.autoregressive(), drafting, steady.tokens_per_pass, rates, launch_us
    )

    def show() -> None:
        tables.step(title(setting["model"]), rows, drafting, rates, launch_us)

    return rows, show


@click.command()
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
def plan(
    mean: float | None,
    alpha: float | None,
    histogram: Numbers,
    offsets: Numbers,
    max_proposals: int,
    simulate: int | None,
    **setting,
) -> tuple:
    """The best P and branches for a device, batch, context and acceptance, in the steady state."""
    work, rates, _ = prepare(**setting)
    launch_us = setting["launch_us"]
    acceptance = acceptance_of(work, mean, alpha, histogram, offsets)
    if not 0 <= max_proposals <= work.verify_rows:
        raise ValueError(
            f"--max-proposals: expected 0 .. {work.verify_rows} (one for each branch), "
            f"got {max_proposals}"
        )
    choices = planning.candidates(acceptance, range(max_proposals + 1))
    options = planning.plan(work, choices, rates, launch_us)
    rows = table_rows.plans(options, acceptance, simulate)

    def show() -> None:
        tables.plan(title(setting["model"]), rows, work, rates, launch_us)

    return rows, show


@click.command()
@device_option
@click.option("--batches", callback=numbers, default="1,4,16,64", show_default=True)
@click.option("--contexts", callback=numbers, default="1024,8192,32768,131072", show_default=True)
@model_options
@acceptance_options
@click.option("--max-proposals", type=int, default=8, show_default=True)
@output_options
def sweep(
    mean: float | None,
    alpha: float | None,
    histogram: Numbers,
    offsets: Numbers,
    max_proposals: int,
    batches: Sequence[float],
    contexts: Sequence[float],
    **setting,
) -> tuple:
    """Every batch, context and P; the table shows the best P of each batch and context."""
    work, rates, _ = prepare(batch=1, context=0, **setting)
    launch_us = setting["launch_us"]
    acceptance = acceptance_of(work, mean, alpha, histogram, offsets)
    rows = sweeping.run(work, acceptance, rates, batches, contexts, max_proposals, launch_us)

    def show() -> None:
        tables.sweep(title(setting["model"]), rows, rates, launch_us)

    return rows, show
