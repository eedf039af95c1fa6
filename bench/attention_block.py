"""The whole attention of a ZAYA1-8B layer on causal chunks without a prefix: projections, cca_qkv,
block_attention, output projection."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .. import ops
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from ..types import Rows
from .case import Implementation, Normal, Prepared, backends
from .cca_qkv import DIM, HALF, HK, HQ, C, chunks, load, weights_of

HIDDEN = 2048
WIDTH = C + 2 * HALF  # of the projection


def cases(quick: bool) -> list[dict[str, Any]]:
    if quick:
        return [dict(B=2, rows=64)]
    return [dict(B=b, rows=r) for b, r in ((1, 16), (1, 64), (8, 64), (1, 1024))]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    batch, rows = parameters["B"], parameters["rows"]
    attention = costs.block_attention(0, rows, (), 1, HQ, HK, DIM, itemsize)
    return (
        costs.linear(batch * rows, HIDDEN, WIDTH, itemsize)
        + costs.cca_qkv(batch * rows, HQ, HK, DIM, 2, 2, itemsize)
        + batch * attention
        + costs.linear(batch * rows, HQ * DIM, HIDDEN, itemsize)
    )


@dataclass(frozen=True)
class Inputs:
    hidden: torch.Tensor
    projection: torch.Tensor
    output: torch.Tensor
    convolutions: dict[str, torch.Tensor]  # by cca_qkv's names, and temp
    cos_sin: torch.Tensor
    rows: Rows

    def run(self, backend: str, dtype: torch.dtype) -> torch.Tensor:
        projected = ops.linear(self.hidden.to(dtype), self.projection.to(dtype))
        weights = [w.to(dtype) for w in self.convolutions.values()]
        split = projected.split([C, HALF, HALF], 1)
        q, k, v = ops.cca_qkv(*split, *weights, self.cos_sin, self.rows, backend=backend)
        out = ops.block_attention(q, k, v, None, None, None, self.rows, backend=backend)
        return ops.linear(out.flatten(1), self.output.to(dtype))


def inputs(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Inputs:
    normal = Normal(dtype, device)
    hidden = normal(parameters["B"] * parameters["rows"], HIDDEN)
    projection = normal(WIDTH, HIDDEN, scale=HIDDEN**-0.5)
    output = normal(HIDDEN, HQ * DIM, scale=(HQ * DIM) ** -0.5)
    return Inputs(hidden, projection, output, weights_of(normal), *chunks(parameters, device))


def transformers(data: Inputs, compiled: bool) -> Callable[[], torch.Tensor]:
    from transformers import ZayaConfig
    from transformers.models.zaya.modeling_zaya import ZayaAttention

    config = ZayaConfig(num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    dtype, batch = data.hidden.dtype, len(data.rows.prefix_lens)
    module = ZayaAttention(config, 0).to(data.hidden).eval()
    cca = module.qkv_proj
    sizes = [HQ * DIM, HK * DIM, HALF, HALF]
    names = ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed")
    for name, weight in zip(names, data.projection.split(sizes)):
        getattr(cca, name).weight.data = weight
    load(cca, module.qk_norm, data.convolutions)
    module.o_proj.weight.data = data.output
    angles = tuple(t.to(dtype).repeat(1, 2)[None] for t in data.cos_sin.chunk(2, 1))
    hidden = data.hidden.unflatten(0, (batch, -1))
    if compiled:
        torch._dynamo.reset()  # which otherwise gives up after a few sizes
        module = torch.compile(module, dynamic=False)

    def call() -> torch.Tensor:
        with torch.no_grad():
            return module(hidden, position_embeddings=angles)[0].flatten(0, 1)

    call()
    return call


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    data = inputs(parameters, dtype, device)

    @cache
    def expected() -> torch.Tensor:
        return data.run("reference", torch.float32)

    def check(result: torch.Tensor, slack: float) -> None:
        # q, k, v, the attention and its output are rounded one after the other
        assert_close(result, expected(), dtype, "output", slack=4 * slack)

    peers = [
        Implementation("transformers", lambda: transformers(data, compiled=False)),
        Implementation("transformers compiled", lambda: transformers(data, compiled=True)),
    ]
    return Prepared(backends("cca_qkv", lambda name: data.run(name, dtype)) + peers, check)
