"""SwiGLU experts over routed rows."""

import torch
import torch.nn.functional as F

from .dequantize import dequantize
from .moe_dispatch import moe_dispatch


def fused_moe(
    x,
    experts,
    weights,
    gate_up,
    down,
    gate_up_scale=None,
    down_scale=None,
    skip_prob=None,
    skip: str = "zero",
):
    """y [T,H] in fp32: the sum over a row's k choices of weight * down(silu(gate) * up). A row
    without experts yields 0 or x * skip_prob."""
    order, offsets = moe_dispatch(experts, len(gate_up))
    order = order.long()
    bounds = offsets.tolist()
    weights = weights.reshape(-1)
    y = torch.zeros_like(x, dtype=torch.float32)
    for e in range(len(gate_up)):
        pair = order[bounds[e] : bounds[e + 1]]
        if len(pair) == 0:
            continue
        token = pair // experts.shape[1]
        first = dequantize(gate_up[e], None if gate_up_scale is None else gate_up_scale[e])
        second = dequantize(down[e], None if down_scale is None else down_scale[e])
        gate, up = F.linear(x[token].float(), first).chunk(2, -1)
        out = F.linear(F.silu(gate) * up, second)
        y = y.index_add(0, token, out * weights[pair, None].float())
    if skip == "identity":
        y = y + x.float() * skip_prob.float()[:, None]
    return y
