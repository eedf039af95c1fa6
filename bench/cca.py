"""cca_qkv on fresh causal chunks, the case that transformers' modules cover, from already projected
rows."""

from types import SimpleNamespace

import torch

from .. import ops
from ..roofline import costs
from ..testing import assert_close
from ..types import Rows
from .rows import DTYPES, Implementation, Row, backends

HQ, HK, DIM, ROTARY = 8, 2, 128, 64
C, HALF = (HQ + HK) * DIM, HK * DIM // 2


def cases(quick):
    return (
        [dict(B=8, rows=64)]
        if quick
        else [dict(B=b, rows=r) for b in (1, 8, 32) for r in (16, 64, 272)]
    )


class Columns(torch.nn.Module):
    """Stands for a projection whose result is already there, as columns of the input."""

    def __init__(self, start, stop):
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x):
        return x[..., self.start : self.stop]


def transformers_modules(weights, dtype):
    from transformers import ZayaConfig
    from transformers.models.zaya.modeling_zaya import (
        ZayaCCAProjection,
        ZayaQKNorm,
        apply_rotary_pos_emb,
    )

    config = ZayaConfig(num_hidden_layers=1)
    cca, norm = ZayaCCAProjection(config, 0).to(dtype), ZayaQKNorm(config).to(dtype)
    cca.hidden_size = C + 2 * HALF
    cca.q_proj, cca.k_proj = Columns(0, HQ * DIM), Columns(HQ * DIM, C)
    cca.v_proj_current, cca.v_proj_delayed = Columns(C, C + HALF), Columns(C + HALF, C + 2 * HALF)
    for conv, name in ((cca.conv_qk_depthwise, "conv0"), (cca.conv_qk_grouped, "conv1")):
        conv.weight.data, conv.bias.data = weights[f"{name}_weight"], weights[f"{name}_bias"]
    norm.temp.data = weights["temp"]

    def run(x, cos, sin):
        q, k, v = cca(x, None)
        q, k = norm(q, k)
        return *apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2), v

    return run


def build(case, dtype, device):
    B, R = case["B"], case["rows"]
    generator = torch.Generator().manual_seed(0)

    def randn(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(DTYPES[dtype]).to(device)

    weights = dict(
        conv0_weight=randn(C, 1, 2, scale=0.5),
        conv0_bias=randn(C, scale=0.1),
        conv1_weight=randn(C, DIM, 2, scale=DIM**-0.5),
        conv1_bias=randn(C, scale=0.1),
        temp=1 + randn(HK, scale=0.1),
    )
    x = randn(B * R, C + 2 * HALF)
    angle = torch.arange(R, dtype=torch.float)[:, None] * 5e6 ** -(
        torch.arange(0, ROTARY, 2) / ROTARY
    )
    cos_sin = torch.cat([angle.cos(), angle.sin()], 1).to(device)
    rows = Rows.prefill(torch.zeros(B, dtype=torch.int32, device=device), [R] * B, 0)

    def mine(backend):
        return ops.cca_qkv(
            *x.split([C, HALF, HALF], 1), *weights.values(), cos_sin, rows, backend=backend
        )

    def peer(compiled):
        def prepare():
            run = transformers_modules(weights, x.dtype)
            run = torch.compile(run, dynamic=False) if compiled else run
            cos, sin = (
                f.cos().to(x.dtype) if f is angle else f for f in (angle, angle.sin().to(x.dtype))
            )
            cos, sin = (t.repeat(1, 2)[None].to(device) for t in (cos, sin))
            hidden = x.unflatten(0, (B, R))

            def call():
                with torch.no_grad():
                    return tuple(t.flatten(0, 1) for t in run(hidden, cos, sin))

            call()
            return call

        return prepare

    wide = SimpleNamespace(x=x.float(), weights={name: w.float() for name, w in weights.items()})
    expected = ops.cca_qkv(
        *wide.x.split([C, HALF, HALF], 1),
        *wide.weights.values(),
        cos_sin,
        rows,
        backend="reference",
    )

    def check(result, slack):
        for name, got, want in zip("qkv", result, expected):
            assert_close(got, want, x.dtype, name, slack)

    peers = [
        Implementation("transformers", peer(False)),
        Implementation("transformers compiled", peer(True)),
    ]
    cost = costs.cca_qkv(B * R, HQ, HK, DIM, 2, 2, x.element_size())
    return Row("cca", case, dtype, cost, backends("cca_qkv", mine) + peers, check)
