import math
from typing import NamedTuple

import torch

from .. import reference
from ..contract import F32, Check
from ..registry import Op, Out, Scratch, by_name
from ..types import Rows
from . import _native, _triton

MAX_CHUNKS = 64  # of a prefix; longer prefixes get longer chunks
GROUPS = 512  # workgroups that occupy a GPU
NO_WINDOW = 2**31 - 1  # wider windows exclude nothing either


def block_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    block_table: torch.Tensor | None,
    rows: Rows,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Attention of packed verify rows and proposals over a paged prefix and each other.

    Verify row i sees the prefix and verify rows 0..i. A mask row of branch c sees the prefix,
    verify rows 0..c-1 and its own proposal (all of it, or causally if not rows.bidirectional), but
    no other proposal. Without proposals this is causal attention, as for a prefill chunk.

    q            bf16 | fp16 | fp32 [T,Hq,Dh], already rotated
    k, v         [T,Hk,Dh], q's dtype: keys and values of this pass, which need not be in the cache
                 yet. Dead rows are not read; NaN in a live row may reach other rows of its request
    k_cache, v_cache  [pages,page,Hk,Dh], q's dtype, or fp8 with scales; block_table int32
                      [B,max_pages]; all None when there is no prefix
    k_scale, v_scale  float32 of one element, [Hk] or [pages,Hk]: multiply caches of float8_e4m3fn
                 (OCP) or float8_e4m3fnuz (gfx942); a GPU takes only its own of the two
    scale        of the logits; default Dh**-0.5
    window       a query at position s sees a key at position p iff p > s - window; 0: no window. It
                 does not apply within a proposal
    out          [T,Hq,Dh], q's dtype, made if None; 0 for a row that is dead or whose scores are
                 all -inf. It shares no memory with the inputs
    lse          float32 [T,Hq], written if given: natural logarithm of the normaliser, -inf for the
                 rows that get 0
    workspace    float32 of `block_attention_workspace`'s shape, made if None
    Raises ValueError or TypeError, before anything is written. Source: TiDAR, arXiv 2511.08923,
    fig. 3.
    """
    check = Check("block_attention")
    check.tensor("q", q, "T Hq Dh")
    check.tensor("k", k, "T Hk Dh", (q.dtype,))
    check.tensor("v", v, "T Hk Dh", (q.dtype,))
    Hq, Hk = check.dims["Hq"], check.dims["Hk"]
    check.need(Hk > 0, "k", "at least one head", 0)
    check.need(Hq % Hk == 0, "q", f"heads a multiple of k's {Hk}", Hq)
    check.rows(rows, len(q))
    check.pages(k_cache, v_cache, block_table, rows, q.dtype)
    k_scale = check.cache_scale("k_scale", k_scale, k_cache)
    v_scale = check.cache_scale("v_scale", v_scale, v_cache)
    check.need(window >= 0, "window", "0 (none) or more", window)
    inputs = dict(q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache)
    if out is not None:
        check.output("out", out, "T Hq Dh", (q.dtype,), inputs)
        inputs["out"] = out
    if lse is not None:
        check.output("lse", lse, "T Hq", F32, inputs)
    if scale is None:
        scale = check.dims["Dh"] ** -0.5
    else:
        check.need(math.isfinite(scale), "scale", "a finite number", scale)
    if workspace is not None:
        check.workspace(workspace, q, block_attention_workspace(q, rows), torch.float32)
    return unchecked(
        q,
        k,
        v,
        k_cache,
        v_cache,
        block_table,
        rows,
        k_scale=k_scale,
        v_scale=v_scale,
        scale=scale,
        window=window,
        out=out,
        lse=lse,
        workspace=workspace,
        backend=backend,
    )


def unchecked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    block_table: torch.Tensor | None,
    rows: Rows,
    *,
    scale: float,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    window: int = 0,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """`block_attention` for a caller that has made all arguments itself: wrong ones are read."""
    if out is None:
        out = q.new_empty(q.shape)
    if workspace is None:
        shape = block_attention_workspace(q, rows)
        workspace = Check("block_attention").workspace(None, q, shape, torch.float32)
    args = Args(
        q=q,
        k=k,
        v=v,
        k_cache=k_cache,
        v_cache=v_cache,
        k_scale=k_scale,
        v_scale=v_scale,
        block_table=block_table,
        rows=rows,
        scale=scale,
        window=min(window, NO_WINDOW),
        chunk_keys=chunk_keys(q.device),
        max_chunks=MAX_CHUNKS,
        split_chunks=split_chunks(q, k, rows),
        out=out,
        lse=lse,
        workspace=workspace,
    )
    OP(backend, args)
    return out


class Args(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_cache: torch.Tensor | None
    v_cache: torch.Tensor | None
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    block_table: torch.Tensor | None
    rows: Rows
    scale: float
    window: int
    chunk_keys: int  # the least of a chunk
    max_chunks: int
    split_chunks: int  # at most so many chunks are a split, which a workgroup reads
    out: Out
    lse: Out | None
    workspace: Scratch | None


def block_attention_workspace(q: torch.Tensor, rows: Rows) -> tuple[int, ...]:
    """Shape of the float32 workspace of `block_attention`: [splits,T,Hq,Dh+2], where splits follows
    from what the host knows and is 0 if one split suffices. It holds the unnormalised output,
    maximum and sum of every split until they are merged. On a CPU chunks of many query heads and
    rows are longer, so that some of it is not touched."""
    splits = _chunks(q.device, rows)  # of one chunk, those of the Triton kernels
    return (splits if splits > 1 else 0, *q.shape[:2], q.shape[2] + 2)


def chunk_keys(device: torch.device) -> int:
    """The least keys of a chunk. The results of a prefix's chunks are joined as a binary tree, in
    which a split is a node. So a request's bits depend on its chunks, not on its splits."""
    return 1024 if device.type == "cpu" else 512


