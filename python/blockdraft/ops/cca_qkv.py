from typing import NamedTuple

import torch

from .. import reference
from ..contract import FLOATS, I32, Check
from ..registry import InPlace, Op, Out, by_name
from ..types import Rows
from . import _native, _triton


def cca_qkv(
    qk: torch.Tensor,
    v_now: torch.Tensor,
    v_late: torch.Tensor,
    conv0_weight: torch.Tensor,
    conv0_bias: torch.Tensor,
    conv1_weight: torch.Tensor,
    conv1_bias: torch.Tensor,
    temp: torch.Tensor,
    cos_sin: torch.Tensor,
    rows: Rows,
    conv_state: torch.Tensor | None = None,
    late_state: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    late_start: torch.Tensor | None = None,
    norm_eps: float | None = None,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compressed convolutional attention, from projections to q, k, v; stores k and v of live
    verify rows in the cache.

    Each row is convolved with its ancestors: verify row i follows row i-1, row 0 follows the stored
    state, and the first mask row of a proposal of branch c follows verify row c-1. Then come the
    residual paths, the norm to sqrt(Dh), the product of keys and temp, and RoPE. Half of the value
    channels come from the row's parent. A request with prefix 0 starts from zeros, whatever is
    stored.

    qk           bf16 | fp16 | fp32 [T,C], C = (Hq+Hk)*Dh: projected queries, then keys; rows may be
                 strided
    v_now, v_late  [T,Hk*Dh/2], qk's dtype: projections for the token itself and for its successor
    conv0_weight [C,1,k0], conv0_bias [C]: depthwise; conv1_weight [C,Dh,k1], conv1_bias [C]: one
    group a head (torch Conv1d)
    temp         [Hk], key scale as it is applied: for a parameter that is its clamped logarithm,
                 the exponential of the clamped one
    cos_sin      float32 [positions,R]: cosines, then sines, R/2 each; rotates the first R channels
                 by halves
    conv_state   [S,k0+k1-2,C], oldest first; late_state [S,Hk*Dh/2]; slots int32 [B], -1: the
                 request has no stored state
    k_cache, v_cache, block_table  as in block_attention; None: nothing is stored
    k_scale, v_scale  as in block_attention, of caches of fp8: what is stored is divided by them,
                 rounded to nearest, and saturates; k and v are returned as they were stored, so
                 that decoding is lossless with respect to what is cached (exactly so if the
                 scales are powers of two)
    late_start   [Hk*Dh/2], delayed value of the first token (the projection's bias); None: 0
    norm_eps     added to the sum of squares; None: the norm is at least the epsilon of qk's dtype
                 instead (transformers)
    out          (q, k, v), made if None: [T,Hq,Dh], [T,Hk,Dh], [T,Hk,Dh], qk's dtype; 0 for dead
                 rows
    Returns (q, k, v). The kernels take all tensors but cos_sin in qk's dtype, and head dims that
    are multiples of 8. Raises ValueError or TypeError, before anything is written. Source: arXiv
    2510.04476.
    """
    check = Check("cca_qkv")
    check.tensor("qk", qk, "T C")
    check.tensor("temp", temp, "Hk")
    check.tensor("conv1_weight", conv1_weight, "C Dh k1")
    check.tensor("conv0_weight", conv0_weight, "C 1 k0")
    check.tensor("conv0_bias", conv0_bias, "C")
    check.tensor("conv1_bias", conv1_bias, "C")
    d = check.dims
    check.need(d["Hk"] > 0 and d["Dh"] > 0, "temp", "at least one KV head", d["Hk"])
    d["Hq"] = d["C"] // d["Dh"] - d["Hk"]
    check.need(
        d["C"] % d["Dh"] == 0 and d["Hq"] > 0 and d["Hq"] % d["Hk"] == 0,
        "qk",
        f"C = (Hq+Hk)*{d['Dh']} with Hq a multiple of Hk = {d['Hk']}",
        d["C"],
    )
    check.need(d["Hk"] * d["Dh"] % 2 == 0, "temp", "an even number of KV channels", d["Hk"])
    check.need(d["k0"] > 0, "conv0_weight", "a kernel of at least one token", 0)
    check.need(d["k1"] > 0, "conv1_weight", "a kernel of at least one token", 0)
    d["half"], d["depth"] = d["Hk"] * d["Dh"] // 2, d["k0"] + d["k1"] - 2
    check.tensor("v_now", v_now, "T half", (qk.dtype,))
    check.tensor("v_late", v_late, "T half", (qk.dtype,))
    check.tensor("late_start", late_start, "half", FLOATS, optional=True)
    check.rows(rows, len(qk))
    check.angles("cos_sin", cos_sin, rows)
    given = [t is not None for t in (conv_state, late_state, slots)]
    check.need(
        all(given) or not any(given),
        "conv_state, late_state, slots",
        "all three or none",
        f"{sum(given)} of them",
    )
    check.tensor("conv_state", conv_state, "S depth C", optional=True)
    check.tensor("late_state", late_state, "S half", optional=True)
    check.tensor("slots", slots, "B", I32, optional=True)
    check.values("slots", slots, -1, d.get("S", 0) - 1, f"-1 or 0 .. {d.get('S', 0) - 1}")
    check.need(norm_eps is None or norm_eps >= 0, "norm_eps", "None or at least 0", norm_eps)
    check.pages(k_cache, v_cache, block_table, rows, qk.dtype, stores=True)
    k_scale = check.cache_scale("k_scale", k_scale, k_cache)
    v_scale = check.cache_scale("v_scale", v_scale, v_cache)
    inputs = dict(qk=qk, v_now=v_now, v_late=v_late)
    q, k, v = check.outputs(out, ("T Hq Dh", "T Hk Dh", "T Hk Dh"), (qk.dtype,) * 3, inputs)
    args = Args(
        qk=qk,
        v_now=v_now,
        v_late=v_late,
        conv0_weight=conv0_weight,
        conv0_bias=conv0_bias,
        conv1_weight=conv1_weight,
        conv1_bias=conv1_bias,
        temp=temp,
        cos_sin=cos_sin,
        rows=rows,
        conv_state=conv_state,
        late_state=late_state,
        slots=slots,
        late_start=late_start,
        norm_eps=-torch.finfo(qk.dtype).eps if norm_eps is None else norm_eps,
        block_table=block_table,
        k_cache=k_cache,
        v_cache=v_cache,
        k_scale=k_scale,
        v_scale=v_scale,
        q=q,
        k=k,
        v=v,
    )
    OP(backend, args)
    return q, k, v


class Args(NamedTuple):
    qk: torch.Tensor
    v_now: torch.Tensor
    v_late: torch.Tensor
    conv0_weight: torch.Tensor
    conv0_bias: torch.Tensor
    conv1_weight: torch.Tensor
    conv1_bias: torch.Tensor
    temp: torch.Tensor
    cos_sin: torch.Tensor
    rows: Rows
    conv_state: torch.Tensor | None
    late_state: torch.Tensor | None
    slots: torch.Tensor | None
    late_start: torch.Tensor | None
    norm_eps: float  # negative: minus the least norm
    block_table: torch.Tensor | None
    k_cache: InPlace | None
    v_cache: InPlace | None
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    q: Out
    k: Out
    v: Out


GPU_BYTES = 20480  # of a workgroup's memory on a GPU
if _native.EXTENSION is not None:
    _native.agree("cca_qkv's bytes", getattr(_native.EXTENSION, "cca_bytes", None), GPU_BYTES)


def _kernels_unsupported(args: Args) -> str | None:
    head_dim = args.q.shape[2]
    if head_dim % 8 or args.k.shape[1] * head_dim % 16:
        return f"the head dim is a multiple of 8, of one head of 16, not {head_dim}"
    if args.conv0_weight.shape[2] + args.conv1_weight.shape[2] > 10:
        return "the convolutions look back at most 8 tokens"
    if not args.conv1_weight.is_contiguous():
        return "conv1_weight is contiguous"
    return _native.mixed(
        qk=args.qk,
        conv0_weight=args.conv0_weight,
        conv0_bias=args.conv0_bias,
        conv1_weight=args.conv1_weight,
        conv1_bias=args.conv1_bias,
        temp=args.temp,
        conv_state=args.conv_state,
        late_state=args.late_state,
        late_start=args.late_start,
    )


def _cpp_unsupported(args: Args) -> str | None:
    reason = _kernels_unsupported(args)
    if reason or args.qk.is_cpu:
        return reason
    head_dim, taps = args.conv1_weight.shape[1:]
    reason = _native.beside_fp8(args.k_scale, qk=args.qk)
    if reason:
        return reason
    if head_dim > 128 or (head_dim * taps + 8) * args.qk.element_size() > GPU_BYTES // 8:
        return f"the head dim is at most 128, with few taps, not {head_dim} with {taps}"
    return _native.unaligned(
        conv1_weight=args.conv1_weight,
        qk=args.qk,
        v_now=args.v_now,
        v_late=args.v_late,
        conv_state=args.conv_state,
        late_state=args.late_state,
        late_start=args.late_start,
        cos_sin=args.cos_sin,
        k_cache=args.k_cache,
        v_cache=args.v_cache,
        q=args.q,
        k=args.k,
        v=args.v,
    )


def _triton_unsupported(args: Args) -> str | None:
    reason = _triton.cannot_compute(args.qk) or _kernels_unsupported(args)
    if not reason and args.q.shape[2] > 128:
        reason = f"the head dim is at most 128, not {args.q.shape[2]}"
    return reason


def _eps(args: Args) -> float | None:
    return None if args.norm_eps < 0 else args.norm_eps


OP = Op("cca_qkv", Args)
_triton.register(OP, _triton_unsupported)
_native.register(OP, _cpp_unsupported)
_make = by_name(OP, reference.cca_qkv, norm_eps=_eps)


def _reference(args: Args) -> None:
    _make(args)
    caches = args.k_cache, args.v_cache, args.block_table
    reference.store_kv(args.k, args.v, *caches, args.rows, args.k_scale, args.v_scale)


OP.register("reference", _reference)
