"""Options that several commands share; setting.py says what becomes of them."""

from collections.abc import Callable

import click

from .acceptance import ATTRIBUTES
from .output import numbers, pairs

_FILE = click.Path(exists=True, dir_okay=False)
BASES = click.Choice(["peak", "sustained", "achieved"])


def combine(*options: Callable) -> Callable:
    """One decorator of several, which --help lists in this order."""

    def apply(function: Callable) -> Callable:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


devices_option = click.option(
    "--devices", "devices_file", type=_FILE, help="TOML that extends or overrides devices.toml."
)
calibration_option = click.option(
    "--calibration",
    "calibration_file",
    type=_FILE,
    help="File of `calibrate --out`: what was measured, beside the ideal.",
)
model_option = click.option(
    "--model",
    default="ZAYA1-8B",
    show_default=True,
    help="Name, or a folder with a ZAYA config.json.",
)
device_option = click.option(
    "--device", default="MI300X", show_default=True, help='Name in any case; "cpu" is this machine.'
)
batch_option = click.option("--batch", type=int, default=16, show_default=True, help="Requests.")
context_option = click.option(
    "--context", type=int, default=8192, show_default=True, help="Cached tokens of each request."
)
model_options = combine(
    model_option,
    click.option(
        "--drafts",
        type=int,
        default=16,
        show_default=True,
        help="K: drafts under test; K + 1 verify rows.",
    ),
    click.option("--mask-rows", type=int, help="M: rows of a proposal.  [default: K + 1]"),
    click.option(
        "--dtype", default="bf16", show_default=True, help="Of weights, activations and products."
    ),
    click.option("--kv-dtype", help="Of the cache.  [default: --dtype]"),
    click.option(
        "--weight-dtype",
        default="",
        help="Of the weights of projections and experts, such as fp8 or mxfp4; products stay in "
        "--dtype.  [default: --dtype]",
    ),
    click.option("--head-dtype", default="", help="Of the LM head's weights.  [default: --dtype]"),
    click.option(
        "--prefill",
        type=int,
        default=0,
        show_default=True,
        help="Rows of a prompt in each pass, half way through the context.",
    ),
    click.option(
        "--tp",
        type=int,
        default=1,
        show_default=True,
        help="GPUs that share every layer; rates are those of all together.",
    ),
    click.option(
        "--ep", type=int, default=1, show_default=True, help="As --tp: each has whole experts."
    ),
    click.option(
        "--link",
        callback=numbers,
        help="GB/s of a GPU to the others in one direction, and microseconds of a sum over the "
        "GPUs; with --tp.",
    ),
    click.option(
        "--lm-head",
        default="twice",
        show_default=True,
        help="twice: verify rows, then the chosen drafts; once: all rows.",
    ),
    click.option(
        "--routing",
        callback=numbers,
        help="Share of rows of each expert, or @FILE.  [default: uniform]",
    ),
    click.option(
        "--correlation",
        type=float,
        default=0.0,
        show_default=True,
        help="Of the experts of a request's rows: 0 independent, 1 all the same.",
    ),
    click.option(
        "--touched",
        callback=pairs,
        help="Experts of a layer that were measured to be touched: ROWS:EXPERTS,...",
    ),
    click.option(
        "--basis",
        type=BASES,
        default="achieved",
        show_default=True,
        help="peak: quoted FLOP/s and bandwidth; sustained: quoted FLOP/s, achieved bandwidth; "
        "achieved: both.",
    ),
    click.option(
        "--launch-us",
        type=float,
        default=0.0,
        show_default=True,
        help="Microseconds added for each kernel launch.",
    ),
    click.option(
        "--activations",
        type=click.Choice(["memory", "cache"]),
        default="memory",
        show_default=True,
        help="Where an op finds what the one before wrote: in main memory, or in the last-level "
        "cache if it fits.",
    ),
    calibration_option,
    devices_option,
)
acceptance_options = combine(
    click.option(
        "--mean",
        type=float,
        help="Mean tokens a pass with full drafts.  [default: the chance of each draft that gives "
        "4.6 with 16, Zyphra's lossless figure]",
    ),
    click.option("--alpha", type=float, help="Probability of each draft, independent."),
    click.option(
        "--histogram",
        callback=numbers,
        help="How often 0, 1, ..., K drafts of K were accepted, or @FILE.",
    ),
    click.option(
        "--offsets",
        callback=numbers,
        help="Factor on the acceptance by mask offset, M numbers, or @FILE; "
        "alone: the acceptance itself.",
    ),
    click.option(
        "--mixture",
        callback=pairs,
        help="Kinds of requests, each with the probability of its drafts: SHARE:ALPHA,...",
    ),
    click.option(
        "--attribute",
        type=click.Choice(ATTRIBUTES),
        default="position",
        show_default=True,
        help="What decides whether a draft is accepted: its place among the drafts, or the mask "
        "row that it came from.",
    ),
)
workload_options = combine(device_option, batch_option, context_option, model_options)


def defaults() -> dict[str, object]:
    """What `prepare` takes, by name, where a command is given no option."""

    @click.command()
    @workload_options
    @acceptance_options
    def command(**options: object) -> None:
        pass

    return command.make_context("defaults", []).params
