"""Ceilings of the machine, measured in the same run as the times that are compared with them."""

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from ..native import load
from ..roofline.costs import Cost

if TYPE_CHECKING:
    import torch


# Sizes around those of second and last-level caches
CACHED_MEBIBYTES = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Limits:
    """Rates: bytes per second read from main memory, flops per second of fp32 multiply-adds and of
    bf16 products, exponentials per second (0: these and other vector arithmetic do not count).
    read_again: (bytes, bytes per second) of reading so many again and again, from a cache while
    they fit; rising sizes, falling rates."""

    threads: int
    read_bytes_per_s: float
    flops_per_s: float
    bf16_flops_per_s: float
    exps_per_s: float
    read_again: tuple[tuple[float, float], ...] = ()

    def milliseconds(self, cost: Cost, dtype: str) -> float:
        """A lower bound of the time: memory accesses and arithmetic overlap perfectly; on a CPU
        products, exponentials and other arithmetic share the vector units."""
        arithmetic = cost.flops / (
            self.bf16_flops_per_s if dtype == "bfloat16" else self.flops_per_s
        )
        if self.exps_per_s:
            arithmetic += cost.vector_flops / self.flops_per_s + cost.exps / self.exps_per_s
        return 1e3 * max(cost.bytes / self.read_bytes_per_s, arithmetic)

    def to_json(self) -> dict:
        return {**asdict(self), "read_again": [list(point) for point in self.read_again]}


def of_cpu(threads: int, seconds: float = 0.3, tries: int = 5) -> Limits:
    """The best of a few tries of each probe, since a ceiling is not an average. The tries are far
    apart, so that what disturbs the machine for a second or two spoils one of them."""
    try:
        probes = load("_probe")
    except ImportError as error:
        raise RuntimeError(
            "the CPU probes were not built; install blockdraft where there is a C++ compiler"
        ) from error

    def once() -> list[float]:
        rates = (probes.read_bandwidth, probes.fma_peak, probes.dot_peak, probes.exp_peak)
        cached = (probes.read_bandwidth(threads, seconds / 6, size) for size in CACHED_MEBIBYTES)
        return [*(rate(threads, seconds) for rate in rates), *cached]

    best = map(max, zip(*(once() for _ in range(tries)), strict=True))
    read, flops, dots, exps, *cached = best
    # a smaller size is read at least as fast as a larger one
    falling = accumulate([read, *reversed(cached)], max)
    sizes = (float(size << 20) for size in CACHED_MEBIBYTES)
    again = zip(sizes, reversed(list(falling)), strict=False)
    return Limits(threads, read, flops, dots or flops, exps, tuple(again))


def of_gpu(dtype: "torch.dtype") -> Limits:
    """Copy bandwidth over 2 GiB and the rate of a large matrix product."""
    import torch

    from .timing import median_and_mad, on_gpu

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy, _ = median_and_mad(on_gpu([lambda: target.copy_(source)]))
    a, b = (torch.randn(8192, 8192, dtype=dtype, device="cuda") for _ in range(2))
    product, _ = median_and_mad(on_gpu([lambda: a @ b]))
    flops = 2 * 8192**3 / product * 1e3
    return Limits(0, 2 * source.numel() / copy * 1e3, flops, flops, 0.0)
