"""fused_moe of ZAYA1-8B: 16 experts of 2048, hidden 2048, top-1, uniform routing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from .. import ops
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from .case import Implementation, Normal, Prepared, backends

EXPERTS, HIDDEN, INNER = 16, 2048, 2048
Run = Callable[[], torch.Tensor]


def cases(quick: bool) -> list[dict[str, Any]]:
    return [dict(T=64)] if quick else [dict(T=t) for t in (1, 16, 64, 272, 1024)]


def routing(rows: int) -> torch.Tensor:
    """The expert of each row, the same in every run."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(EXPERTS, (rows, 1), generator=generator).int()


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    rows = parameters["T"]
    return costs.fused_moe(rows, len(routing(rows).unique()), HIDDEN, INNER, itemsize)


@dataclass(frozen=True)
class Inputs:
    x: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def inputs(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Inputs:
    T = parameters["T"]
    normal = Normal(dtype, device)
    return Inputs(
        normal(T, HIDDEN),
        routing(T).to(device),
        torch.rand(T, 1, generator=normal.generator).to(device),
        normal(EXPERTS, 2 * INNER, HIDDEN, scale=HIDDEN**-0.5),
        normal(EXPERTS, HIDDEN, INNER, scale=INNER**-0.5),
    )


def by_expert(i: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows sorted by expert, and where each expert's begin."""
    experts = i.experts[:, 0].long()
    counts = torch.bincount(experts, minlength=EXPERTS)
    offsets = torch.cat([experts.new_zeros(1), counts.cumsum(0)])
    return experts.argsort(stable=True), offsets.int()


def loop(i: Inputs, first: Callable, second: Callable) -> Run:
    """Rows of each expert through `first(e, rows)` and `second(e, rows)`, gathered and scattered by
    index."""

    def run() -> torch.Tensor:
        order, offsets = by_expert(i)
        bounds = offsets.tolist()
        y = torch.zeros_like(i.x)
        for e in range(EXPERTS):
            token = order[bounds[e] : bounds[e + 1]]
            if len(token):
                gate, up = first(e, i.x.index_select(0, token)).chunk(2, -1)
                out = second(e, F.silu(gate) * up) * i.weights[token]
                y.index_copy_(0, token, out.to(i.x.dtype))
        return y

    return run


def select(i: Inputs) -> Run:
    return loop(
        i, lambda e, rows: F.linear(rows, i.gate_up[e]), lambda e, rows: F.linear(rows, i.down[e])
    )


def upcast(i: Inputs) -> Run:
    return loop(
        i,
        lambda e, rows: F.linear(rows.float(), i.gate_up[e].float()),
        lambda e, rows: F.linear(rows.float(), i.down[e].float()),
    )


def prepacked(i: Inputs) -> Run:
    pack = torch.ops.mkldnn._reorder_linear_weight
    product = torch.ops.mkldnn._linear_pointwise
    rows_each = max(len(i.x) // EXPERTS, 1)
    first = [pack(weight, rows_each) for weight in i.gate_up]
    second = [pack(weight, rows_each) for weight in i.down]
    return loop(
        i,
        lambda e, rows: product(rows, first[e], None, "none", [], ""),
        lambda e, rows: product(rows.contiguous(), second[e], None, "none", [], ""),
    )


def grouped(i: Inputs) -> Run:
    first = i.gate_up.transpose(1, 2)
    second = i.down.transpose(1, 2)

    def run() -> torch.Tensor:
        order, offsets = by_expert(i)
        rows = i.x.index_select(0, order)
        gate, up = torch._grouped_mm(rows, first, offs=offsets[1:]).chunk(2, -1)
        result = torch._grouped_mm(F.silu(gate) * up, second, offs=offsets[1:]) * i.weights[order]
        return torch.empty_like(i.x).index_copy_(0, order, result.to(i.x.dtype))

    return run


def transformers(i: Inputs, name: str) -> Run:
    from transformers import ZayaConfig
    from transformers.models.zaya.modeling_zaya import ZayaExperts

    config = ZayaConfig(
        num_hidden_layers=1,
        num_experts=EXPERTS,
        hidden_size=HIDDEN,
        moe_intermediate_size=INNER,
    )
    config._experts_implementation = name
    with torch.device("meta"):
        module = ZayaExperts(config)
    module.gate_up_proj = torch.nn.Parameter(i.gate_up, requires_grad=False)
    module.down_proj = torch.nn.Parameter(i.down, requires_grad=False)
    index = i.experts.long()
    scale = i.weights.to(i.x.dtype)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return module(i.x, index, scale)

    return run


def peers(i: Inputs) -> list[Implementation]:
    names = ["eager", "grouped_mm"]
    if len(i.x) <= 64:
        names.append("batched_mm")  # it copies the weights for every token
    found = [
        Implementation(f"transformers {name}", lambda name=name: transformers(i, name))
        for name in names
    ] + [
        Implementation("torch._grouped_mm", lambda: grouped(i)),
        Implementation("index_select loop", lambda: select(i)),
        Implementation("loop upcast to fp32", lambda: upcast(i)),
    ]
    if i.x.device.type == "cpu":
        found.append(Implementation("oneDNN prepacked loop", lambda: prepacked(i)))
    return found


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    i = inputs(parameters, dtype, device)
    out = torch.empty_like(i.x)

    def ours(backend: str) -> torch.Tensor:
        return ops.fused_moe(i.x, i.experts, i.weights, i.gate_up, i.down, out=out, backend=backend)

    @cache
    def expected() -> torch.Tensor:
        result = torch.zeros(i.x.shape, device=device)
        for e in range(EXPERTS):
            token = (i.experts[:, 0] == e).nonzero()[:, 0]
            gate, up = F.linear(i.x[token].float(), i.gate_up[e].float()).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, i.down[e].float())
            result[token] = y * i.weights[token]
        return result

    return Prepared(
        backends("fused_moe", ours, out) + peers(i),
        lambda y, slack: assert_close(y, expected(), dtype, slack=slack),
    )
