"""The command `blockdraft`. Heavy imports wait until a command runs."""

import click

from .bench.command import bench, measure_command
from .roofline.command import roofline
from .roofline.command_tools import check, isa, plot


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
def demo(tokens: int, prompts: int, threads: int) -> None:
    """Complete a held-out file with the shipped byte-level ZAYA: autoregressively and by block
    diffusion."""
    from .demo import run

    run(tokens, prompts, threads)


@main.command()
def info() -> None:
    """Versions, devices, and each op's backends with the reason why one cannot run."""
    from .info import show

    show()


main.add_command(bench)
main.add_command(roofline)
for command in (plot, isa, measure_command, check):
    roofline.add_command(command)
