"""ZAYA's router: down projection, exponential depth averaging, a three-layer MLP, the best of E
experts and skip."""

import torch
import torch.nn.functional as F


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
    top_k: int = 1,
):
    """weights [T,k] and skip_prob [T] in fp32, experts [T,k] int32, state [T,R]. The state is
    rounded to hidden's dtype before it is used, as the next layer will see it."""
    state = F.linear(hidden.float(), down_weight.float(), down_bias.float())
    if prev_state is not None:
        state = state + prev_state.float() * eda_scale.float()
    state = state.to(hidden.dtype)
    x = F.rms_norm(state.float(), state.shape[-1:], norm_weight.float(), eps)
    x = F.gelu(F.linear(x, fc1_weight.float(), fc1_bias.float()))
    x = F.gelu(F.linear(x, fc2_weight.float(), fc2_bias.float()))
    prob = F.linear(x, out_weight.float()).softmax(-1)
    biased = prob + balancing_bias.float()
    choice = biased.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen = prob.gather(1, choice)
    dead = torch.zeros_like(choice[:, :1]).bool() if live is None else ~live.bool()[:, None]
    skipped = choice == len(out_weight) - 1
    weights = torch.where(skipped | dead, 0.0, chosen)
    experts = torch.where(skipped | dead, -1, choice).int()
    skip_prob = torch.where(skipped & ~dead, chosen, 0.0).sum(-1)
    return weights, experts, skip_prob, state
