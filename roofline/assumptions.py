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


_OWN = "assumed, no source found"
_ISA = "AMD's ISA reference of CDNA 3 and 4"
_PYHIP = "github.com/tingqli/pyhip, docs/mem_latency.md, on MI308X"
_BUDGET = "as `roofline budget` assumes, 0.5 to 0.8 us without load and 1.5 under it"
_LLVM = "github.com/llvm/llvm-project/pull/233721, by traces of MI308X and MI350X"
_PROFILER = "ROCm Compute Profiler, pipeline descriptions"
ASSUMPTIONS = (
    Assumption("hbm_latency", 1700, 1050, 3150, "clk", f"{_BUDGET}; {_PYHIP}: 500 to 800"),
    Assumption("cache_latency", 600, 300, 900, "clk", f"{_OWN}: between LDS and HBM"),
    Assumption("scalar_latency", 150, 100, 250, "clk", _OWN),
    Assumption("lds_latency", 80, 52, 128, "clk", f"{_PYHIP}: 52 to 64; 120 with bank conflicts"),
    Assumption("lds_bytes", 128, 128, 128, "B/clk of a CU", f"{_PROFILER}; {_PYHIP}"),
    Assumption("lds_conflicts", 1.2, 1.0, 1.5, "times the cycles of LDS", _OWN),
    Assumption("cache_bytes", 64, 64, 32, "B/clk of a CU", f"{_PROFILER}; {_PYHIP}: 32 of HBM"),
    Assumption("issue", 4, 4, 5, "clk an instruction of a wave", _ISA),
    Assumption("vmem_issue", 16, 8, 16, "clk of a memory instruction", f"{_ISA}: 64 addresses"),
    Assumption("taken_branch", 12, 8, 20, "clk", _OWN),
    Assumption("multiply", 16, 8, 16, "clk of a 32-bit integer product", "LLVM, SISchedule.td"),
    Assumption("mfma_result", 12, 8, 18, "clk until another unit reads it", f"{_ISA}: wait states"),
    Assumption("mfma_packed", 8, 8, 12, "clk from a product's end to packed fp32", _LLVM),
    Assumption("barrier", 40, 20, 60, "clk", _OWN),
    Assumption("start_us", 2.0, 1.5, 3.0, "us from a kernel's start to its first work", _OWN),
    Assumption("launch_us", 4.0, 2.5, 8.0, "us of a launch after another", _OWN),
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
    mfma_packed: float
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
