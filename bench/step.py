"""Whole passes of a stack of ZAYA1-8B's layers, by op: what a user of a real checkpoint can expect
of this machine, beside what its ceilings allow."""

import json
import resource
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .. import ops
from ..batch import Batch
from ..decode import BlockDecoder
from ..layout import BlockLayout
from ..models.config import ZayaConfig
from ..models.weights import assemble, is_scale, shapes
from ..models.zaya import ZayaModel
from ..plan import profiling
from ..roofline.step import pass_ops
from ..roofline.workload import Workload, spread
from ..types import Request
from . import limits, results
from .case import DTYPES

BLOCK = 16
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# Zyphra's tokens a forward, lossless and with mixed logits
REPORTED = {"lossless": 4.6, "mixed": 7.7}
GLUE = "the rest"


@dataclass(frozen=True)
class Pass:
    """One layout on one batch. seconds: of each pass; by_op: of the median one's ops; limit_ms: by
    op, of this machine's ceilings; touched: experts of a layer that its rows go to."""

    batch: int
    context: int
    proposals: int | None  # None: plain decoding
    seconds: list[float]
    by_op: dict[str, float]
    limit_ms: dict[str, float]
    touched: float

    @property
    def name(self) -> str:
        return "1 row" if self.proposals is None else f"P = {self.proposals}"

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def random_model(layers: int, vocab: int, dtype: torch.dtype) -> ZayaModel:
    config = ZayaConfig(
        num_hidden_layers=layers, vocab_size=vocab, mask_token_id=vocab - 1, eos_token_id=0
    )
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes(config).items():
        # A long row of numbers that repeats: drawing billions takes longer than the measurement.
        size = torch.Size(shape).numel()
        part = torch.randn(min(size, 1 << 22), generator=generator)
        if is_scale(name):
            part = 1 + 0.1 * part
        else:
            part = part * (0.02 if len(shape) == 1 else shape[-1] ** -0.5)
        repeated = part.to(dtype).repeat(-(-size // len(part)))[:size]
        tensors[name] = repeated.view(shape)
    return ZayaModel(config, assemble(config, tensors))


def prepared(model: ZayaModel, layout: BlockLayout, size: int, context: int, room: int) -> Batch:
    """A batch that pretends to have `context` cached tokens in each request, and all drafts."""
    batch = BlockDecoder(model, layout).batch(size, context + room)
    batch.add(*(Request([b % 7], context + room - 1, seed=b) for b in range(size)))
    batch.cache.prefix_lens.fill_(context)
    return batch


def measure(batch: Batch, context: int, passes: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of each pass, and those of each op in the median one."""
    state, layout = batch.stage.state, batch.stage.layout
    found: list[tuple[float, Counter[str]]] = []
    for _ in range(passes + 1):
        state.prefix_lens.fill_(context)
        state.draft_len.fill_(layout.K)
        state.drafts.random_(batch.decoder.model.config.mask_token_id)
        state.branch.copy_(state.branches)
        with profiling() as seconds:
            began = time.perf_counter()
            batch.step()
            found.append((time.perf_counter() - began, seconds))
    found = sorted(found[1:], key=lambda each: each[0])  # the first one touches new memory
    total, by_op = found[len(found) // 2]
    return [each for each, _ in found], {**by_op, GLUE: total - sum(by_op.values())}


def touched_experts(batch: Batch) -> float:
    """Of a layer, on average, by one pass more. Random weights route most rows alike."""
    model, inputs = batch.decoder.model, batch.stage.state.inputs
    found = []

    def zaya_router(*arguments, **options):
        routed = ops.zaya_router(*arguments, **options)
        experts = routed[1]
        found.append(len(experts[experts >= 0].unique()))
        return routed

    model.ops = SimpleNamespace(**{**vars(ops), "zaya_router": zaya_router})
    try:
        model.forward(inputs.tokens, inputs.rows, batch.cache)
    finally:
        model.ops = ops
    return statistics.mean(found)


def workload(
    config: ZayaConfig, layout: BlockLayout, size: int, context: int, dtype: str
) -> Workload:
    """A pass, as the roofline takes it."""
    return Workload(
        config,
        batch=size,
        context_tokens=context,
        verify_rows=layout.V,
        mask_rows=layout.M,
        branches=spread(layout.P, layout.V),
        dtype=dtype,
        kv_dtype=dtype,
        accepted=0,
    )


def limit_ms(
    model: ZayaModel, layout: BlockLayout, size: int, context: int, dtype: str, ceilings
) -> dict[str, float]:
    work = workload(model.config, layout, size, context, SHORT[dtype])
    found: Counter[str] = Counter()
    for op in pass_ops(work):
        found[op.op] += ceilings.milliseconds(op.cost, dtype)
    return dict(found)


def run(
    batch: tuple[int, ...],
    context: tuple[int, ...],
    proposals: tuple[int, ...],
    layers: int,
    vocab: int,
    dtype: str,
    threads: int | None,
    passes: int,
    path: Path | None,
) -> None:
    console = Console(highlight=False)
    if threads:
        torch.set_num_threads(threads)
    ceilings = limits.of_cpu(torch.get_num_threads())
    model = random_model(layers, vocab, DTYPES[dtype])
    found = []
    layouts = [None, *proposals]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("passes", total=len(batch) * len(context) * len(layouts))
        for size in batch:
            for length in context:
                group = []
                for P in layouts:
                    layout = (
                        BlockLayout.autoregressive() if P is None else BlockLayout.tidar(BLOCK, P)
                    )
                    room = (passes + 2) * layout.V
                    each = prepared(model, layout, size, length, room)
                    seconds, by_op = measure(each, length, passes)
                    limit = limit_ms(model, layout, size, length, dtype, ceilings)
                    experts = touched_experts(each)
                    group.append(Pass(size, length, P, seconds, by_op, limit, experts))
                    progress.advance(task)
                    del each
                console.print(_table(group, layers, dtype))
                console.print(_rates(group), soft_wrap=True)
                console.print()
                found += group
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(f"{torch.get_num_threads()} threads; peak memory {peak:.1f} GiB")
    if path:
        data = dict(
            machine=results.machine("cpu"),
            limits=ceilings.to_json(),
            layers=layers,
            vocab=vocab,
            dtype=dtype,
            passes=[vars(each) for each in found],
        )
        path.write_text(json.dumps(data, indent=1) + "\n")


def _table(group: list[Pass], layers: int, dtype: str) -> Table:
    first = group[0]
    title = f"batch {first.batch}, context {first.context}, {layers} layers, {dtype}: ms"
    table = Table(title=title, title_justify="left", caption="ms, and of limit", box=None)
    table.add_column("op")
    for each in group:
        table.add_column(each.name, justify="right")
    ops = sorted({op for each in group for op in each.by_op}, key=lambda op: op == GLUE)
    for op in ops:
        table.add_row(op, *(_cell(1e3 * e.by_op.get(op, 0), e.limit_ms.get(op, 0)) for e in group))
    totals = (_cell(1e3 * e.median, sum(e.limit_ms.values())) for e in group)
    table.add_row("pass", *totals, style="bold")
    return table


def _cell(ms: float, limit: float) -> str:
    if ms == 0:
        return ""
    return f"{ms:.2f} {limit / ms:5.2f}" if limit else f"{ms:.2f}      "


def _rates(group: list[Pass]) -> str:
    plain, *blocks = group
    lines = [f"1 row: {plain.batch / plain.median:.1f} tokens/s of this stack"]
    for each in blocks:
        if each.proposals == 0:
            continue
        rates = ", ".join(
            f"{tokens} tokens a pass ({name}): {tokens * plain.median / each.median:.2f}x"
            for name, tokens in REPORTED.items()
        )
        lines.append(f"{each.name}: {rates}; breaks even at {each.median / plain.median:.2f}")
    return "\n".join(lines)
