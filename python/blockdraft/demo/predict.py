"""What the roofline says of a pass, calibrated on this machine by passes of other layouts."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from ..bench import limits
from ..bench.step import workload
from ..choose import profile
from ..layout import BlockLayout
from ..models.zaya import ZayaModel
from ..roofline.calibration import Sample, fit
from ..roofline.step import pass_ops
from ..types import Request

# (K, P) of the layouts that calibrate
OTHERS = ((1, 1), (2, 1), (3, 2), (4, 1), (4, 4), (6, 2), (8, 3), (11, 2), (11, 4))
PASSES = 15
BETWEEN = "between"


def predicted(
    model: ZayaModel,
    requests: Sequence[Request],
    layout: BlockLayout,
    report: Callable[[int, int], None],
) -> dict[str, float]:
    """Microseconds of a pass over the requests by op, and of what is between the ops. No pass of
    this layout is measured: each op's efficiency and fixed cost come from the others."""
    ceilings = limits.of_cpu(torch.get_num_threads(), seconds=0.1, tries=3)
    others = [BlockLayout.autoregressive()]
    others += [BlockLayout(K, K + 1, P) for K, P in OTHERS]
    others = [other for other in others if other != layout]
    context = int(statistics.mean(len(r.prompt) + r.max_new_tokens / 2 for r in requests))

    def samples(of: BlockLayout, us: dict[str, float]) -> dict[str, Sample]:
        """Each op's least times, and its measured one; what is between them grows with rows."""
        found: dict[str, Sample] = {}
        memory: Counter[str] = Counter()
        arithmetic: Counter[str] = Counter()
        for op in pass_ops(workload(model.config, of, len(requests), context, "fp32")):
            memory[op.op] += op.cost.bytes / ceilings.read_bytes_per_s
            alone = op.cost.flops + op.cost.vector_flops
            exps = op.cost.exps / ceilings.exps_per_s
            arithmetic[op.op] += alone / ceilings.flops_per_s + exps
        memory[BETWEEN] = of.rows * len(requests)
        for op, seconds in memory.items():
            found[op] = Sample(str(of), us.get(op, 0.0), seconds, arithmetic[op])
        return found

    measured: dict[str, list[Sample]] = {}
    for done, other in enumerate(others, 1):
        for op, sample in samples(
            other, median_us(profile(model, requests, other, PASSES))
        ).items():
            if sample.ms > 0:
                measured.setdefault(op, []).append(sample)
        report(done, len(others))
    asked = samples(layout, {})
    return {op: fit(known).predict_ms(asked[op]) for op, known in measured.items()}


def median_us(passes: list[tuple[float, Counter[str]]]) -> dict[str, float]:
    """Microseconds by op, each the median of the passes."""
    names = {op for _, by_op in passes for op in by_op}
    found = {op: 1e6 * statistics.median(by_op[op] for _, by_op in passes) for op in names}
    rest = statistics.median(seconds - sum(by_op.values()) for seconds, by_op in passes)
    return {**found, BETWEEN: 1e6 * rest}
