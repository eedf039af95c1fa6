"""The figures that are known of a device, each with its source."""

from dataclasses import dataclass

CONFIDENCE = ("read", "derived", "unconfirmed")
KINDS = ("quoted", "achieved", "assumed")
ITEMSIZE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp6": 0.75, "fp4": 0.5}
# Weights may be kept in fewer bits than they are multiplied in; mxfp4 has a scale of 8 bits for 32
WEIGHT_BYTES = {**ITEMSIZE_BYTES, "mxfp4": 0.5 + 1 / 32}
# products a second in each dtype
RATES = tuple(f"{dtype}_tflops" for dtype in ITEMSIZE_BYTES)
FIGURES = (
    *RATES,
    "fp32_vector_tflops",
    "exp_tera_per_s",
    "memory_gb",
    "memory_tb_per_s",
    "last_level_cache_mib",
    "last_level_cache_tb_per_s",
    "l2_tb_per_s",
    "compute_units",
    "clock_ghz",
)

# Where a figure of any device lies, so that a wrong unit is refused: from a small CPU to ten times
# what the largest device has
RANGES = {
    **dict.fromkeys((*RATES, "fp32_vector_tflops"), (1e-3, 1e5)),
    "exp_tera_per_s": (1e-4, 1e3),
    "memory_gb": (0.1, 1e4),
    "memory_tb_per_s": (1e-3, 100),
    "last_level_cache_mib": (0.1, 1e5),
    "last_level_cache_tb_per_s": (1e-3, 1e3),
    "l2_tb_per_s": (1e-3, 1e3),
    "compute_units": (1, 1e5),
    "clock_ghz": (0.01, 20),
}


@dataclass(frozen=True)
class Figure:
    """One number of a device, in the unit that its name (one of FIGURES) ends with.

    kind        "quoted" by the vendor, "achieved" by somebody, or "assumed" where nobody measured
    source      what it was read in, or derived from; url: where that stands, "" for a derivation
    date        of publication or of reading, such as "2026-11"
    confidence  one of CONFIDENCE
    """

    value: float
    kind: str
    source: str
    date: str
    confidence: str
    note: str = ""
    url: str = ""


@dataclass(frozen=True)
class Device:
    """A device and its figures.

    arch       such as "gfx942"; "cpu" is this machine
    figures    [kind][name]: the figures known of that kind, of which the first is used
    """

    name: str
    arch: str
    figures: dict[str, dict[str, tuple[Figure, ...]]]

    def figure(self, name: str, kind: str) -> Figure | None:
        return self.figures[kind].get(name, (None,))[0]

    @property
    def dtypes(self) -> list[str]:
        """Those that a rate of products is known of."""
        return [
            dtype
            for dtype in ITEMSIZE_BYTES
            if any(f"{dtype}_tflops" in section for section in self.figures.values())
        ]
