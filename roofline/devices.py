"""Devices by name, and the ceilings that follow from their figures."""

import math
import os
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from . import device_files
from .calibration import Calibration, Phases, tiles_seconds
from .costs import Cost
from .figures import Device, Figure

# The kinds of figure that FLOP/s and bandwidths are taken from. Where nobody achieved a figure, an
# assumed one stands in, and a quoted one where there is none either
BASES = {
    "peak": ("quoted", "quoted"),
    "sustained": ("quoted", "achieved"),
    "achieved": ("achieved", "achieved"),
}
BASIS_TEXT = {
    "peak": "quoted peak FLOP/s, quoted peak bandwidth",
    "sustained": "quoted peak FLOP/s, achieved bandwidth",
    "achieved": "achieved FLOP/s, achieved bandwidth",
}
_FALL_BACK = {"quoted": ("quoted",), "achieved": ("achieved", "assumed", "quoted")}


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device for products in `dtype` under one basis, a key of BASES.

    vector_flops_per_s, exps_per_s    quoted or assumed where nobody achieved others, inf where none
                                      is known
    l2_bytes_per_s, memory_gb, cache_bytes, cache_bytes_per_s (of the last level)    None where
                    they are not known, which leaves them out
    used            the figures behind the rates; one that stands in for another is unconfirmed
    shared_units    products, vector arithmetic and exponentials compete for one unit, as on a CPU
    activations     where an op finds what the one before wrote: in "memory", or in the last-level
                    "cache", if a call's activations fit into it
    link_bytes_per_s, link_s    between GPUs: of one GPU in one direction, and the latency of a sum
    calibration     what was measured, on which times rest in place of ideal ones; None: ideal
    """

    device: str
    dtype: str
    basis: str
    matrix_flops_per_s: float
    memory_bytes_per_s: float
    vector_flops_per_s: float
    exps_per_s: float
    l2_bytes_per_s: float | None
    memory_gb: float | None
    used: dict[str, Figure]
    shared_units: bool = False
    cache_bytes: float | None = None
    cache_bytes_per_s: float | None = None
    activations: str = "memory"
    link_bytes_per_s: float = math.inf
    link_s: float = 0.0
    calibration: Calibration | None = None

    @property
    def ridge_flops_per_byte(self) -> float:
        """The intensity from which on products take longer than main memory."""
        return self.matrix_flops_per_s / self.memory_bytes_per_s

    @property
    def unconfirmed(self) -> list[str]:
        return [name for name, figure in self.used.items() if figure.confidence == "unconfirmed"]

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Those of the matrix rate and the bandwidth that nobody confirmed."""
        ridge = (f"{self.dtype}_tflops", "memory_tb_per_s")
        return tuple(name for name in ridge if name in self.unconfirmed)

    def seconds(self, cost: Cost, calls: int = 1) -> tuple[float, str]:
        """Time that an ideal implementation takes for `calls` calls, everything overlapping, and
        what bounds it."""
        terms = self._terms(cost, calls)
        bound = max(terms, key=terms.get)
        return terms[bound], bound

    def calibrated_ridge(self, stem: str) -> float | None:
        """The intensity from which an op takes longer for its arithmetic than for its memory, as
        calibrated; None where there is no calibration or its times do not say."""
        factor = self.calibration.fit_of(stem).ridge if self.calibration else None
        return factor and factor * self._rates_of(stem).ridge_flops_per_byte

    def phases(self, cost: Cost, calls: int, stem: str) -> Phases:
        """What the calibration's factors of an op are factors of: seconds of main memory, of
        everything else, and on a CPU of its tiles."""
        rates = self._rates_of(stem)
        terms = rates._terms(cost, calls)
        memory = terms.pop("memory")
        tiles = tiles_seconds(cost.tiled, rates.vector_flops_per_s) if rates.shared_units else 0.0
        return Phases(memory, max(terms.values()), tiles)

    def _rates_of(self, stem: str) -> "Ceilings":
        """For an op that was measured on this device, the rates that stand beside its times."""
        found = self.calibration
        own = found and found.limits and found.of(self.device) and stem in found.ops
        return self._measured if own else self

    @cached_property
    def _measured(self) -> "Ceilings":
        """The rates of the calibration, which count as `calibration.sample` counts them."""
        found = self.calibration
        limits = found.limits
        products = {"bfloat16": ("bf16", "bf16_flops_per_s"), "float32": ("fp32", "flops_per_s")}
        dtype, rate = products.get(found.dtype, ("", ""))
        counted = limits["exps_per_s"] > 0
        return replace(
            self,
            memory_bytes_per_s=limits["read_bytes_per_s"],
            matrix_flops_per_s=limits[rate] if self.dtype == dtype else self.matrix_flops_per_s,
            vector_flops_per_s=limits["flops_per_s"] if counted else math.inf,
            exps_per_s=limits["exps_per_s"] if counted else math.inf,
            l2_bytes_per_s=None,
            shared_units=True,
        )

    def _terms(self, cost: Cost, calls: int) -> dict[str, float]:
        size = self.cache_bytes or 0.0
        held = self.activations == "cache" and cost.activations <= calls * size
        cached = cost.activations if held else 0.0
        memory = (cost.bytes - cached) / self.memory_bytes_per_s
        matrix = cost.flops / self.matrix_flops_per_s
        vector = cost.vector_flops / self.vector_flops_per_s + cost.exps / self.exps_per_s
        if self.shared_units:
            terms = {"memory": memory, "arithmetic": matrix + vector}
        else:
            terms = {"memory": memory, "matrix": matrix, "vector": vector}
        if self.l2_bytes_per_s:
            terms["L2"] = cost.l2_bytes / self.l2_bytes_per_s
        if cost.link_bytes:
            terms["link"] = cost.link_bytes / self.link_bytes_per_s + calls * self.link_s
        if cached and self.cache_bytes_per_s:
            terms["cache"] = cost.bytes / self.cache_bytes_per_s
        return terms


