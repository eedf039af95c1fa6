"""How many draft blocks are free: in decode attention over a long prefix, and in whole passes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import floor

from ..models.config import ZayaConfig
from .calibration import Calibration
from .devices import Ceilings, ceilings
from .figures import ITEMSIZE_BYTES, Device
from .step import pass_seconds
from .workload import Workload, spread

# Zyphra: "~3 block sized proposals on MI300X in bf16, ~5 on MI355X"
PUBLISHED = {"MI300X": 3, "MI355X": 5}


@dataclass(frozen=True)
class Reading:
    """One way of reading "blocks that a device affords".

    basis         of the rates, a key of devices.BASES
    block_rows    rows of a draft block
    dtype         of the products
    kv_dtype      of the cached K and V
    """

    name: str
    basis: str
    block_rows: int = 16
    dtype: str = "bf16"
    kv_dtype: str = "bf16"


# Each is named by its FLOP/s / bandwidth
READINGS = (
    Reading("peak / peak", "peak"),
    Reading("peak / peak, 17 rows", "peak", 17),
    Reading("peak / sustained", "sustained"),
    Reading("peak / sustained, 17 rows", "sustained", 17),
    Reading("achieved / achieved", "achieved"),
    Reading("achieved / achieved, 17 rows", "achieved", 17),
    Reading("peak / peak, fp8 KV, bf16 products", "peak", 16, "bf16", "fp8"),
    Reading("peak / peak, fp8 KV, fp8 products", "peak", 16, "fp8", "fp8"),
)


@dataclass(frozen=True)
class Blocks:
    """The draft blocks of a device under one reading.

    t              blocks in a pass (the verify block and the proposals) up to which products take
                   no longer than reading the prefix; None: no such figure
    calibrated_t   the same by a calibration's attention; None: without one
    unavailable    why there is none
    unconfirmed    the figures behind it that nobody confirmed
    """

    device: str
    reading: Reading
    t: float | None
    calibrated_t: float | None = None
    unavailable: str = ""
    unconfirmed: tuple[str, ...] = ()

    @property
    def proposals(self) -> float | None:
        return None if self.t is None else self.t - 1


def intensity_flops_per_byte(group: int, query_rows: float, kv_itemsize: float = 2.0) -> float:
    """Of attention over a long prefix: each cached key and value (4 flops for a row and query head)
    is read once for `query_rows` rows of the `group` query heads that share a KV head."""
    return 2 * group * query_rows / kv_itemsize


def group_size(model: ZayaConfig) -> int:
    return model.num_attention_heads // model.num_key_value_heads


def blocks(
    device: Device, model: ZayaConfig, reading: Reading, calibration: Calibration | None = None
) -> Blocks:
    try:
        rates = replace(ceilings(device, reading.dtype, reading.basis), calibration=calibration)
    except ValueError as error:
        return Blocks(device.name, reading, None, unavailable=str(error))
    one_block = intensity_flops_per_byte(
        group_size(model), reading.block_rows, ITEMSIZE_BYTES[reading.kv_dtype]
    )
    t = rates.ridge_flops_per_byte / one_block
    ridge = rates.calibrated_ridge("block_attention")
    return Blocks(device.name, reading, t, ridge and ridge / one_block, unconfirmed=rates.doubtful)


def published_share(
    devices: dict[str, Device], model: ZayaConfig, block_rows: int = 16
) -> tuple[float, float]:
    """Shares of the peak bandwidth, (lowest, highest], with which peak FLOP/s and whole proposals
    give Zyphra's numbers."""
    low = 0.0
    high = 1.0
    for name, count in PUBLISHED.items():
        peak = ceilings(devices[name], "bf16", "peak")
        t = peak.ridge_flops_per_byte / intensity_flops_per_byte(group_size(model), block_rows)
        low = max(low, t / (count + 2))
        high = min(high, t / (count + 1))
    return low, high


