"""Options that several commands share, and what they make of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import click

from .acceptance import ATTRIBUTES, from_options
from .calibration import load as read_calibration
from .devices import Ceilings, ceilings, find, load, measured_cpu
from .figures import Device
from .models import find as find_model
from .models import title
from .output import numbers, pairs
from .plan import Accepting, Steady, best_branches, steady_state
from .workload import Workload

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
    click.option(
        "--calibration",
        "calibration_file",
        type=_FILE,
        help="File of `calibrate --out`: what was measured, beside the ideal.",
    ),
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


@dataclass(frozen=True)
class Setting:
    """What the shared options say.

    title        of the model
    work         the workload without branches
    rates        of the device, for ideal times; calibrated: the same with a calibration, or None
    accepting    how many drafts are accepted
    otherwise    the same law attributed the other way; None where there is no other way
    """

    title: str
    work: Workload
    device: Device
    rates: Ceilings
    calibrated: Ceilings | None
    launch_us: float
    accepting: Accepting
    otherwise: Accepting | None

    @property
    def trusted(self) -> Ceilings:
        """The calibrated rates where there are any."""
        return self.calibrated or self.rates


def prepare(
    model: str,
    drafts: int,
    mask_rows: int | None,
    dtype: str,
    kv_dtype: str | None,
    lm_head: str,
    routing: tuple[float, ...] | None,
    weight_dtype: str,
    head_dtype: str,
    prefill: int,
    tp: int,
    ep: int,
    link: tuple[float, ...] | None,
    correlation: float,
    touched: tuple[tuple[float, float], ...] | None,
    basis: str,
    launch_us: float,
    activations: str,
    calibration_file: str | None,
    devices_file: str | None,
    device: str,
    batch: int,
    context: int,
    mean: float | None,
    alpha: float | None,
    histogram: Sequence[float] | None,
    offsets: Sequence[float] | None,
    mixture: Sequence[tuple[float, float]] | None,
    attribute: str,
) -> Setting:
    if not 0 <= drafts <= 256:
        raise ValueError(f"--drafts: expected 0 .. 256, got {drafts}")
    work = Workload(
        model=find_model(model),
        batch=batch,
        context_tokens=context,
        verify_rows=drafts + 1,
        mask_rows=drafts + 1 if mask_rows is None else mask_rows,
        branches=(),
        dtype=dtype,
        kv_dtype=kv_dtype or dtype,
        lm_head=lm_head,
        routing=routing,
        accepted=0,
        weight_dtype=weight_dtype,
        head_dtype=head_dtype,
        prefill_rows=prefill,
        correlation=correlation,
        touched=touched,
        tp=tp,
        ep=ep,
    )
    calibration = read_calibration(calibration_file) if calibration_file else None
    if device.lower() == "cpu" and calibration and calibration.limits:
        found = measured_cpu(calibration.limits, calibration_file)
    else:
        found = find(device, load(devices_file))
    rates = linked(replace(ceilings(found, dtype, basis), activations=activations), tp, link)
    law = (drafts, work.mask_rows, mean, alpha, histogram, offsets, mixture)
    other = next(a for a in ATTRIBUTES if a != attribute)
    return Setting(
        title(model),
        work,
        found,
        rates,
        replace(rates, calibration=calibration) if calibration else None,
        launch_us,
        from_options(*law, attribute),
        from_options(*law, other) if offsets is None else None,
    )


def linked(rates: Ceilings, tp: int, link: Sequence[float] | None) -> Ceilings:
    """With the rate and the latency between GPUs. No device figure says them: they depend on the
    node."""
    if tp == 1 and link is None:
        return rates
    if link is None or len(link) != 2 or not (link[0] > 0 and link[1] >= 0):
        got = None if link is None else list(link)
        raise ValueError(
            "--link: expected GB/s and microseconds, such as 400,10, since --tp is more than 1, "
            f"got {got}"
        )
    return replace(rates, link_bytes_per_s=1e9 * link[0], link_s=1e-6 * link[1])


def drafting_branches(
    acceptance: Accepting, proposals: int, branches: Sequence[float] | None = None
) -> Steady:
    """The steady state of the branches given, or of the best `proposals` ones."""
    if branches is None:
        if proposals < 1:
            raise _without_proposals(acceptance, proposals)
        return best_branches(acceptance, proposals)[0]
    if not branches:
        raise _without_proposals(acceptance, "no branches")
    if any(c != int(c) for c in branches):
        raise ValueError(f"branches: expected integers, got {list(branches)}")
    if len(set(branches)) < len(branches):
        raise ValueError(
            "branches: expected different ones (a repeated branch is dead, yet its rows run), "
            f"got {list(branches)}"
        )
    return steady_state(acceptance, map(int, branches))


def _without_proposals(acceptance: Accepting, got: object) -> ValueError:
    most = len(acceptance.drafts) + 1
    return ValueError(
        f"proposals: expected 1 .. {most} (one for each branch; "
        f"without any, decoding is autoregressive), got {got}"
    )
