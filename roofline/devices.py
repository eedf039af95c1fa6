"""Devices: figures with their sources from devices.toml and user files, and the ceilings that
follow from them."""

import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .costs import Cost

CONFIDENCE = ("read", "derived", "unconfirmed")
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
ITEMSIZE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp6": 0.75, "fp4": 0.5}
_RATES = tuple(f"{dtype}_tflops" for dtype in ITEMSIZE_BYTES)
FIGURES = (
    *_RATES,
    "fp32_vector_tflops",
    "exp_tera_per_s",
    "memory_gb",
    "memory_tb_per_s",
    "last_level_cache_mib",
    "last_level_cache_tb_per_s",
    "l2_mib",
    "l2_tb_per_s",
    "lds_kib",
    "register_kib",
    "compute_units",
    "clock_ghz",
    "wave",
    "xcds",
)
LEAST, MOST = 1e-6, 1e7  # of any figure: a slip of units by more than that is refused


@dataclass(frozen=True)
class Figure:
    """One number of a device, in the unit that its name (one of FIGURES) ends with.

    kind        "quoted" by the vendor, or "achieved" by somebody
    source      what it was read in, or derived from; date: of publication or of reading, "2026-11"
    confidence  one of CONFIDENCE
    """

    value: float
    kind: str
    source: str
    date: str
    confidence: str
    note: str = ""


@dataclass(frozen=True)
class Device:
    """figures[kind][name]: the figures known of that kind, "quoted" or "achieved"; the first is the
    one that is used. arch: "gfx942"; "cpu" is this machine."""

    name: str
    arch: str
    figures: dict[str, dict[str, tuple[Figure, ...]]]

    def figure(self, name: str, kind: str) -> Figure | None:
        return self.figures[kind].get(name, (None,))[0]


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device for products in `dtype` under one basis, a key of BASES. Vector and
    exponential rates are quoted ones where nobody achieved others, inf where none is known; L2 is
    left out (None) where no bandwidth is known, as is the memory's size. used: the figures behind
    the rates. shared_units: products, vector arithmetic and exponentials compete for one unit, as
    on a CPU."""

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

    @property
    def ridge_flops_per_byte(self) -> float:
        return self.matrix_flops_per_s / self.memory_bytes_per_s

    @property
    def unconfirmed(self) -> list[str]:
        return [name for name, figure in self.used.items() if figure.confidence == "unconfirmed"]

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Of the matrix rate and the bandwidth those that nobody confirmed."""
        return tuple(
            name for name in (f"{self.dtype}_tflops", "memory_tb_per_s") if name in self.unconfirmed
        )

    def seconds(self, cost: Cost) -> tuple[float, str]:
        """Time that an ideal implementation takes, everything overlapping, and what bounds it."""
        matrix = cost.flops / self.matrix_flops_per_s
        vector = cost.vector_flops / self.vector_flops_per_s + cost.exps / self.exps_per_s
        terms = {"memory": cost.bytes / self.memory_bytes_per_s, "matrix": matrix, "vector": vector}
        if self.shared_units:
            terms = {"memory": terms["memory"], "arithmetic": matrix + vector}
        if self.l2_bytes_per_s:
            terms["L2"] = cost.l2_bytes / self.l2_bytes_per_s
        bound = max(terms, key=terms.get)
        return terms[bound], bound


def ceilings(device: Device, dtype: str, basis: str) -> Ceilings:
    """The device's rates for products in `dtype`, or a ValueError that names what is known."""
    if basis not in BASES:
        raise ValueError(f"basis: expected one of {', '.join(BASES)}, got {basis!r}")
    dtypes = known_dtypes(device)
    if dtype not in dtypes:
        raise ValueError(
            f"dtype: expected one of {', '.join(dtypes)} on {device.name}, got {dtype!r}"
        )
    known = [name for name in BASES if _has(device, dtype, name)]
    if basis not in known:
        raise ValueError(
            f"basis: expected one of {', '.join(known)} for {dtype} on {device.name}, got {basis!r}: "
            "no such figure is known; a file given by --devices can add it"
        )
    flops, memory = BASES[basis]
    used = {
        f"{dtype}_tflops": device.figure(f"{dtype}_tflops", flops),
        "memory_tb_per_s": device.figure("memory_tb_per_s", memory),
    }
    for name, kind in (
        ("fp32_vector_tflops", flops),
        ("exp_tera_per_s", flops),
        ("l2_tb_per_s", memory),
    ):
        figure = device.figure(name, kind) or device.figure(name, "quoted")
        if figure:
            used[name] = figure
    rate = {name: figure.value * 1e12 for name, figure in used.items()}
    size = device.figure("memory_gb", "quoted")
    return Ceilings(
        device.name,
        dtype,
        basis,
        rate[f"{dtype}_tflops"],
        rate["memory_tb_per_s"],
        rate.get("fp32_vector_tflops", math.inf),
        rate.get("exp_tera_per_s", math.inf),
        rate.get("l2_tb_per_s"),
        size and size.value,
        used,
        device.arch == "cpu",
    )


def known_dtypes(device: Device) -> list[str]:
    return [
        d
        for d in ITEMSIZE_BYTES
        if any(f"{d}_tflops" in section for section in device.figures.values())
    ]


def _has(device: Device, dtype: str, basis: str) -> bool:
    flops, memory = BASES[basis]
    return bool(
        device.figure(f"{dtype}_tflops", flops) and device.figure("memory_tb_per_s", memory)
    )