def ceilings(device: Device, dtype: str, basis: str) -> Ceilings:
    """The device's rates for products in `dtype`, or a ValueError that names what is known."""
    _check(device, dtype, basis)
    rate_name = f"{dtype}_tflops"
    flops, memory = BASES[basis]
    used = {
        rate_name: _figure(device, rate_name, flops),
        "memory_tb_per_s": _figure(device, "memory_tb_per_s", memory),
    }
    others = {"fp32_vector_tflops": flops, "exp_tera_per_s": flops, "l2_tb_per_s": memory}
    for name, kind in others.items():
        # nobody measures these: a quoted one is no stand-in, and an assumed one will do
        kinds = dict.fromkeys((kind, "quoted", "assumed"))
        figure = next(filter(None, (device.figure(name, k) for k in kinds)), None)
        if figure:
            used[name] = figure
    rate = {name: figure.value * 1e12 for name, figure in used.items()}
    size = device.figure("memory_gb", "quoted")
    cache = device.figure("last_level_cache_mib", "quoted")
    cache_rate = device.figure("last_level_cache_tb_per_s", "achieved")
    return Ceilings(
        device=device.name,
        dtype=dtype,
        basis=basis,
        matrix_flops_per_s=rate[rate_name],
        memory_bytes_per_s=rate["memory_tb_per_s"],
        vector_flops_per_s=rate.get("fp32_vector_tflops", math.inf),
        exps_per_s=rate.get("exp_tera_per_s", math.inf),
        l2_bytes_per_s=rate.get("l2_tb_per_s"),
        memory_gb=size.value if size else None,
        used=used,
        shared_units=device.arch == "cpu",
        cache_bytes=cache.value * 2**20 if cache else None,
        cache_bytes_per_s=cache_rate.value * 1e12 if cache_rate else None,
    )


def _check(device: Device, dtype: str, basis: str) -> None:
    if basis not in BASES:
        raise ValueError(f"basis: expected one of {', '.join(BASES)}, got {basis!r}")
    if dtype not in device.dtypes:
        raise ValueError(
            f"dtype: expected one of {', '.join(device.dtypes)} on {device.name}, got {dtype!r}"
        )
    known = [name for name in BASES if _has(device, dtype, name)]
    if basis not in known:
        raise ValueError(
            f"basis: expected one of {', '.join(known)} for {dtype} on {device.name}, "
            f"got {basis!r}: no such figure is known; a file given by --devices can add it"
        )


def _has(device: Device, dtype: str, basis: str) -> bool:
    flops, memory = BASES[basis]
    rate = _figure(device, f"{dtype}_tflops", flops)
    return rate is not None and _figure(device, "memory_tb_per_s", memory) is not None


def _figure(device: Device, name: str, kind: str) -> Figure | None:
    """The figure of that kind, or the one that stands in for it."""
    for found in _FALL_BACK[kind]:
        figure = device.figure(name, found)
        if figure:
            return figure if found == kind else replace(figure, confidence="unconfirmed")
    return None


def this_cpu(threads: int | None = None) -> Device:
    """This machine, by the probes of `roofline measure`; every rate is achieved."""
    from ..bench.limits import of_cpu

    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        found = of_cpu(threads or count)
    except RuntimeError as error:  # built without a C++ compiler
        raise ValueError(f"device: cpu: {error}") from error
    return measured_cpu(found.to_json(), "probe")


def measured_cpu(limits: dict[str, float], source: str) -> Device:
    """A CPU by the `limits` of a result file or of a calibration."""

    def figure(rate: str, note: str = "") -> tuple[Figure]:
        return (Figure(limits[rate] / 1e12, "achieved", source, "now", "read", note),)

    achieved = {
        "fp32_tflops": figure("flops_per_s", "fp32 multiply-adds"),
        "fp16_tflops": figure("flops_per_s", "fp32 multiply-adds"),
        "bf16_tflops": figure(
            "bf16_flops_per_s", "dot products where the CPU has them, else fp32 multiply-adds"
        ),
        "fp32_vector_tflops": figure("flops_per_s"),
        "exp_tera_per_s": figure("exps_per_s"),
        "memory_tb_per_s": figure("read_bytes_per_s"),
    }
    return Device("cpu", "cpu", {"quoted": {}, "achieved": achieved, "assumed": {}})


@cache
def _cpu_once() -> Device:
    """`this_cpu()`, probed once a process, since that takes seconds."""
    return this_cpu()


def load(user_file: str | Path | None = None) -> dict[str, Device]:
    """Devices by name: those of devices.toml, extended and overridden by a file of the same
    form."""
    paths = [Path(__file__).with_name("devices.toml")]
    if user_file:
        paths.append(Path(user_file))
    sources = {}
    devices = {}
    for path in paths:
        tables = device_files.read(path)
        sources |= device_files.sources(tables.pop("sources", {}), path)
        for name, table in tables.items():
            same = next((d for d in devices if d.lower() == name.lower()), name)
            devices[same] = device_files.device(same, table, devices.get(same), sources, path)
    return devices


def find(name: str, devices: dict[str, Device]) -> Device:
    """The device of that name, whatever its case; "cpu" is this machine."""
    if name.lower() == "cpu":
        return _cpu_once()
    for device in devices.values():
        if device.name.lower() == name.lower():
            return device
    raise ValueError(f"device: expected one of {', '.join(devices)}, cpu, got {name!r}")
