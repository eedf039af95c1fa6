"""What measurements say of a device: for each op an efficiency and a fixed cost, from which the
time of other shapes and of whole passes follows."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

FORMAT = 1
# Beyond this error, one efficiency does not fit an op, and its phases get one each
CLOSE = 0.1
# Factors up to this are rounding errors
NOTHING = 1e-6
PHASES = ("memory", "arithmetic", "tiles")


class Phases(NamedTuple):
    """What the device's own ceilings would take for the bytes, for the arithmetic and, on a CPU,
    for loading and widening weights once for each tile of rows."""

    memory: float
    arithmetic: float
    tiles: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A measured call. ms: measured; the others are its phases. A benchmark repeats a call, so that
    its bytes come from a cache if they fit: of a CPU memory_ms counts them at that cache's rate."""

    label: str
    ms: float
    memory_ms: float
    arithmetic_ms: float
    tiles_ms: float = 0.0

    @property
    def limit_ms(self) -> float:
        return max(self.memory_ms, self.arithmetic_ms)


@dataclass(frozen=True)
class Fit:
    """The time of an op: `whole` times its limit, or `memory`, `arithmetic` and `tiles` times the
    parts of it, and `fixed_us` a call. Factors are 1 / efficiency; the phases may overlap, so that
    one of theirs may be below 1. shapes: measured; error: the worst of them, each predicted by the
    others."""

    whole: float = 0.0
    memory: float = 0.0
    arithmetic: float = 0.0
    tiles: float = 0.0
    fixed_us: float = 0.0
    shapes: int = 0
    error: float | None = None

    @property
    def ridge(self) -> float | None:
        """The factor on the intensity from which arithmetic takes longer than memory; None where
        the time does not depend on one of them."""
        if self.whole:
            return 1.0
        return self.memory / self.arithmetic if self.memory and self.arithmetic else None

    def seconds(self, of: Phases, calls: float = 1) -> float:
        phases = self.memory * of.memory + self.arithmetic * of.arithmetic + self.tiles * of.tiles
        whole = self.whole * max(of.memory, of.arithmetic)
        return whole + phases + 1e-6 * self.fixed_us * calls

    def predict_ms(self, sample: Sample) -> float:
        ms = sample.memory_ms, sample.arithmetic_ms, sample.tiles_ms
        return 1e3 * self.seconds(Phases(*(x / 1e3 for x in ms)))


@dataclass(frozen=True)
class Calibration:
    """device      that was measured
    source      the file or the figures that it rests on
    predicted   whether its times are those of the timing model, which nobody measured
    ops         by the stem of an op; another op is as `others`
    host_us     of a pass, outside every op
    launch_us   of each kernel that is launched
    limits      the device's own ceilings, which the efficiencies are shares of
    """

    device: str
    source: str
    dtype: str
    ops: dict[str, Fit]
    others: Fit
    host_us: float = 0.0
    launch_us: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)
    predicted: bool = False

    @property
    def origin(self) -> str:
        """Where its times come from, for titles and notes."""
        if self.predicted:
            return f"{self.device}, predicted by the timing model, not measured"
        return self.device

    def fit_of(self, stem: str) -> Fit:
        return self.ops.get(stem, self.others)

    def of(self, device: str) -> bool:
        """Whether it is one of this device."""
        return device.lower() == "cpu" or device.lower() in self.device.lower()

    def seconds(self, stem: str, phases: Phases, calls: float, launches: int) -> float:
        fit = self.fit_of(stem)
        return fit.seconds(phases, calls) + 1e-6 * self.launch_us * launches


def fit(samples: Sequence[Sample]) -> Fit:
    """One efficiency and a fixed cost where these are close to every sample, else one for each
    phase."""
    if not samples:
        raise ValueError("calibrate: expected at least one measured shape of an op, got none")
    found = _cross_checked(samples, ("whole", "fixed_us"))
    if found.error is None or found.error <= CLOSE:
        return found
    phased = _cross_checked(samples, (*PHASES, "fixed_us"))
    return phased if phased.error is not None and phased.error < found.error else found


