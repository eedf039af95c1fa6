from typing import NamedTuple

import torch

from .. import reference
from ..contract import BOOL, F32, FLOATS, I32, Check
from ..registry import Op, Out, by_name


def zaya_router(
    hidden: torch.Tensor,
    prev_state: torch.Tensor | None,
    down_weight: torch.Tensor,
    down_bias: torch.Tensor,
    eda_scale: torch.Tensor | None,
    norm_weight: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor,
    out_weight: torch.Tensor,
    balancing_bias: torch.Tensor,
    eps: float,
    live: torch.Tensor | None = None,
    *,
    out: tuple[torch.Tensor, ...] | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Top-1 routing of ZAYA: down projection, depth averaging with the previous layer's state,
    RMSNorm, three-layer MLP with erf-GELU, softmax over E experts and skip (the last class), and
    argmax of probability plus bias.

    hidden       bf16 | fp16 | fp32 [T,H]; prev_state [T,R], the state of the layer below, or None
    down_weight  [R,H], down_bias [R]; eda_scale [R] (None with prev_state None); norm_weight [R]
    fc1_weight, fc2_weight  [R,R], fc1_bias, fc2_bias [R]; out_weight [E+1,R]; balancing_bias [E+1]
    eps          of the RMSNorm; live bool [T] or None: a row that is not live gets expert -1
    Returns weights float32 [T], the probability (without bias) of the chosen expert, 0 for skip;
    experts int32 [T], -1 for skip or a dead row (ties: the lowest index); skip_prob float32 [T],
    the probability of skip where it was chosen, else 0; state [T,R], hidden's dtype. Raises
    ValueError or TypeError. Source: transformers `models/zaya`, arXiv 2605.05365.
    """
    check = Check("zaya_router")
    check.tensor("hidden", hidden, "T H")
    check.tensor("prev_state", prev_state, "T R", optional=True)
    check.need(
        prev_state is None or eda_scale is not None,
        "eda_scale",
        "a tensor, since prev_state is one",
        None,
    )
    for name, t, shape in (
        ("down_weight", down_weight, "R H"),
        ("down_bias", down_bias, "R"),
        ("eda_scale", eda_scale, "R"),
        ("norm_weight", norm_weight, "R"),
        ("fc1_weight", fc1_weight, "R R"),
        ("fc1_bias", fc1_bias, "R"),
        ("fc2_weight", fc2_weight, "R R"),
        ("fc2_bias", fc2_bias, "R"),
        ("out_weight", out_weight, "E+1 R"),
        ("balancing_bias", balancing_bias, "E+1"),
    ):
        check.tensor(name, t, shape, FLOATS, optional=name == "eda_scale")
    check.tensor("live", live, "T", BOOL, optional=True)
    inputs = dict(hidden=hidden, prev_state=prev_state)
    weights, experts, skip_prob, state = check.outputs(
        out, ("T", "T", "T", "T R"), (*F32, *I32, *F32, hidden.dtype), inputs
    )
    args = Args(
        hidden=hidden,
        prev_state=prev_state,
        down_weight=down_weight,
        down_bias=down_bias,
        eda_scale=eda_scale,
        norm_weight=norm_weight,
        fc1_weight=fc1_weight,
        fc1_bias=fc1_bias,
        fc2_weight=fc2_weight,
        fc2_bias=fc2_bias,
        out_weight=out_weight,
        balancing_bias=balancing_bias,
        eps=eps,
        live=live,
        weights=weights,
        experts=experts,
        skip_prob=skip_prob,
        state=state,
    )
    OP(backend, args)
    return weights, experts, skip_prob, state


class Args(NamedTuple):
    hidden: torch.Tensor
    prev_state: torch.Tensor | None
    down_weight: torch.Tensor
    down_bias: torch.Tensor
    eda_scale: torch.Tensor | None
    norm_weight: torch.Tensor
    fc1_weight: torch.Tensor
    fc1_bias: torch.Tensor
    fc2_weight: torch.Tensor
    fc2_bias: torch.Tensor
    out_weight: torch.Tensor
    balancing_bias: torch.Tensor
    eps: float
    live: torch.Tensor | None
    weights: Out
    experts: Out
    skip_prob: Out
    state: Out


OP = Op("zaya_router", Args)
OP.register("reference", by_name(OP, reference.zaya_router))