def this_cpu(threads: int | None = None) -> Device:
    """This machine, by the probes of `roofline measure`; every rate is achieved."""
    from ..bench.limits import of_cpu

    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        found = of_cpu(threads or count)
    except RuntimeError as error:  # built without a C++ compiler
        raise ValueError(f"device: cpu: {error}") from error

    def figure(rate, note=""):
        return (Figure(rate / 1e12, "achieved", "probe", "now", "read", note),)

    rates = {
        f"{d}_tflops": figure(found.flops_per_s, "fp32 multiply-adds") for d in ("fp32", "fp16")
    }
    rates["bf16_tflops"] = figure(
        found.bf16_flops_per_s, "dot products where the CPU has them, else fp32 multiply-adds"
    )
    return Device(
        "cpu",
        "cpu",
        {
            "quoted": {},
            "achieved": rates
            | {
                "fp32_vector_tflops": figure(found.flops_per_s),
                "exp_tera_per_s": figure(found.exps_per_s),
                "memory_tb_per_s": figure(found.read_bytes_per_s),
            },
        },
    )


def load(user_file: str | Path | None = None) -> dict[str, Device]:
    """Devices by name: those of devices.toml, extended and overridden by a file of the same
    form."""
    files = [Path(__file__).with_name("devices.toml"), *([Path(user_file)] if user_file else [])]
    sources, devices = {}, {}
    for path in files:
        data = _read(path)
        sources |= _sources(data.pop("sources", {}), path)
        for name, table in data.items():
            same = next((d for d in devices if d.lower() == name.lower()), name)
            devices[same] = _device(same, table, devices.get(same), sources, path)
    return devices


@cache
def named_cpu() -> Device:
    """`this_cpu()`, probed once a process."""
    return this_cpu()


def find(name: str, devices: dict[str, Device]) -> Device:
    """By name, whatever its case; "cpu" is this machine."""
    if name.lower() == "cpu":
        return named_cpu()
    for device in devices.values():
        if device.name.lower() == name.lower():
            return device
    raise ValueError(f"device: expected one of {', '.join(devices)}, cpu, got {name!r}")


def _read(path: Path) -> dict:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"devices: {path}: expected a TOML file, got {error}") from error


def _sources(table, path) -> dict:
    well = isinstance(table, dict) and all(
        isinstance(entry, dict) and set(entry) == {"title", "date"} for entry in table.values()
    )
    if not well or not all(
        isinstance(text, str) for entry in table.values() for text in entry.values()
    ):
        raise ValueError(
            f"devices: {path}: sources: expected NAME = {{ title, date }} for each, got {table!r}"
        )
    return table


def _device(name, table, before: Device | None, sources, path) -> Device:
    def need(ok, where, expected, got):
        if not ok:
            raise ValueError(f"devices: {path}: {name}{where}: expected {expected}, got {got!r}")

    need(
        isinstance(table, dict) and set(table) <= {"arch", "quoted", "achieved"},
        "",
        "arch, quoted, achieved",
        table,
    )
    arch = table.get("arch", before.arch if before else "unknown")
    need(isinstance(arch, str), ".arch", "a name", arch)
    figures = {
        kind: dict(before.figures[kind]) if before else {} for kind in ("quoted", "achieved")
    }
    for kind in figures:
        section = table.get(kind, {})
        need(isinstance(section, dict), f".{kind}", "a table of figures", section)
        default = {
            "source": section.get("source", str(path)),
            "confidence": section.get("confidence", "read"),
        }
        for key, value in section.items():
            if key in default:
                continue
            where = f".{kind}.{key}"
            need(key in FIGURES, where, f"one of {', '.join(FIGURES)}", key)
            entries = [
                entry if isinstance(entry, dict) else {"value": entry}
                for entry in (value if isinstance(value, list) else [value])
            ]
            need(entries, where, "at least one figure", entries)
            for entry in entries:
                need(
                    set(entry) <= {"value", "source", "confidence", "note"},
                    where,
                    "value, source, confidence, note",
                    sorted(entry),
                )
                number = entry.get("value")
                need(
                    isinstance(number, (int, float))
                    and not isinstance(number, bool)
                    and number > 0,
                    where,
                    "a positive number",
                    number,
                )
                need(LEAST <= number <= MOST, where, f"a number in {LEAST:g} .. {MOST:g}", number)
                full = default | entry
                need(
                    all(
                        isinstance(full.get(key, ""), str)
                        for key in ("source", "confidence", "note")
                    ),
                    where,
                    "source, confidence and note as text",
                    full,
                )
                need(
                    full["confidence"] in CONFIDENCE,
                    where,
                    f"a confidence of {', '.join(CONFIDENCE)}",
                    full["confidence"],
                )
                need(
                    full["source"] in sources or full["source"] == str(path),
                    where,
                    f"a source of {', '.join(sources)}",
                    full["source"],
                )
            figures[kind][key] = tuple(
                Figure(
                    float(full["value"]),
                    kind,
                    sources.get(full["source"], {}).get("title", full["source"]),
                    sources.get(full["source"], {}).get("date", "undated"),
                    full["confidence"],
                    full.get("note", ""),
                )
                for full in (default | entry for entry in entries)
            )
    need(
        "memory_tb_per_s" in figures["quoted"] | figures["achieved"],
        "",
        "a memory_tb_per_s",
        sorted(figures["quoted"]),
    )
    need(
        any(rate in figures["quoted"] | figures["achieved"] for rate in _RATES),
        "",
        f"one of {', '.join(_RATES)}",
        sorted(figures["quoted"]),
    )
    return Device(name, arch, figures)
