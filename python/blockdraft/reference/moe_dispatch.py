"""Group (token, choice) pairs by expert."""

import torch


def moe_dispatch(experts, num_experts: int):
    """order [T*k] int32: flat pair indices, stably sorted by expert, then -1; offsets [E+1] int32:
    the range of each expert in it."""
    flat = experts.flatten().long()
    routed = flat >= 0
    key = torch.where(routed, flat, num_experts)
    order = key.sort(stable=True).indices
    counts = torch.bincount(key, minlength=num_experts + 1)[:num_experts]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    order = torch.where(torch.arange(len(flat), device=flat.device) < offsets[-1], order, -1)
    return order.int(), offsets.int()
