"""What lower precision costs: the perplexity of held-out text, and the tokens of a forward."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.progress import Progress
from rich.table import Table

from .. import BlockDecoder, BlockLayout, Rows
from ..data import TINY
from ..models.checkpoint import read
from ..models.config import ZayaConfig
from ..models.quantize import cache_format, quantized
from ..models.weights import assemble
from ..models.zaya import ZayaModel
from .completions import Completions

# name: format of the experts, whether keys and values are cached in fp8
FORMATS = {
    "bf16": (None, False),
    "fp8 K/V": (None, True),
    "fp8 experts": ("fp8", False),
    "MXFP4 experts": ("mxfp4", False),
    "MXFP4, fp8 K/V": ("mxfp4", True),
}
PIECE, CHUNK = 512, 16  # bytes of text scored together; of a pass, which reads the others cached


class Point(NamedTuple):
    """One format: kB of the experts, bytes of a cached token, perplexity of a byte, tokens of a
    forward with the likeliest drafts and at temperature 1."""

    name: str
    experts_kb: float
    cached_bytes: int
    perplexity: float
    greedy: float
    sampled: float


def model_of(name: str, text: list[int]) -> ZayaModel:
    """The shipped model in bf16, with what FORMATS says; `text` sets the scales of its cache."""
    experts, low_cache = FORMATS[name]
    config, tensors = ZayaConfig.load(TINY), read(TINY, torch.bfloat16)
    if experts:
        tensors = quantized(tensors, experts)
    model = ZayaModel(config, assemble(config, tensors))
    if low_cache:
        model.cache_format = cache_format(model, text)
    return model


def perplexity(model: ZayaModel, source: bytes) -> float:
    """Of a byte of `source` under the autoregressive head, given up to PIECE before it: those of
    earlier passes are read from the cache."""
    pieces = torch.tensor(list(source[: len(source) // PIECE * PIECE])).view(-1, PIECE)
    cache = model.new_cache(len(pieces), PIECE)
    for request in range(len(pieces)):
        cache.open(request, PIECE)
    nats = []
    for start in range(0, PIECE, CHUNK):
        rows = Rows.prefill(cache.prefix_lens, [CHUNK] * len(pieces), PIECE)
        hidden = model.forward(pieces[:, start : start + CHUNK].flatten(), rows, cache)
        model.commit(rows.draft_len, rows, cache)
        logits = model.logits(hidden).unflatten(0, (len(pieces), CHUNK)).float()
        following = pieces[:, start + 1 : start + CHUNK + 1]
        logits = logits[:, : following.shape[1], : model.config.num_valid_vocab]
        nats.append(F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none"))
    return math.exp(torch.cat(nats).mean())


def compare(
    source: bytes, texts: list[list[int]], tokens: int, layout: BlockLayout, progress: Progress
) -> list[Point]:
    points = []
    for name in FORMATS:
        model = model_of(name, [token for text in texts for token in text])
        decoder = BlockDecoder(model, layout)
        runs = [Completions(name, decoder, texts, tokens, heat) for heat in (0.0, 1.0)]
        for run in runs:
            run.extend(1.0, progress)
        cache = model.new_cache(1, 16, 16)
        points.append(
            Point(
                name,
                expert_bytes(model) / 1e3,
                (cache.k.nbytes + cache.v.nbytes) // 16,
                perplexity(model, source),
                *(run.rate for run in runs),
            )
        )
    return points


def expert_bytes(model: ZayaModel) -> int:
    return sum(
        part.nbytes
        for layer in model.weights.layers
        for part in (layer.gate_up, layer.down, *layer.expert_scales.values())
    )


def table(points: list[Point], layout: BlockLayout) -> Table:
    out = Table(
        box=None,
        title=f"K = {layout.K}, P = {layout.P}, M = {layout.M}",
        caption="K/V of a token; perplexity of a byte of the file; tokens a forward",
        title_justify="left",
        caption_justify="left",
    )
    out.add_column("")
    for name in ("experts kB", "K/V bytes", "perplexity", "", "greedy", "T = 1"):
        out.add_column(name, justify="right")
    first = points[0]
    for point in points:
        out.add_row(
            point.name,
            f"{point.experts_kb:.0f}",
            str(point.cached_bytes),
            f"{point.perplexity:.4f}",
            f"{point.perplexity / first.perplexity - 1:+.2%}",
            f"{point.greedy:.2f}",
            f"{point.sampled:.2f}",
        )
    return out
