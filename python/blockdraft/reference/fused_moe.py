"""SwiGLU experts over routed rows."""

import torch
import torch.nn.functional as F

from .moe_dispatch import moe_dispatch


def fused_moe(x, experts, weights, gate_up, down, skip_prob=None, skip: str = "zero"):
    """y [T,H] in fp32: the sum over a row's k choices of weight * down(silu(gate) * up). A row
    without experts yields 0 or x * skip_prob."""
    order, offsets = moe_dispatch(experts, len(gate_up))
    order, bounds, weights = order.long(), offsets.tolist(), weights.reshape(-1)
    y = torch.zeros_like(x, dtype=torch.float32)
    for e in range(len(gate_up)):
        pair = order[bounds[e] : bounds[e + 1]]
        if len(pair) == 0:
            continue
        token = pair // experts.shape[1]
        gate, up = F.linear(x[token].float(), gate_up[e].float()).chunk(2, -1)
        out = F.linear(F.silu(gate) * up, down[e].float())
        y = y.index_add(0, token, out * weights[pair, None].float())
    if skip == "identity":
        y = y + x.float() * skip_prob.float()[:, None]
    return y
