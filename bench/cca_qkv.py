"""cca_qkv on causal chunks without a prefix, as transformers' modules support them. The rows are
already projected."""

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

HQ, HK, DIM, ROTARY = 8, 2, 128, 64
C, HALF = (HQ + HK) * DIM, HK * DIM // 2


def cases(quick: bool) -> list[dict[str, Any]]:
    if quick:
        return [dict(B=8, rows=64)]
    return [dict(B=b, rows=r) for b in (1, 8, 32) for r in (16, 64, 272)] + [dict(B=1, rows=1024)]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    rows = parameters["B"] * parameters["rows"]
    return costs.cca_qkv(rows, HQ, HK, DIM, 2, 2, itemsize)


class Columns(torch.nn.Module):
    """Replaces a projection by columns of the input, which already hold its result."""

    def __init__(self, start: int, stop: int):
        super().__init__()
        self.start = start
        self.stop = stop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., self.start : self.stop]


@dataclass(frozen=True)
class Inputs:
    x: torch.Tensor  # all projections of a row, concatenated
    weights: dict[str, torch.Tensor]
    cos_sin: torch.Tensor
    rows: Rows

    def run(self, backend: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        projections = self.x.to(dtype).split([C, HALF, HALF], 1)
        weights = [w.to(dtype) for w in self.weights.values()]
        return ops.cca_qkv(*projections, *weights, self.cos_sin, self.rows, backend=backend)


def weights_of(normal: Normal) -> dict[str, torch.Tensor]:
    return dict(
        conv0_weight=normal(C, 1, 2, scale=0.5),
        conv0_bias=normal(C, scale=0.1),
        conv1_weight=normal(C, DIM, 2, scale=DIM**-0.5),
        conv1_bias=normal(C, scale=0.1),
        temp=1 + normal(HK, scale=0.1),
    )


def chunks(parameters: dict[str, Any], device: str) -> tuple[torch.Tensor, Rows]:
    """cos_sin of their positions, and the rows."""
    batch, rows = parameters["B"], parameters["rows"]
    frequency = 5e6 ** -(torch.arange(0, ROTARY, 2) / ROTARY)
    angle = torch.arange(rows, dtype=torch.float)[:, None] * frequency
    cos_sin = torch.cat([angle.cos(), angle.sin()], 1).to(device)
    prefix = torch.zeros(batch, dtype=torch.int32, device=device)
    return cos_sin, Rows.prefill(prefix, [rows] * batch, 0)


def inputs(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Inputs:
    normal = Normal(dtype, device)
    weights = weights_of(normal)
    x = normal(parameters["B"] * parameters["rows"], C + 2 * HALF)
    return Inputs(x, weights, *chunks(parameters, device))


def load(cca: torch.nn.Module, norm: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Into transformers' modules."""
    for conv, name in ((cca.conv_qk_depthwise, "conv0"), (cca.conv_qk_grouped, "conv1")):
        conv.weight.data = weights[f"{name}_weight"]
        conv.bias.data = weights[f"{name}_bias"]
    norm.temp.data = weights["temp"]


def transformers_modules(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Callable:
    from transformers import ZayaConfig
    from transformers.models.zaya.modeling_zaya import (
        ZayaCCAProjection,
        ZayaQKNorm,
        apply_rotary_pos_emb,
    )

    config = ZayaConfig(num_hidden_layers=1)
    cca = ZayaCCAProjection(config, 0).to(dtype)
    norm = ZayaQKNorm(config).to(dtype)
    cca.hidden_size = C + 2 * HALF
    cca.q_proj = Columns(0, HQ * DIM)
    cca.k_proj = Columns(HQ * DIM, C)
    cca.v_proj_current = Columns(C, C + HALF)
    cca.v_proj_delayed = Columns(C + HALF, C + 2 * HALF)
    load(cca, norm, weights)

    def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = cca(x, None)
        q, k = norm(q, k)
        return *apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2), v

    return run


def transformers(data: Inputs, compiled: bool) -> Callable[[], tuple[torch.Tensor, ...]]:
    dtype, batch = data.x.dtype, len(data.rows.prefix_lens)
    run = transformers_modules(data.weights, dtype)
    if compiled:
        torch._dynamo.reset()  # which otherwise gives up after a few sizes
        run = torch.compile(run, dynamic=False)
    cos, sin = (t.to(dtype).repeat(1, 2)[None] for t in data.cos_sin.chunk(2, 1))
    hidden = data.x.unflatten(0, (batch, -1))

    def call() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return tuple(t.flatten(0, 1) for t in run(hidden, cos, sin))

    call()
    return call


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    data = inputs(parameters, dtype, device)

    @cache
    def expected() -> tuple[torch.Tensor, ...]:
        return data.run("reference", torch.float32)

    def check(result: tuple[torch.Tensor, ...], slack: float) -> None:
        for name, got, want in zip("qkv", result, expected()):
            assert_close(got, want, dtype, name, slack)

    peers = [
        Implementation("transformers", lambda: transformers(data, compiled=False)),
        Implementation("transformers compiled", lambda: transformers(data, compiled=True)),
    ]
    return Prepared(backends("cca_qkv", lambda name: data.run(name, dtype)) + peers, check)
