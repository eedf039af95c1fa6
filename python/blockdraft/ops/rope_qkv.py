from typing import NamedTuple

import torch

from .. import reference
from ..contract import F32, Check
from ..registry import InPlace, Op, Out, by_name
from ..types import Rows
from . import _native, _triton


def rope_qkv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor,
    rows: Rows,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    *,
    query_scale: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotate queries and keys by their positions; store k and v of live verify rows in the cache.
    It is to dense models what cca_qkv is to ZAYA.

    q            bf16 | fp16 | fp32 [T,Hq,Dh], k, v [T,Hk,Dh], q's dtype: projections; rows may be
                 strided
    cos_sin      float32 [positions,R]: cosines, then sines, R/2 each; rotates the first R channels
                 by halves
    k_cache, v_cache, block_table  as in block_attention; None: nothing is stored
    query_scale  float32 [positions], a factor of the queries at each position (Llama 4); None: 1
    k_scale, v_scale  as in cca_qkv, of caches of fp8: k and v are returned as they were stored
    out          (q, k, v), made if None; 0 for dead rows
    Returns (q, k, v). The kernels take head dims that are multiples of 8. Raises ValueError or
    TypeError, before anything is written. Source: arXiv 2104.09864.
    """
    check = Check("rope_qkv")
    check.tensor("q", q, "T Hq Dh")
    check.tensor("k", k, "T Hk Dh", (q.dtype,))
    check.tensor("v", v, "T Hk Dh", (q.dtype,))
    check.rows(rows, len(q))
    check.angles("cos_sin", cos_sin, rows)
    check.tensor("query_scale", query_scale, "positions", F32, optional=True)
    check.pages(k_cache, v_cache, block_table, rows, q.dtype, stores=True)
    k_scale = check.cache_scale("k_scale", k_scale, k_cache)
    v_scale = check.cache_scale("v_scale", v_scale, v_cache)
    inputs = dict(q=q, k=k, v=v)
    shapes = ("T Hq Dh", "T Hk Dh", "T Hk Dh")
    outputs = check.outputs(out, shapes, (q.dtype,) * 3, inputs)
    cache = block_table, k_cache, v_cache, k_scale, v_scale
    args = Args(q, k, v, cos_sin, rows, query_scale, *cache, *outputs)
    OP(backend, args)
    return outputs


class Args(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cos_sin: torch.Tensor
    rows: Rows
    query_scale: torch.Tensor | None
    block_table: torch.Tensor | None
    k_cache: InPlace | None
    v_cache: InPlace | None
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    q_out: Out
    k_out: Out
    v_out: Out


def _kernels_unsupported(args: Args) -> str | None:
    if args.q.shape[2] % 8:
        return f"the head dim is a multiple of 8, not {args.q.shape[2]}"
    return None


def _cpp_unsupported(args: Args) -> str | None:
    reason = _kernels_unsupported(args) or _native.beside_fp8(args.k_scale, q=args.q)
    if reason or args.q.is_cpu:
        return reason
    return _native.unaligned(
        q=args.q,
        k=args.k,
        v=args.v,
        cos_sin=args.cos_sin,
        k_cache=args.k_cache,
        v_cache=args.v_cache,
        q_out=args.q_out,
        k_out=args.k_out,
        v_out=args.v_out,
    )


def _triton_unsupported(args: Args) -> str | None:
    return _triton.cannot_compute(args.q) or _kernels_unsupported(args)


OP = Op("rope_qkv", Args)
_triton.register(OP, _triton_unsupported)
_native.register(OP, _cpp_unsupported)
ROTATED = by_name(OP, reference.rope_qkv)


def _reference(args: Args) -> None:
    ROTATED(args)
    caches = args.k_cache, args.v_cache, args.block_table
    reference.store_kv(args.k_out, args.v_out, *caches, args.rows, args.k_scale, args.v_scale)


OP.register("reference", _reference)
