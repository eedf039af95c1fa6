"""ZAYA's router: down projection, exponential depth averaging, a three-layer MLP, top-1 of E
experts or skip."""

import torch
import torch.nn.functional as F

from .argmax import lowest_argmax


def zaya_router(
    hidden,
    prev_state,
    down_weight,
    down_bias,
    eda_scale,
    norm_weight,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    out_weight,
    balancing_bias,
    eps: float,
    live=None,
):
    """weights [T], experts [T] int32, skip_prob [T], state [T,R]; all but experts are fp32."""
    state = F.linear(hidden.float(), down_weight.float(), down_bias.float())
    if prev_state is not None:
        state = state + prev_state.float() * eda_scale.float()
    x = state * torch.rsqrt(state.pow(2).mean(-1, keepdim=True) + eps) * norm_weight.float()
    x = F.gelu(F.linear(x, fc1_weight.float(), fc1_bias.float()))
    x = F.gelu(F.linear(x, fc2_weight.float(), fc2_bias.float()))
    prob = F.linear(x, out_weight.float()).softmax(-1)
    biased = prob.detach() + balancing_bias.float()
    choice = lowest_argmax(biased)
    chosen = prob.gather(1, choice[:, None])[:, 0]
    skipped = choice == len(out_weight) - 1
    dead = torch.zeros_like(skipped) if live is None else ~live.bool()
    experts = torch.where(skipped | dead, -1, choice).int()
    zero = torch.zeros_like(chosen)
    return (
        torch.where(skipped | dead, zero, chosen),
        experts,
        torch.where(skipped & ~dead, chosen, zero),
        state,
    )
