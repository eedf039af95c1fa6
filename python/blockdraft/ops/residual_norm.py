from typing import NamedTuple

import torch

from .. import reference
from ..contract import F32, FLOATS, I32, Check
from ..registry import Op, Out, by_name
from . import _native, _triton


def residual_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    residual_scale: torch.Tensor | None = None,
    residual_bias: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
    with_stream: bool = True,
    out: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """RMSNorm of the residual stream after a block's output was added to it: the stream is
    (x + bias) * scale + (residual + residual_bias) * residual_scale. The first of a model gathers
    embeddings, and the last one the rows that are read.

    x            bf16 | fp16 | fp32 [N,H], the block's output
    weight       [H], of the norm; eps is added to the mean of squares
    scale, bias  [H] or None: 1 and 0; residual_scale, residual_bias likewise
    residual     float32 [N,H], the stream before, or None
    index        int32 [R], rows of x and residual to take, in 0 .. N-1; None: all
    with_stream  whether the stream is wanted (with `out`: if that has one)
    out          (norm [R,H], x's dtype; stream float32 [R,H] or None), made if None. They share no
                 memory with the inputs, but without `index` the stream may be `residual` itself
    Returns (norm, stream). Sums are fp32; the stream is rounded to x's dtype before the norm (as
    transformers does). The kernels take weights of x's dtype, and an H that is a multiple of 8.
    Raises ValueError or TypeError, before anything is written.
    """
    check = Check("residual_norm")
    check.tensor("x", x, "N H")
    check.tensor("weight", weight, "H", FLOATS)
    scales = dict(scale=scale, bias=bias)
    scales |= dict(residual_scale=residual_scale, residual_bias=residual_bias)
    for name, t in scales.items():
        check.tensor(name, t, "H", FLOATS, optional=True)
    check.tensor("residual", residual, "N H", F32, optional=True)
    check.tensor("index", index, "R", I32, optional=True)
    check.dims.setdefault("R", len(x))
    check.values("index", index, 0, len(x) - 1, f"0 .. {len(x) - 1}")
    inputs = dict(x=x, weight=weight, index=index, **scales)
    if out is not None:
        with_stream = len(out) == 2 and out[1] is not None
        out = out if with_stream else out[:1]
    in_place = out is not None and with_stream and out[1] is residual and index is None
    if not in_place:
        inputs["residual"] = residual
    dtypes = (x.dtype, torch.float32) if with_stream else (x.dtype,)
    outputs = check.outputs(out, ("R H",) * len(dtypes), dtypes, inputs)
    norm, stream = outputs if with_stream else (*outputs, None)
    args = Args(
        x=x,
        weight=weight,
        eps=eps,
        scale=scale,
        bias=bias,
        residual=residual,
        residual_scale=residual_scale,
        residual_bias=residual_bias,
        index=index,
        norm=norm,
        stream=stream,
    )
    OP(backend, args)
    return norm, stream


class Args(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    eps: float
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    residual_scale: torch.Tensor | None
    residual_bias: torch.Tensor | None
    index: torch.Tensor | None
    norm: Out
    stream: Out | None


def _vectors(args: Args) -> dict[str, torch.Tensor | None]:
    """Of the hidden size."""
    names = ("weight", "scale", "bias", "residual_scale", "residual_bias")
    return {name: getattr(args, name) for name in names}


def _other_weights(args: Args) -> str | None:
    return _native.mixed(x=args.x, **_vectors(args))


def _cpp_unsupported(args: Args) -> str | None:
    if args.x.shape[1] % 8:
        return f"the hidden size is a multiple of 8, not {args.x.shape[1]}"
    reason = _other_weights(args)
    if reason or args.x.is_cpu:
        return reason
    rows = dict(x=args.x, residual=args.residual, norm=args.norm, stream=args.stream)
    return _native.unaligned(**rows, **_vectors(args))


def _triton_unsupported(args: Args) -> str | None:
    return _triton.cannot_compute(args.x) or _other_weights(args)


OP = Op("residual_norm", Args)
_triton.register(OP, _triton_unsupported)
_native.register(OP, _cpp_unsupported)
OP.register("reference", by_name(OP, reference.residual_norm))
