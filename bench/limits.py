"""Ceilings of the machine, measured in the same run as the times that are compared with them."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..native import load
from ..roofline.costs import Cost

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Limits:
    """Rates: bytes per second read from main memory, flops per second of fp32 multiply-adds and of
    bf16 products, exponentials per second (0: these and other vector arithmetic do not count)."""

    threads: int
    read_bytes_per_s: float
    flops_per_s: float
    bf16_flops_per_s: float
    exps_per_s: float

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
        return asdict(self)


def of_cpu(threads: int, seconds: float = 0.3, tries: int = 5) -> Limits:
    """The best of a few tries of each probe, since a ceiling is not an average."""
    try:
        probes = load("_probe")
    except ImportError as error:
        raise RuntimeError(
            "the CPU probes were not built; install blockdraft where there is a C++ compiler"
        ) from error
    read, flops, dots, exps = (
        max(probe(threads, seconds) for _ in range(tries))
        for probe in (probes.read_bandwidth, probes.fma_peak, probes.dot_peak, probes.exp_peak)
    )
    return Limits(threads, read, flops, dots or flops, exps)


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
