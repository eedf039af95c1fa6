"""Options that several commands share, and what they make of them."""

import click

from .output import numbers

_FILE = click.Path(exists=True, dir_okay=False)
BASES = click.Choice(["peak", "sustained", "achieved"])


def combine(*options):
    def apply(function):
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
        "--basis",
        type=BASES,
        default="achieved",
        show_default=True,
        help="peak: quoted FLOP/s and bandwidth; sustained: quoted FLOP/s, achieved bandwidth; achieved: both.",
    ),
    click.option(
        "--launch-us",
        type=float,
        default=0.0,
        show_default=True,
        help="Microseconds added for each kernel launch.",
    ),
    devices_option,
)
acceptance_options = combine(
    click.option(
        "--mean",
        type=float,
        help="Mean tokens a pass with full drafts.  [default: 4.6, Zyphra's lossless figure]",
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
        help="Factor on the acceptance by mask offset, M numbers, or @FILE; alone: the acceptance itself.",
    ),
)
workload_options = combine(device_option, batch_option, context_option, model_options)


def prepare(
    model,
    drafts,
    mask_rows,
    dtype,
    kv_dtype,
    lm_head,
    routing,
    basis,
    launch_us,
    devices_file,
    device,
    batch,
    context,
):
    """The workload without branches, the device's ceilings, and the device."""
    from .devices import ceilings, find, load
    from .models import find as find_model
    from .step import Workload

    if not 0 <= drafts <= 256:
        raise ValueError(f"--drafts: expected 0 .. 256, got {drafts}")
    work = Workload(
        find_model(model),
        batch,
        context,
        drafts + 1,
        drafts + 1 if mask_rows is None else mask_rows,
        (),
        dtype,
        kv_dtype or dtype,
        lm_head,
        routing,
        0,
    )
    found = find(device, load(devices_file))
    return work, ceilings(found, dtype, basis), found


def acceptance_law(work, mean, alpha, histogram, offsets):
    from .acceptance import from_options

    return from_options(work.verify_rows - 1, work.mask_rows, mean, alpha, histogram, offsets)


def drafting_branches(law, proposals, branches=None):
    """The steady state of the branches given, or of the best `proposals` ones."""
    from .plan import best_branches, steady_state

    if branches is None and proposals < 1 or branches == ():
        raise ValueError(
            f"proposals: expected 1 .. {len(law.drafts) + 1} (one for each branch; without any, decoding is autoregressive), "
            f"got {proposals if branches is None else 'no branches'}"
        )
    if branches is None:
        return best_branches(law, proposals)[0]
    if any(c != int(c) for c in branches):
        raise ValueError(f"branches: expected integers, got {list(branches)}")
    return steady_state(law, map(int, branches))
