"""`blockdraft roofline ...`: the group, and its commands about devices. Heavy imports wait until a
command runs."""

from dataclasses import replace

import click

from . import device_tables as tables
from . import rows as table_rows
from .blocks import kinds, verdict
from .command_calibrate import calibrate, explain
from .command_deploy import deploy, memory, search
from .command_passes import plan, step, sweep
from .devices import ceilings, find, load
from .models import find as find_model
from .models import title
from .options import (
    BASES,
    batch_option,
    calibration_option,
    context_option,
    devices_option,
    model_option,
)
from .output import output_options
from .setting import calibration


@click.group()
def roofline() -> None:
    """How many draft blocks a device can afford, for a model, batch and context, and why."""


@roofline.command()
@click.option("--sources", is_flag=True, help="Every figure with its source, date and confidence.")
@click.option("--cpu", is_flag=True, help="This machine as well, probed for some seconds.")
@devices_option
@output_options
def devices(sources: bool, cpu: bool, devices_file: str | None) -> tuple:
    """Devices and their figures: quoted ones and achieved ones."""
    known = load(devices_file)
    chosen = list(known.values())
    if cpu:
        chosen.append(find("cpu", known))
    rows = table_rows.device_figures(chosen)

    def show() -> None:
        if sources:
            tables.sources(rows)
        else:
            tables.figures(rows)

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
@calibration_option
@devices_option
@output_options
def blocks(
    model: str,
    device: tuple[str, ...],
    batch: int,
    context: int,
    slack: float,
    calibration_file: str | None,
    devices_file: str | None,
) -> tuple:
    """Blocks t and proposals t - 1 that are free in attention over a long prefix, under each
    assumption; then whole passes."""
    known = load(devices_file)
    config = find_model(model)
    chosen = [find(name, known) for name in device] or list(known.values())
    found = calibration(calibration_file)
    readings = table_rows.block_readings(chosen, config, found)
    whole = table_rows.whole_passes(chosen, config, batch, context, slack, found)

    def show() -> None:
        names = [d.name for d in chosen]
        tables.readings(title(model), readings, names, verdict(known, config))
        tables.whole_passes(whole, names, found)

    return readings + whole, show


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
@calibration_option
@devices_option
@output_options
def attention(
    model: str,
    query_rows: int,
    device: str,
    basis: str,
    calibration_file: str | None,
    devices_file: str | None,
) -> tuple:
    """CCGQA beside MHA, GQA and MLA with the same cache: intensity, and the blocks that are
    free."""
    rates = ceilings(find(device, load(devices_file)), "bf16", basis)
    rates = replace(rates, calibration=calibration(calibration_file))
    rows = table_rows.attention_kinds(kinds(find_model(model)), query_rows, rates)

    def show() -> None:
        tables.attention(title(model), rows, rates)

    return rows, show


@roofline.command()
@model_option
@click.option(
    "--rows",
    "row_counts",
    type=click.IntRange(1, 4096),
    multiple=True,
    default=(1, 16, 64, 272),
    show_default=True,
    help="Rows of a pass; may be repeated.",
)
@click.option("--device", multiple=True, default=("MI300X", "MI355X"), show_default=True)
@click.option("--basis", type=BASES, default="sustained", show_default=True)
@calibration_option
@devices_option
@output_options
def budget(
    model: str,
    row_counts: tuple[int, ...],
    device: tuple[str, ...],
    basis: str,
    calibration_file: str | None,
    devices_file: str | None,
) -> tuple:
    """Workgroups and bytes in flight of the kernels that read weights, and the share of the
    bandwidth that follows."""
    known, config = load(devices_file), find_model(model)
    found = calibration(calibration_file)
    rows = [
        row
        for name in device
        for row in table_rows.budgets(config, row_counts, find(name, known), basis, found)
    ]

    def show() -> None:
        tables.budgets(title(model), rows, found)

    return rows, show


for command in (step, plan, sweep, search, memory, deploy, calibrate, explain):
    roofline.add_command(command)