def verdict(devices: dict[str, Device], model: ZayaConfig) -> list[str]:
    """Which reading yields the published numbers, in sentences. There are none for a model whose
    groups are not ZAYA1-8B's 4 query heads."""
    if group_size(model) != 4:
        return []
    want = tuple(PUBLISHED.values())
    found = {reading.name: _whole_proposals(devices, model, reading) for reading in READINGS}
    fitting = [name for name, counts in found.items() if counts == want]
    rounded = {
        reading.name: _whole_proposals(devices, model, reading, round) for reading in READINGS
    }
    nearest = [_with_figures(devices, model, name) for name in rounded if rounded[name] == want]
    low, high = published_share(devices, model)
    peak = found["peak / peak"]
    return [
        f"Published: about {want[0]} proposals on MI300X and {want[1]} on MI355X (Zyphra, bf16). "
        "Whole proposals, rounded down:",
        f"  yes: {'; '.join(fitting) or 'no reading in the table'}",
        f"  no:  peak / peak, which gives {peak[0]} and {peak[1]}",
        "Rounded to the nearest whole:",
        f"  yes: {'; '.join(nearest) or 'no reading in the table'}",
        "  With peak FLOP/s and 16-row blocks, exactly shares of the peak bandwidth "
        f"above {low:.3f} and up to {high:.3f} give them.",
    ]


def _whole_proposals(
    devices: dict[str, Device],
    model: ZayaConfig,
    reading: Reading,
    whole: Callable[[float], int] = floor,
) -> tuple[int | None, ...]:
    """Of the devices that numbers were published of."""
    found = [blocks(devices[name], model, reading).proposals for name in PUBLISHED]
    return tuple(None if proposals is None else whole(proposals) for proposals in found)


def _with_figures(devices: dict[str, Device], model: ZayaConfig, name: str) -> str:
    """A reading with its proposals on the devices that numbers were published of."""
    reading = next(reading for reading in READINGS if reading.name == name)
    found = [blocks(devices[device], model, reading).proposals for device in PUBLISHED]
    return f"{name} ({', '.join(f'{proposals:.2f}' for proposals in found)})"


def affordable(w: Workload, rates: Ceilings, slack: float = 0.25, launch_us: float = 0.0) -> float:
    """The P, at most V, whose whole pass takes 1 + slack times the pass that only verifies. The
    branches are spread evenly; between whole P the time is interpolated linearly."""
    if not 0 <= slack <= 100:
        raise ValueError(
            f"slack: expected 0 .. 100 (a share of the pass that only verifies), got {slack!r}"
        )
    last = pass_seconds(replace(w, branches=()), rates, launch_us)
    limit = (1 + slack) * last
    for count in range(1, w.verify_rows + 1):
        seconds = pass_seconds(replace(w, branches=spread(count, w.verify_rows)), rates, launch_us)
        if seconds > limit:
            return count - 1 + (limit - last) / (seconds - last)
        last = seconds
    return float(w.verify_rows)


@dataclass(frozen=True)
class Kind:
    """A kind of attention. flops and elements are those of one cached token, for one query row."""

    name: str
    query_heads: int
    flops_per_row: float
    cached_elements: int


def kinds(model: ZayaConfig, rope_elements: int = 64) -> list[Kind]:
    """Kinds of attention with the same cache per token as the model's CCGQA.

    GQA and MLA have the query heads of an uncompressed model of this width (hidden / head dim). MHA
    cannot: each of its heads needs a K and V of its own. MLA is the absorbed form, whose cache is
    one latent and `rope_elements` that all heads share.
    """
    dim = model.head_dim
    heads = model.hidden_size // dim
    kv_heads = model.num_key_value_heads
    cached = 2 * kv_heads * dim
    latent = cached - rope_elements
    if latent <= 0:
        raise ValueError(
            f"model: expected more than {rope_elements} cached elements a token, got {cached}"
        )
    return [
        Kind("MHA", kv_heads, 4.0 * kv_heads * dim, cached),
        Kind("GQA", heads, 4.0 * heads * dim, cached),
        Kind("MLA (absorbed)", heads, 2.0 * heads * (2 * latent + rope_elements), cached),
        Kind("CCGQA", model.num_attention_heads, 4.0 * model.num_attention_heads * dim, cached),
    ]
