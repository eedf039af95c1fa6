"""The command `blockdraft`. Heavy imports wait until a command runs."""

from pathlib import Path

import click

from .bench.command import bench, measure_command
from .roofline.command import roofline
from .roofline.command_isa import isa
from .roofline.command_tools import check, plot


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="blockdraft")
def main() -> None:
    """Block-diffusion decoding kernels: demo, environment, benchmarks and roofline."""


@main.command()
@click.option(
    "--tokens",
    type=click.IntRange(1, 4096),
    default=400,
    show_default=True,
    help="Bytes to complete.",
)
@click.option(
    "--prompts",
    type=click.IntRange(1, 16),
    default=4,
    show_default=True,
    help="Places in the file to complete from.",
)
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="CPU threads; 0: torch's choice. Products of the tiny model are too small to share.",
)
@click.option(
    "--mix-sweep",
    is_flag=True,
    help="Instead: speed and quality by how much of the drafter is mixed into the target.",
)
@click.option(
    "--formats",
    is_flag=True,
    help="Instead: perplexity and tokens of a forward with fp8 and MXFP4.",
)
@click.option(
    "--plot",
    "plots",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write pictures there, too.",
)
def demo(
    tokens: int, prompts: int, threads: int, mix_sweep: bool, formats: bool, plots: Path | None
) -> None:
    """Complete a held-out file with the shipped byte-level ZAYA: autoregressively and by block
    diffusion."""
    from .demo.run import compare_formats, decode, sweep_mix

    if formats:
        if mix_sweep or plots:
            raise click.UsageError("--formats: expected alone, got --mix-sweep or --plot, too")
        compare_formats(tokens, prompts, threads)
    else:
        (sweep_mix if mix_sweep else decode)(tokens, prompts, threads, plots)


@main.command()
def info() -> None:
    """Versions, devices, and each op's backends with the reason why one cannot run."""
    from .info import show

    show()


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--format",
    type=click.Choice(["fp8", "mxfp4"]),
    default="mxfp4",
    show_default=True,
    help="Of the experts; all else is written in bf16.",
)
def quantize(folder: Path, out: Path, format: str) -> None:
    """Write the ZAYA checkpoint in FOLDER to OUT with its experts in lower precision."""
    from .models.quantize import quantize as write

    try:
        write(folder, out, format)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


main.add_command(bench)
main.add_command(roofline)
for command in (plot, isa, measure_command, check):
    roofline.add_command(command)