def _cross_checked(samples: Sequence[Sample], terms: tuple[str, ...]) -> Fit:
    """With the worst error of a sample that the others predict, where they are enough."""
    worst = None
    if len(samples) > len(terms):
        others = ([s for s in samples if s is not left_out] for left_out in samples)
        predicted = (
            _least_squares(rest, terms).predict_ms(s)
            for rest, s in zip(others, samples, strict=True)
        )
        worst = max(abs(ms / s.ms - 1) for ms, s in zip(predicted, samples, strict=True))
    found = _least_squares(samples, terms)
    return Fit(**{**asdict(found), "shapes": len(samples), "error": worst})


def _least_squares(samples: Sequence[Sample], terms: tuple[str, ...]) -> Fit:
    """The factors >= 0 with the least squared relative error: of every subset of the terms, whose
    factors come out above 0, the best."""
    import numpy as np

    columns = {
        "whole": [s.limit_ms / s.ms for s in samples],
        "memory": [s.memory_ms / s.ms for s in samples],
        "arithmetic": [s.arithmetic_ms / s.ms for s in samples],
        "tiles": [s.tiles_ms / s.ms for s in samples],
        "fixed_us": [1e-3 / s.ms for s in samples],
    }
    terms = [term for term in terms if any(columns[term])]
    best = math.inf
    chosen = {}
    for count in range(1, min(len(terms), len(samples)) + 1):
        for subset in combinations(terms, count):
            # where only a fixed cost shows, an op still takes no less than its limit
            bare = subset == ("fixed_us",)
            wanted = 1 - np.array(columns["whole"]) if bare else np.ones(len(samples))
            matrix = np.array([columns[term] for term in subset]).T
            factors = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
            squares = float(((matrix @ factors - wanted) ** 2).sum())
            if (factors > NOTHING).all() and squares < best:
                best = squares
                chosen = dict(zip(subset, map(float, factors), strict=True))
                chosen |= {"whole": 1.0} if bare else {}
    return Fit(**chosen)


def mean_fit(measured: Sequence[tuple[Fit, Sequence[Sample]]]) -> Fit:
    """For ops that were not measured: the geometric mean of every sample's efficiency, without the
    fixed cost of its op, and the least of these."""
    ratios = [
        math.log(max(1.0, (s.ms - fit.fixed_us / 1e3) / s.limit_ms))
        for fit, samples in measured
        for s in samples
    ]
    whole = math.exp(sum(ratios) / len(ratios))
    return Fit(whole=whole, fixed_us=min(f.fixed_us for f, _ in measured), shapes=len(ratios))


def of_results(data: dict, impl: str, dtype: str, source: str) -> Calibration:
    """Of the results of `bench` or `check`, schema 2: those of one implementation and dtype."""
    limits = data["limits"]
    by_op: dict[str, list[Sample]] = {}
    for result in data["results"]:
        if result["impl"] == impl and result["dtype"] == dtype and result["ms"]:
            by_op.setdefault(result["op"], []).append(sample(result, limits))
    if not by_op:
        found = sorted({f"{r['impl']} {r['dtype']}" for r in data["results"] if r["ms"]})
        raise ValueError(
            "calibrate: --impl, --dtype: expected one of "
            f"{', '.join(found) or 'nothing (no times)'}, got {impl} {dtype}"
        )
    ops = {op: fit(samples) for op, samples in by_op.items()}
    return Calibration(
        device=str(data["machine"].get("device", "unknown")),
        source=source,
        dtype=dtype,
        ops=ops,
        others=mean_fit([(ops[op], samples) for op, samples in by_op.items()]),
        limits={name: float(limits[name]) for name in limits if name != "read_again"},
        predicted=bool(data["machine"].get("predicted")),
    )


