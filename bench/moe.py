"""fused_moe of ZAYA1-8B: 16 experts of 2048, hidden 2048, top-1, uniform routing."""

import torch
import torch.nn.functional as F

from .. import ops
from ..roofline import costs
from ..testing import assert_close
from .rows import DTYPES, Implementation, Row, backends

EXPERTS, HIDDEN, INNER = 16, 2048, 2048


def cases(quick):
    return [dict(T=64)] if quick else [dict(T=t) for t in (1, 16, 64, 272, 1024)]


def build(case, dtype, device):
    T = case["T"]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape, scale):
        return (scale * torch.randn(shape, generator=generator)).to(DTYPES[dtype]).to(device)

    x = randn(T, HIDDEN, scale=1.0)
    gate_up = randn(EXPERTS, 2 * INNER, HIDDEN, scale=HIDDEN**-0.5)
    down = randn(EXPERTS, HIDDEN, INNER, scale=INNER**-0.5)
    experts = torch.randint(EXPERTS, (T, 1), generator=generator).int().to(device)
    weights = torch.rand(T, 1, generator=generator).to(device)
    out = torch.empty_like(x)

    def mine(backend):
        return ops.fused_moe(x, experts, weights, gate_up, down, out=out, backend=backend)

    def by_expert():
        flat = experts[:, 0].long()
        offsets = torch.cat([flat.new_zeros(1), torch.bincount(flat, minlength=EXPERTS).cumsum(0)])
        return flat.argsort(stable=True), offsets.int()

    def loop(first, second):
        """Rows of each expert through `first(e, rows)` and `second(e, rows)`, gathered and
        scattered by index."""

        def run():
            order, offsets = by_expert()
            bounds, y = offsets.tolist(), torch.zeros_like(x)
            for e in range(EXPERTS):
                token = order[bounds[e] : bounds[e + 1]]
                if len(token):
                    gate, up = first(e, x.index_select(0, token)).chunk(2, -1)
                    y.index_copy_(
                        0, token, (second(e, F.silu(gate) * up) * weights[token]).to(x.dtype)
                    )
            return y

        return run

    def select():
        return loop(
            lambda e, rows: F.linear(rows, gate_up[e]), lambda e, rows: F.linear(rows, down[e])
        )

    def upcast():
        return loop(
            lambda e, rows: F.linear(rows.float(), gate_up[e].float()),
            lambda e, rows: F.linear(rows.float(), down[e].float()),
        )

    def prepacked():
        pack, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        packs = [
            [pack(w[e], max(T // EXPERTS, 1)) for e in range(EXPERTS)] for w in (gate_up, down)
        ]
        return loop(
            lambda e, rows: product(rows, packs[0][e], None, "none", [], ""),
            lambda e, rows: product(rows.contiguous(), packs[1][e], None, "none", [], ""),
        )

    def grouped():
        first, second = gate_up.transpose(1, 2), down.transpose(1, 2)

        def run():
            order, offsets = by_expert()
            rows = x.index_select(0, order)
            gate, up = torch._grouped_mm(rows, first, offs=offsets[1:]).chunk(2, -1)
            result = torch._grouped_mm(F.silu(gate) * up, second, offs=offsets[1:]) * weights[order]
            return torch.empty_like(x).index_copy_(0, order, result.to(x.dtype))

        return run

    def transformers(implementation):
        def prepare():
            from transformers import ZayaConfig
            from transformers.models.zaya.modeling_zaya import ZayaExperts

            config = ZayaConfig(
                num_hidden_layers=1,
                num_experts=EXPERTS,
                hidden_size=HIDDEN,
                moe_intermediate_size=INNER,
            )
            config._experts_implementation = implementation
            with torch.device("meta"):
                module = ZayaExperts(config)
            module.gate_up_proj, module.down_proj = (
                torch.nn.Parameter(w, requires_grad=False) for w in (gate_up, down)
            )
            index, scale = experts.long(), weights.to(x.dtype)

            def run():
                with torch.no_grad():
                    return module(x, index, scale)

            return run

        return prepare

    peers = [
        Implementation(f"transformers {name}", transformers(name))
        for name in ("eager", "grouped_mm", "batched_mm")
        if name != "batched_mm" or T <= 64
    ]  # it copies the weights for every token
    peers += [
        Implementation("torch._grouped_mm", grouped),
        Implementation("index_select loop", select),
        Implementation("loop upcast to fp32", upcast),
    ]
    if device == "cpu":
        peers.append(Implementation("oneDNN prepacked loop", prepacked))
    expected = torch.zeros(T, HIDDEN, device=device)
    for e in range(EXPERTS):
        token = (experts[:, 0] == e).nonzero()[:, 0]
        gate, up = F.linear(x[token].float(), gate_up[e].float()).chunk(2, -1)
        expected[token] = F.linear(F.silu(gate) * up, down[e].float()) * weights[token]
    cost = costs.fused_moe(T, len(experts.unique()), HIDDEN, INNER, x.element_size())
    return Row(
        "moe",
        case,
        dtype,
        cost,
        backends("fused_moe", mine, out) + peers,
        lambda y, slack: assert_close(y, expected, x.dtype, slack=slack),
    )
