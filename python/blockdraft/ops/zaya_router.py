from typing import NamedTuple

import torch

from .. import reference
from ..contract import BOOL, F32, FLOATS, I32, Check
from ..registry import Op, Out, by_name
from . import _native, _triton


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
    top_k: int = 1,
    out: tuple[torch.Tensor, ...] | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Routing of ZAYA: down projection, depth averaging with the state of the layer below, RMSNorm,
    three-layer MLP with erf-GELU, softmax over E experts and skip (the last class), and the
    `top_k` classes of the greatest probability plus bias.

    hidden       bf16 | fp16 | fp32 [T,H]; prev_state [T,R], the state of the layer below, or None
    down_weight  [R,H], down_bias [R]; eda_scale [R] (None with prev_state None); norm_weight [R]
    fc1_weight, fc2_weight  [R,R], fc1_bias, fc2_bias [R]; out_weight [E+1,R]; balancing_bias [E+1]
    eps          of the RMSNorm; live bool [T] or None: a row that is not live gets expert -1
    out          (weights, experts, skip_prob, state), made if None
    Returns weights float32 [T,k], the probabilities (without bias) of the chosen classes, 0 for
    skip; experts int32 [T,k], best first, -1 for skip or a dead row (ties: the lowest index);
    skip_prob float32 [T], the probability of skip where it was chosen, else 0; state [T,R] of
    hidden's dtype. `fused_moe` takes the first three as they are. The kernels take weights of
    hidden's dtype and a balancing_bias of float32. Raises ValueError or TypeError. Source:
    transformers `models/zaya`, arXiv 2605.05365.
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
    classes = len(out_weight)
    check.need(1 <= top_k <= classes, "top_k", f"1 .. {classes}", top_k)
    check.dims["k"] = top_k
    inputs = dict(hidden=hidden, prev_state=prev_state)
    weights, experts, skip_prob, state = check.outputs(
        out, ("T k", "T k", "T", "T R"), (*F32, *I32, *F32, hidden.dtype), inputs
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


def _other_dtype(args: Args) -> str | None:
    """Why the kernels cannot read the weights, or None."""
    if args.balancing_bias.dtype != torch.float32:
        return f"balancing_bias is torch.float32, not {args.balancing_bias.dtype}"
    return _native.mixed(**dict(zip(args._fields[:11], args)))


# Floats of a workgroup's memory on a GPU: two rows of activations for each token that it routes
GPU_FLOATS = 12288
if _native.EXTENSION is not None:
    _native.agree(
        "a router's floats", getattr(_native.EXTENSION, "router_floats", None), GPU_FLOATS
    )


def _cpp_unsupported(args: Args) -> str | None:
    reason = _other_dtype(args)
    if reason or args.hidden.is_cpu:
        return reason
    for name, size in (("hidden", args.hidden.shape[1]), ("router", args.state.shape[1])):
        if size * args.hidden.element_size() % 16:
            return f"the {name} size is a multiple of 16 bytes, not {size} elements"
    if max(args.out_weight.shape) + 4 > GPU_FLOATS // 2:
        return f"at most {GPU_FLOATS // 2 - 4} router channels and classes"
    weights = dict(fc1_weight=args.fc1_weight, fc2_weight=args.fc2_weight)
    return _native.unaligned(
        hidden=args.hidden, down_weight=args.down_weight, out_weight=args.out_weight, **weights
    )


def _triton_unsupported(args: Args) -> str | None:
    classes, router = (1 << (n - 1).bit_length() for n in args.out_weight.shape)  # padded
    if max(classes, 16) * max(router, 16) * args.hidden.element_size() >= TRITON_BYTES:
        return (
            f"a matrix of {classes} classes by {router} channels has {TRITON_BYTES} bytes or more"
        )
    return _triton.cannot_compute(args.hidden) or _other_dtype(args)


TRITON_BYTES = 65536  # of the last layer's weights, which go through the LDS at once

OP = Op("zaya_router", Args)
_triton.register(OP, _triton_unsupported)
_native.register(OP, _cpp_unsupported)
OP.register(
    "reference",
    by_name(OP, reference.zaya_router, top_k=lambda args: args.weights.shape[1]),
)
