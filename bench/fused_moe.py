"""fused_moe of ZAYA1-8B: 16 experts of 2048, hidden 2048, top-1. Uniform routing, or all rows to
one expert. Experts in fp8 or MXFP4 stand beside our own kernel and peers on the same numbers in the
dtype of the tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from .. import ops
from ..models.quantize import quantize_fp8, quantize_mxfp4
from ..reference.dequantize import dequantize
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from . import ggml
from .case import Implementation, Normal, Prepared, backends, unstored

EXPERTS, HIDDEN, INNER = 16, 2048, 2048
Run = Callable[[], torch.Tensor]
# How experts are stored: the function, and bytes of a weight with its share of the scales
STORED = {"fp8": (quantize_fp8, 1 + 4 / 128**2), "mxfp4": (quantize_mxfp4, 1 / 2 + 1 / 32)}


def cases(quick: bool) -> list[dict[str, Any]]:
    if quick:
        return [dict(T=64)]
    spread = [dict(T=t) for t in (1, 16, 64, 272, 1024)]
    one = [dict(T=t, to="one") for t in (16, 272)]
    return spread + one + [dict(T=t, experts=e) for e in STORED for t in (1, 16, 64, 272)]


def routing(parameters: dict[str, Any]) -> torch.Tensor:
    """The expert of each row, the same in every run."""
    rows = parameters["T"]
    if "to" in parameters:
        return torch.full((rows, 1), 5, dtype=torch.int32)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(EXPERTS, (rows, 1), generator=generator).int()


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    touched = len(routing(parameters).unique())
    _, stored = STORED.get(parameters.get("experts"), (None, None))
    return costs.fused_moe(parameters["T"], touched, HIDDEN, INNER, itemsize, stored)


@dataclass(frozen=True)
class Inputs:
    """gate_up and down are what the peers get, in x's dtype."""

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
        routing(parameters).to(device),
        torch.rand(T, 1, generator=normal.generator).to(device),
        normal(EXPERTS, 2 * INNER, HIDDEN, scale=HIDDEN**-0.5),
        normal(EXPERTS, HIDDEN, INNER, scale=INNER**-0.5),
    )


def stored(data: Inputs, parameters: dict[str, Any]) -> tuple[Inputs, dict[str, torch.Tensor]]:
    """The inputs with the weights as they are stored, and fused_moe's arguments for that."""
    plain = dict(gate_up=data.gate_up, down=data.down)
    if "experts" not in parameters:
        return data, plain
    store, _ = STORED[parameters["experts"]]
    given = {}
    for name, weight in plain.items():
        codes, scale = store(weight)
        given |= {name: codes, f"{name}_scale": scale}
        plain[name] = torch.stack(
            [dequantize(*expert).to(weight.dtype) for expert in zip(codes, scale)]
        )
    return replace(data, **plain), given


