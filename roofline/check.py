"""The model against this CPU: what is fitted of each op on some shapes predicts others, and whole
passes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from . import calibration

# op: (shapes to fit the efficiency on, shapes held out), parameters of its benchmark
SHAPES = {
    "block_attention": (
        [
            dict(B=1, L=2048, P=3),
            dict(B=1, L=8192, P=1),
            dict(B=4, L=1024, P=2),
            dict(B=2, L=4096, P=4),
            dict(B=2, L=3072, P=0),
            dict(B=1, L=4096, P=0, V=1),
            dict(B=4, L=8192, P=0, V=1),
            dict(B=1, L=2048, P=3, cache="fp8"),
            dict(B=1, L=8192, P=1, cache="fp8"),
            dict(B=4, L=8192, P=0, V=1, cache="fp8"),
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
            dict(B=2, L=4096, P=0, V=1),
            dict(B=1, L=8192, P=0, V=1),
            dict(B=1, L=4096, P=3, cache="fp8"),
            dict(B=1, L=8192, P=3, cache="fp8"),
            dict(B=2, L=4096, P=0, V=1, cache="fp8"),
        ],
    ),
    "cca_qkv": (
        [
            dict(B=1, rows=16),
            dict(B=1, rows=64),
            dict(B=4, rows=64),
            dict(B=8, rows=136),
            dict(B=1, rows=272),
        ],
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
        [dict(T=t) for t in (1, 4, 16, 32, 64, 128, 272)]
        + [dict(T=t, experts=e) for e in ("fp8", "mxfp4") for t in (1, 16, 64)],
        [dict(T=t) for t in (2, 8, 12, 24, 48, 96, 136, 192)]
        + [dict(T=t, experts=e) for e in ("fp8", "mxfp4") for t in (4, 32)],
    ),
    "zaya_router": (
        [dict(T=1), dict(T=16), dict(T=96), dict(T=272), dict(T=1024)],
        [dict(T=t) for t in (8, 24, 32, 48, 64, 136, 192, 512)],
    ),
    "residual_norm": (
        [dict(T=t, few=False) for t in (1, 16, 96, 272, 1024)],
        [dict(T=t, few=False) for t in (8, 24, 32, 48, 64, 136, 192, 512)],
    ),
    # both projections and the LM head
    "linear": (
        [
            dict(of="qkv", T=1),
            dict(of="qkv", T=16),
            dict(of="output", T=64),
            dict(of="qkv", T=272),
            dict(of="head", T=1),
            dict(of="head", T=2),
            dict(of="head", T=16),
        ],
        [
            dict(of="output", T=8),
            dict(of="output", T=16),
            dict(of="qkv", T=32),
            dict(of="qkv", T=64),
            dict(of="output", T=136),
            dict(of="output", T=272),
            dict(of="output", T=96),
            dict(of="head", T=4),
            dict(of="head", T=8),
        ],
    ),
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
        [dict(B=b) for b in (64, 80, 96, 128)],
        [dict(B=b) for b in (68, 72, 76, 88, 104, 112, 120, 136)],
    ),
}

IMPLEMENTATION = "cpp"

# Each shape is measured so many times, far apart, so that what disturbs the machine for a second or
# two spoils only one of them; and then until its two fastest times agree, or this often
ROUNDS = 2
MOST_ROUNDS = 5
AGREE = 1.05


@dataclass(frozen=True)
class Checked:
    """One shape.

    case           its parameters; held_out: whether it was predicted, or used to fit
    limit_ms       by this machine's ceilings, each the best of a few tries
    measured_ms    of the fastest sample, which other work on the machine disturbs as little
    efficiency     of the op, as fitted: the mean share of the limit
    fitted_ms      by the efficiency and the fixed cost of the op, or by those of its phases
    """

    op: str
    case: str
    held_out: bool
    limit_ms: float
    measured_ms: float
    efficiency: float
    fitted_ms: float | None = None

    @property
    def predicted_ms(self) -> float:
        return self.limit_ms / self.efficiency if self.fitted_ms is None else self.fitted_ms

    @property
    def ideal_error(self) -> float:
        """Without any calibration."""
        return self.limit_ms / self.measured_ms - 1

    @property
    def error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1


def fit(pairs: list[tuple[float, float]]) -> float:
    """The efficiency that (limit, measured) pairs show: the geometric mean of their ratios."""
    return math.exp(sum(math.log(limit / measured) for limit, measured in pairs) / len(pairs))


def available(backend: str = IMPLEMENTATION) -> list[str]:
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
    on_shape: Callable[[str], None] = lambda label: None,
) -> tuple[list[Checked], dict]:
    """Times every shape with the benchmark's own inputs, check and clock, in rounds over the shapes
    of an op. The predictions, and all times as a result file, from which `calibrate` takes them."""
    import torch

    from ..bench import limits, results

    torch.set_num_threads(threads)
    ceilings = limits.of_cpu(threads)
    rows = []
    with torch.inference_mode():
        for op in chosen:
            found = [[] for _ in _labelled(op)]
            for turn in range(MOST_ROUNDS):
                for (case, label), own in zip(_labelled(op), found, strict=True):
                    if turn < ROUNDS or not _steady(own):
                        on_shape(f"{op} {label}")
                        own.append(_measure(op, case, label, dtype, seconds / ROUNDS, ceilings))
            rows += [min(own, key=lambda row: row["ms"]) for own in found]
    data = {
        "schema": results.SCHEMA,
        "machine": results.machine("cpu"),
        "limits": ceilings.to_json(),
        "results": rows,
    }
    return predictions(data), data


def _labelled(op: str) -> list[tuple[dict, str]]:
    """The shapes of an op, those to fit on first, each with its name."""
    fitted, held = SHAPES[op]
    return [
        (case, " ".join(f"{name}={value}" for name, value in case.items()))
        for case in fitted + held
    ]


def _steady(rows: list[dict]) -> bool:
    first, second = sorted(row["ms"] for row in rows)[:2]
    return second <= AGREE * first


def predictions(data: dict) -> list[Checked]:
    """Of the shapes of each op and format, by what the first ones show."""
    found, known = [], _fitted()
    for op, format in dict.fromkeys(map(_kind, data["results"])):
        rows = [row for row in data["results"] if _kind(row) == (op, format)]
        samples = [calibration.sample(row, data["limits"]) for row in rows]
        fitted = [s for s in samples if (op, s.label) in known]
        of_op = calibration.fit(fitted)
        efficiency = fit([(s.limit_ms, s.ms) for s in fitted])
        found += [
            Checked(
                op,
                s.label,
                held_out=(op, s.label) not in known,
                limit_ms=s.limit_ms,
                measured_ms=s.ms,
                efficiency=efficiency,
                fitted_ms=of_op.predict_ms(s),
            )
            for s in samples
        ]
    return found


def _kind(row: dict) -> tuple[str, str]:
    """The op of a result, and the format of what it reads, in which its efficiency is another."""
    words = row["case"].split()
    return row["op"], next((w for w in words if w.startswith(("cache=", "experts="))), "")


def _fitted() -> set[tuple[str, str]]:
    return {
        (op, name) for op, (cases, _) in SHAPES.items() for _, name in _labelled(op)[: len(cases)]
    }


def calibrated(data: dict, dtype: str) -> calibration.Calibration:
    """Of the shapes that are not held out, in the format of `dtype`."""
    rows = [
        row
        for row in data["results"]
        if (row["op"], row["case"]) in _fitted() and _kind(row) == (row["op"], "")
    ]
    return calibration.of_results(data | {"results": rows}, IMPLEMENTATION, dtype, "check")


def _measure(op: str, parameters: dict, label: str, dtype: str, seconds: float, ceilings) -> dict:
    """A row of a result file. The fastest sample counts, which other work on the machine disturbs
    as little as any."""
    from ..bench import suite
    from ..bench.timing import interleaved

    case = suite.case(op, parameters, dtype)
    prepared = case.build()
    call = next(i for i in prepared.implementations if i.name == IMPLEMENTATION).prepare()
    prepared.check(call(), 1.0)
    ms = min(interleaved([call], seconds)[0])
    return dict(
        op=op,
        case=label,
        impl=IMPLEMENTATION,
        is_peer=False,
        dtype=dtype,
        threads=ceilings.threads,
        ms=ms,
        mad=0.0,
        flops=case.cost.flops + case.cost.vector_flops,
        vector_flops=case.cost.vector_flops,
        bytes=case.cost.bytes,
        exps=case.cost.exps,
        tiled=case.cost.tiled,
        of_limit=ceilings.milliseconds(case.cost, dtype) / ms,
        vs_best_peer=None,
        checked=True,
    )