def split_chunks(q: torch.Tensor, k: torch.Tensor, rows: Rows) -> int:
    """As many chunks as leave enough splits to occupy a whole GPU, up to 2: each split's results
    are written and read once more. Two that are all need no merge."""
    if q.device.type == "cpu":
        return 1
    chunks = _chunks(q.device, rows)
    return 2 if chunks == 2 or len(rows.prefix_lens) * k.shape[1] * chunks >= 2 * GROUPS else 1


def _chunks(device: torch.device, rows: Rows) -> int:
    return min(MAX_CHUNKS, -(-rows.max_prefix // chunk_keys(device)))


def _cpp_unsupported(args: Args) -> str | None:
    q, k = args.q, args.k
    head_dim, on_cpu = q.shape[2], q.device.type == "cpu"
    if on_cpu and head_dim % 8:
        return f"the head dim is a multiple of 8, not {head_dim}"
    if not on_cpu and head_dim not in (64, 128):
        return f"the head dim is 64 or 128 on a GPU, not {head_dim}"
    reason = _native.beside_fp8(args.k_scale, q=q)
    if reason:
        return reason
    if not on_cpu and q.shape[1] > 256 * k.shape[1]:
        return f"at most 256 query heads share a KV head, not {q.shape[1] // k.shape[1]}"
    if on_cpu:
        return None
    caches = dict(k_cache=args.k_cache, v_cache=args.v_cache)
    return _native.unaligned(q=q, k=k, v=args.v, **caches, out=args.out)


def _triton_unsupported(args: Args) -> str | None:
    head_dim, group = args.q.shape[2], args.q.shape[1] // args.k.shape[1]
    if head_dim % 8 or head_dim > 128:
        return f"the head dim is a multiple of 8 up to 128, not {head_dim}"
    if group > 64:
        return f"at most 64 query heads share a KV head, not {group}"
    if not args.scale > 0:
        return f"the scale is positive, not {args.scale}"
    return _native.beside_fp8(args.k_scale, q=args.q) or _triton.cannot_compute(args.q)


OP = Op("block_attention", Args)
_triton.register(OP, _triton_unsupported)
_native.register(OP, _cpp_unsupported)
OP.register("reference", by_name(OP, reference.block_attention))
