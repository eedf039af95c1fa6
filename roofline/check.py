"""The model against this CPU: one efficiency an op, fitted on some shapes, predicts the time of
others."""

import math
from collections.abc import Callable
from dataclasses import dataclass

# op: (shapes to fit the efficiency on, shapes held out), parameters of its benchmark
SHAPES = {
    "block_attention": (
        [
            dict(B=1, L=2048, P=3),
            dict(B=1, L=8192, P=1),
            dict(B=4, L=1024, P=2),
            dict(B=2, L=4096, P=4),
            dict(B=2, L=3072, P=0),
        ],
        [
            dict(B=1, L=1024, P=3),
            dict(B=1, L=3072, P=1),
            dict(B=1, L=4096, P=3),
            dict(B=1, L=6144, P=2),
            dict(B=1, L=8192, P=3),
            dict(B=2, L=1024, P=5),
            dict(B=2, L=2048, P=2),
            dict(B=2, L=8192, P=1),
            dict(B=4, L=2048, P=3),
            dict(B=8, L=1024, P=1),
            dict(B=1, L=4096, P=0),
            dict(B=4, L=2048, P=0),
            dict(B=1, L=2048, P=8),
        ],
    ),
    "cca_qkv": (
        [dict(B=1, rows=64), dict(B=4, rows=64), dict(B=8, rows=136), dict(B=1, rows=272)],
        [
            dict(B=2, rows=64),
            dict(B=8, rows=64),
            dict(B=16, rows=64),
            dict(B=1, rows=136),
            dict(B=2, rows=136),
            dict(B=4, rows=136),
            dict(B=2, rows=272),
            dict(B=4, rows=272),
        ],
    ),
    "fused_moe": (
        [dict(T=16), dict(T=64), dict(T=272)],
        [
            dict(T=8),
            dict(T=24),
            dict(T=32),
            dict(T=48),
            dict(T=96),
            dict(T=136),
            dict(T=192),
            dict(T=384),
        ],
    ),
    # The smallest shapes are left out: they take 0.3 ms, a fifth of which is the fixed cost of a
    # call, which the model does not have
    "accept_drafts": (
        [dict(B=b, rule="token", accepted=a) for b, a in ((1, 8), (2, 4), (4, 12))],
        [
            dict(B=b, rule="token", accepted=a)
            for b, a in ((1, 4), (1, 12), (2, 2), (2, 8), (2, 12), (4, 2), (4, 4), (4, 8))
        ],
    ),
    "sample_drafts": (
        [dict(B=b, K=k) for b, k in ((1, 8), (2, 8), (4, 16))],
        [
            dict(B=b, K=k)
            for b, k in ((1, 4), (1, 12), (1, 16), (2, 4), (2, 12), (2, 16), (4, 4), (4, 8))
        ],
    ),
    # Only large batches: a smaller state stays in the last-level cache, even with 16 bits, so that
    # memory does not limit it
    "commit": (
        [dict(B=b) for b in (64, 96, 128)],
        [dict(B=b) for b in (72, 80, 88, 104, 112, 120, 136, 144)],
    ),
}

# Each shape is measured so many times, far apart, so that what disturbs the machine for a second or
# two spoils only one of them
ROUNDS = 2


@dataclass(frozen=True)
class Checked:
    """One shape.

    case           its parameters; held_out: whether it was predicted, or used to fit
    limit_ms       by this machine's ceilings, each the best of a few tries
    measured_ms    of the fastest sample, which other work on the machine disturbs as little
    efficiency     of the op, as fitted
    """

    op: str
    case: str
    held_out: bool
    limit_ms: float
    measured_ms: float
    efficiency: float

    @property
    def predicted_ms(self) -> float:
        return self.limit_ms / self.efficiency

    @property
    def error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1


def fit(pairs: list[tuple[float, float]]) -> float:
    """The efficiency that (limit, measured) pairs show: the geometric mean of their ratios."""
    return math.exp(sum(math.log(limit / measured) for limit, measured in pairs) / len(pairs))


def available(backend: str = "cpp") -> list[str]:
    """Ops that have this backend, built."""
    from .. import ops  # noqa: F401  (registers)
    from ..ops import _native
    from ..registry import OPS

    if backend == "cpp" and _native.MISSING:
        return []
    return [op for op in SHAPES if backend in OPS[op].backends]


def shape_count(ops: list[str]) -> int:
    """Measurements of a run."""
    return ROUNDS * sum(len(fitted) + len(held) for fitted, held in map(SHAPES.get, ops))


def run(
    chosen: list[str],
    dtype: str,
    threads: int,
    seconds: float,
    backend: str = "cpp",
    on_shape: Callable[[str], None] = lambda label: None,
) -> list[Checked]:
    """Times every shape with the benchmark's own inputs, check and clock, in rounds over the shapes
    of an op."""
    import torch

    from ..bench import limits

    torch.set_num_threads(threads)
    ceilings = limits.of_cpu(threads)
    found = []
    with torch.inference_mode():
        for op in chosen:
            fitted, held = SHAPES[op]
            rows = {}  # label: limit, time
            for case in (fitted + held) * ROUNDS:
                label = " ".join(f"{name}={value}" for name, value in case.items())
                on_shape(f"{op} {label}")
                limit, ms = _measure(op, case, dtype, backend, seconds / ROUNDS, ceilings)
                rows[label] = limit, min(ms, rows.get(label, (limit, ms))[1])
            efficiency = fit(list(rows.values())[: len(fitted)])
            found += [
                Checked(op, label, i >= len(fitted), limit, ms, efficiency)
                for i, (label, (limit, ms)) in enumerate(rows.items())
            ]
    return found


def _measure(
    op: str, parameters: dict, dtype: str, backend: str, seconds: float, ceilings
) -> tuple[float, float]:
    from ..bench import suite
    from ..bench.timing import interleaved

    case = suite.case(op, parameters, dtype)
    prepared = case.build()
    call = next(i for i in prepared.implementations if i.name == backend).prepare()
    prepared.check(call(), 1.0)
    return ceilings.milliseconds(case.cost, dtype), min(interleaved([call], seconds)[0])
