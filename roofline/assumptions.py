"""What the timing model takes for granted of CDNA 3 and 4, each with a source and a range."""

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Assumption:
    """value: the nominal one. fast, slow: the ends of its range."""

    name: str
    value: float
    fast: float
    slow: float
    unit: str
    source: str


_OWN = "assumed; no source found"
_ISA = "AMD Instinct MI300 and CDNA4 ISA references"
_CHEESE = "Chips and Cheese, measurements of MI300X"
ASSUMPTIONS = (
    Assumption("hbm_latency", 1700, 1300, 2300, "clk", f"{_CHEESE} (about 800 ns at 2.1 GHz)"),
    Assumption("cache_latency", 700, 500, 1000, "clk", f"{_CHEESE} (L2 to last-level cache)"),
    Assumption("scalar_latency", 150, 100, 250, "clk", f"{_CHEESE} (scalar cache, hit)"),
    Assumption("lds_latency", 110, 64, 128, "clk", f"{_CHEESE}; {_ISA}"),
    Assumption("lds_bytes", 128, 128, 128, "B/clk of a CU", _ISA),
    Assumption("lds_conflicts", 1.2, 1.0, 1.5, "times the cycles of LDS", _OWN),
    Assumption("cache_bytes", 64, 64, 48, "B/clk of a CU", "AMD CDNA 3 white paper: L2 to L1"),
    Assumption("issue", 4, 4, 5, "clk an instruction of a wave", _ISA),
    Assumption("vmem_issue", 16, 8, 16, "clk of a wave's memory instruction", _ISA),
    Assumption("taken_branch", 12, 8, 20, "clk", _OWN),
    Assumption("multiply", 16, 8, 16, "clk of a 32-bit integer product", _ISA),
    Assumption("mfma_result", 12, 8, 18, "clk until another unit may read it", _ISA),
    Assumption("barrier", 40, 20, 60, "clk", _OWN),
    Assumption("start_us", 2.0, 1.5, 3.0, "us from a workgroup's dispatch to work", _OWN),
    Assumption("launch_us", 4.0, 2.5, 8.0, "us a launch that follows another", "SGLang #36953"),
)


@dataclass(frozen=True)
class Machine:
    """A value of every assumption."""

    hbm_latency: float
    cache_latency: float
    scalar_latency: float
    lds_latency: float
    lds_bytes: float
    lds_conflicts: float
    cache_bytes: float
    issue: float
    vmem_issue: float
    taken_branch: float
    multiply: float
    mfma_result: float
    barrier: float
    start_us: float
    launch_us: float


def machine(kind: str = "value") -> Machine:
    """Of the nominal values, or of the `fast` or the `slow` ends of all ranges together."""
    return Machine(**{a.name: getattr(a, kind) for a in ASSUMPTIONS})


assert [f.name for f in fields(Machine)] == [a.name for a in ASSUMPTIONS]


def varied(name: str, kind: str) -> Machine:
    """Nominal but for one assumption."""
    return replace(machine(), **{name: getattr(machine(kind), name)})