def sample(result: dict, limits: dict) -> Sample:
    """A result's `flops` count the vector arithmetic too, at the rate of multiply-adds."""
    bf16 = result["dtype"] == "bfloat16"
    vector = result.get("vector_flops") or 0
    arithmetic = (result["flops"] - vector) / limits["bf16_flops_per_s" if bf16 else "flops_per_s"]
    if limits["exps_per_s"]:
        arithmetic += vector / limits["flops_per_s"] + result["exps"] / limits["exps_per_s"]
    memory = result["bytes"] / _read_rate(limits, result["bytes"])
    tiles = tiles_seconds(result.get("tiled") or 0, limits["flops_per_s"])
    return Sample(result["case"], result["ms"], 1e3 * memory, 1e3 * arithmetic, 1e3 * tiles)


def tiles_seconds(tiled: float, flops_per_s: float) -> float:
    """As if a weight took a multiply-add to load and widen."""
    return 2 * tiled / flops_per_s


def _read_rate(limits: dict, size: float) -> float:
    """Bytes per second of a call of so many bytes, when it is repeated: between the sizes that were
    probed linear in their logarithms."""
    points = limits.get("read_again", ())
    if points and size <= points[0][0]:
        return points[0][1]
    for (low, before), (high, after) in pairwise(points):
        if size <= high:
            return before + (after - before) * math.log(size / low) / math.log(high / low)
    return limits["read_bytes_per_s"]


def of_two_rates(
    one: tuple[float, int], many: tuple[float, int], measured: tuple[float, float], source: str
) -> Calibration:
    """One efficiency of every op and one launch cost that explain two measured passes.

    one, many   ideal seconds and launches of the two passes; measured: their seconds
    """
    import numpy as np

    matrix = np.array([one, many], float)
    factor, launch_s = np.linalg.solve(matrix, np.array(measured, float))
    if launch_s < 0 or factor < 1:
        # Not both: the efficiency alone, or the launches alone, by least squared relative error
        scaled = matrix / np.array(measured)[:, None]
        factor = float(scaled[:, 0].sum() / (scaled[:, 0] ** 2).sum())
        launch_s = 0.0
    others = Fit(whole=float(factor), shapes=2)
    return Calibration("", source, "", {}, others, launch_us=1e6 * float(launch_s))


def explicable(
    one: tuple[float, int], many: tuple[float, int], one_measured: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The seconds of the second pass that one efficiency and one launch cost can explain, given
    those of the first: (all of it launches, all of it efficiency). Each with what explains it: the
    microseconds of a launch, the efficiency."""
    launch_s = max(0.0, one_measured - one[0]) / one[1]
    efficiency = one[0] / one_measured
    return (many[0] + launch_s * many[1], 1e6 * launch_s), (many[0] / efficiency, efficiency)


def save(path: Path, calibration: Calibration) -> None:
    path.write_text(json.dumps({"calibration": FORMAT, **asdict(calibration)}, indent=1) + "\n")


def load(path: str | Path) -> Calibration:
    """A file that `save` wrote."""
    where = f"calibration: {path}"
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: expected a file of `calibrate --out`, got {error}") from error
    if not isinstance(data, dict) or data.pop("calibration", None) != FORMAT:
        raise ValueError(f"{where}: expected a file of `calibrate --out`, got something else")
    try:
        ops = {op: Fit(**found) for op, found in data.pop("ops").items()}
        loaded = Calibration(ops=ops, others=Fit(**data.pop("others")), **data)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: expected the fields of a calibration, got {error}") from error
    for op, found in [*ops.items(), ("others", loaded.others)]:
        factors = (found.whole, *(getattr(found, p) for p in PHASES), found.fixed_us)
        if not all(isinstance(x, (int, float)) and 0 <= x < math.inf for x in factors):
            raise ValueError(f"{where}: {op}: expected factors >= 0, got {factors}")
    return loaded
