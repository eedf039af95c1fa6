"""Whether a kernel asks for enough bytes at once: its workgroups against a device's compute units,
and the bytes in flight against bandwidth times latency (Little's law)."""

from dataclasses import dataclass
from math import ceil

from ..models.config import ZayaConfig
from .costs import distinct_experts
from .launches import FEW_PAIRS

LATENCY_S = 1.5e-6  # assumed, of HBM under load; about 0.5e-6 to 0.8e-6 without
TALL_ROWS = 512  # from which a wave has two tiles of channels: csrc/ops/fused_moe/hip.hip
WAVES = 8  # of a workgroup of the C++ kernels: csrc/tile/cdna/group.h
FRAGMENT = 64 * 16  # bytes that a wave asks for with one load


@dataclass(frozen=True)
class Launch:
    """groups           workgroups
    bytes            of weights and rows, which all of them together read once from memory
    group_bytes      what a workgroup has asked for at once
    groups_per_unit  that a compute unit holds, by registers and LDS
    streams          whether it asks for more while it waits; else it asks for everything at once
    """

    kernel: str
    groups: int
    bytes: float
    group_bytes: float
    groups_per_unit: int
    streams: bool = False

    def unit_bytes(self, units: int) -> float:
        """In flight in a compute unit that has work."""
        busy = ceil(self.groups / units)
        return min(busy, self.groups_per_unit) * self.group_bytes

    def seconds(self, units: int, bytes_per_s: float) -> float:
        """Without the launch itself. Workgroups that do not stream wait once a round, as if those
        of a compute unit began together."""
        if not self.streams:
            rounds = ceil(self.groups / (units * self.groups_per_unit))
            return rounds * LATENCY_S + self.bytes / bytes_per_s
        in_flight = min(self.groups, units) * self.unit_bytes(units)
        return LATENCY_S + self.bytes / min(bytes_per_s, in_flight / LATENCY_S)

    def share(self, units: int, bytes_per_s: float) -> float:
        """Of the bandwidth."""
        return self.bytes / bytes_per_s / self.seconds(units, bytes_per_s)


def _split(
    kernel: str, tiles: int, chunks: int, depth: int, itemsize: int, weights: float
) -> Launch:
    """SplitGemm: 16 channels, all of whose weights are asked for at once, up to 8 fragments a wave.
    Chunks of columns read the same weights, from the L2 but for the first."""
    group_bytes = min(WAVES * 8 * FRAGMENT, 16 * depth * itemsize)
    return Launch(kernel, tiles * chunks, weights, group_bytes, 2)


def _cca_rows(model: ZayaConfig, itemsize: int) -> int:
    """Rows whose tokens and outputs, one in the place of the other, a workgroup of cca_qkv has
    memory for: csrc/ops/cca_qkv/body.h."""
    dim = model.head_dim
    tokens = dim * model.cca_time1 * itemsize + 16
    of_row = max(tokens, 4 * (dim + 4)) + 4 * (dim // 8 + 1) + 32
    return (20480 - 4 * (model.cca_time0 + 2) * dim) // of_row


def launches(model: ZayaConfig, rows: int, itemsize: int = 2) -> list[Launch]:
    """The C++ kernels of one layer that read weights, for so many rows that are routed evenly."""
    hidden, inner = model.hidden_size, model.moe_intermediate_size
    experts, router = model.num_experts, model.router_hidden_size
    touched = distinct_experts(rows, [1 / experts] * experts)
    found = []
    for kernel, channels, depth in (
        ("fused_moe gate_up", 2 * inner, hidden),
        ("fused_moe down", hidden, inner),
    ):
        weights = touched * channels * depth * itemsize
        if rows <= FEW_PAIRS:
            tiles = round(touched * ceil(channels / 16))
            found.append(_split(kernel, tiles, 1, depth, itemsize, weights))
            continue
        tall = 2 if rows >= TALL_ROWS else 1  # tiles of a wave, whose next two stages are asked for
        tiles = round(touched * ceil(channels / (WAVES * tall * 16)))
        chunks = ceil(rows / touched / 64)
        group_bytes = WAVES * tall * 2 * 4 * FRAGMENT
        found.append(Launch(kernel, tiles * chunks, weights, group_bytes, 1, streams=True))
    chunks = ceil(rows / 32)
    weights = router * hidden * itemsize
    found.append(
        _split("zaya_router project", ceil(router / 16), chunks, hidden, itemsize, weights)
    )
    weights = router * (2 * router + experts + 1) * itemsize
    group_bytes = min(WAVES * 2 * 8 * FRAGMENT, router * router * itemsize)
    found.append(Launch("zaya_router route", ceil(rows / 16), weights, group_bytes, 1))
    heads = model.num_attention_heads + model.num_key_value_heads
    tile = min(16 if rows < 1024 else 32, _cca_rows(model, itemsize))
    taps = model.cca_time1
    weights = heads * model.head_dim**2 * taps * itemsize
    group_bytes = min(WAVES * 8 * FRAGMENT, model.head_dim**2 * taps * itemsize)
    moved = weights + 2 * rows * (heads + model.num_key_value_heads) * model.head_dim * itemsize
    found.append(Launch("cca_qkv convolve", heads * ceil(rows / tile), moved, group_bytes, 3))
    return found