def by_expert(data: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows sorted by expert, and where the rows of each expert begin."""
    experts = data.experts[:, 0].long()
    bounds = torch.arange(EXPERTS + 1, device=experts.device)
    offsets = (experts < bounds[:, None]).sum(1)  # no bincount, which would wait for a GPU
    return experts.argsort(stable=True), offsets.int()


def loop(data: Inputs, first: Callable, second: Callable) -> Run:
    """Expert by expert: gathers its rows, applies `first(e, rows)` and `second(e, rows)`, and
    scatters the results."""

    def run() -> torch.Tensor:
        order, offsets = by_expert(data)
        bounds = offsets.tolist()
        y = torch.zeros_like(data.x)
        for e in range(EXPERTS):
            token = order[bounds[e] : bounds[e + 1]]
            if len(token):
                gate, up = first(e, data.x.index_select(0, token)).chunk(2, -1)
                out = second(e, F.silu(gate) * up) * data.weights[token]
                y.index_copy_(0, token, out.to(data.x.dtype))
        return y

    return run


def select(data: Inputs) -> Run:
    return loop(
        data,
        lambda e, rows: F.linear(rows, data.gate_up[e]),
        lambda e, rows: F.linear(rows, data.down[e]),
    )


def upcast(data: Inputs) -> Run:
    return loop(
        data,
        lambda e, rows: F.linear(rows.float(), data.gate_up[e].float()),
        lambda e, rows: F.linear(rows.float(), data.down[e].float()),
    )


def prepacked(data: Inputs) -> Run:
    pack = torch.ops.mkldnn._reorder_linear_weight
    product = torch.ops.mkldnn._linear_pointwise
    rows_each = max(len(data.x) // EXPERTS, 1)
    first = [pack(weight, rows_each) for weight in data.gate_up]
    second = [pack(weight, rows_each) for weight in data.down]
    return loop(
        data,
        lambda e, rows: product(rows, first[e], None, "none", [], ""),
        lambda e, rows: product(rows.contiguous(), second[e], None, "none", [], ""),
    )


def grouped(data: Inputs) -> Run:
    first = data.gate_up.transpose(1, 2)
    second = data.down.transpose(1, 2)

    def run() -> torch.Tensor:
        order, offsets = by_expert(data)
        rows = data.x.index_select(0, order)
        gate, up = torch._grouped_mm(rows, first, offs=offsets[1:]).chunk(2, -1)
        result = (
            torch._grouped_mm(F.silu(gate) * up, second, offs=offsets[1:]) * data.weights[order]
        )
        return torch.empty_like(data.x).index_copy_(0, order, result.to(data.x.dtype))

    return run


def transformers(data: Inputs, name: str) -> Run:
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
    module.gate_up_proj = torch.nn.Parameter(data.gate_up, requires_grad=False)
    module.down_proj = torch.nn.Parameter(data.down, requires_grad=False)
    index = data.experts.long()
    scale = data.weights.to(data.x.dtype)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return module(data.x, index, scale)

    return run


def vllm(data: Inputs) -> Run:
    from vllm.model_executor.layers.fused_moe import fused_experts

    index = data.experts.long()
    return lambda: fused_experts(data.x, data.gate_up, data.down, data.weights, index)


def aiter(data: Inputs) -> Run:
    from aiter.fused_moe import fused_moe
    from aiter.ops.shuffle import shuffle_weight

    first, second = (shuffle_weight(w, layout=(16, 16)) for w in (data.gate_up, data.down))
    return lambda: fused_moe(data.x, first, second, data.weights, data.experts)


def peers(data: Inputs) -> list[Implementation]:
    names = ["eager", "grouped_mm"]
    if len(data.x) <= 16:
        names.append("batched_mm")  # it copies the weights for every token
    found = [
        Implementation(f"transformers {name}", lambda name=name: transformers(data, name))
        for name in names
    ] + [
        Implementation("torch._grouped_mm", lambda: grouped(data)),
        Implementation("index_select loop", lambda: select(data)),
        Implementation("loop upcast to fp32", lambda: upcast(data)),
    ]
    if data.x.device.type == "cpu":
        found.append(Implementation("oneDNN prepacked loop", lambda: prepacked(data)))
        found.append(Implementation("ggml mul_mat_id", lambda: ggml.experts(**vars(data))))
    else:
        found.append(Implementation("vLLM fused_experts", lambda: vllm(data)))
        found.append(Implementation("AITER fused_moe", lambda: aiter(data)))
    return found


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    data, given = stored(inputs(parameters, dtype, device), parameters)
    out = torch.empty_like(data.x)

    def ours(backend: str, weights: dict[str, torch.Tensor] = given) -> torch.Tensor:
        return ops.fused_moe(
            data.x, data.experts, data.weights, **weights, out=out, backend=backend
        )

    @cache
    def expected() -> torch.Tensor:
        result = torch.zeros(data.x.shape, device=device)
        for e in range(EXPERTS):
            token = (data.experts[:, 0] == e).nonzero()[:, 0]
            gate, up = F.linear(data.x[token].float(), data.gate_up[e].float()).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, data.down[e].float())
            result[token] = y * data.weights[token]
        return result

    mine = backends("fused_moe", ours, out)
    if "experts" in parameters:
        plain = dict(gate_up=data.gate_up, down=data.down)
        mine.append(unstored("experts", dtype, lambda: ours("cpp", plain), out))
    return Prepared(
        mine + peers(data),
        lambda y, slack: assert_close(y, expected(), dtype, slack=slack),
    )
