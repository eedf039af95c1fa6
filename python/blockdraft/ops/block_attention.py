import math

import torch

from .. import env, reference
from ..contract import F32, Check
from ..registry import Op
from ..types import Rows
from . import _native, _rows, _triton

_OP = Op(
    "block_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? k_cache, Tensor? v_cache, Tensor? block_table, "
    f"{_rows.SCHEMA}, float scale, int window, int split, Tensor(a!) out, Tensor(b!)? lse, Tensor(c!)? workspace) -> ()",
)

# of a prefix; a longer one gets longer splits, multiples of split_keys. The kernels know it too
MOST_SPLITS = 32


def split_keys(device: torch.device) -> int:
    """Least keys of a split: short enough to feed the device, long enough that merging costs little
    beside reading them."""
    return 4096 if device.type == "cpu" else 2048


def _reference(q, k, v, k_cache, v_cache, block_table, *rest):
    *rows, scale, window, _, out, lse, _ = rest
    result, result_lse = reference.block_attention(
        q, k, v, k_cache, v_cache, block_table, Rows(*rows), scale, window
    )
    out.copy_(result)
    if lse is not None:
        lse.copy_(result_lse)


def _cpp_unsupported(q, k, v, k_cache, v_cache, *rest):
    out, dim = rest[-3], q.shape[2]
    if q.device.type == "cpu":
        if dim % 8:
            return f"the head dim is a multiple of 8, not {dim}"
    elif dim not in (64, 128):
        return f"the head dim is 64 or 128 on a GPU, not {dim}"
    elif q.shape[1] > 256 * k.shape[1]:
        return f"at most 256 query heads share a KV head, not {q.shape[1] // k.shape[1]}"
    reason = _native.unsupported(q)
    if reason or q.device.type == "cpu":
        return reason
    return _native.unaligned(q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, out=out)


def block_attention_workspace(q, rows: Rows) -> tuple[int, ...]:
    """Shape of the float32 workspace of `block_attention`: [splits,T,Hq,Dh+2] by the host-known
    max_prefix, splits 0 where one split holds it. The unnormalised output, maximum and sum of every
    split stand there until they are merged."""
    splits = min(MOST_SPLITS, -(-rows.max_prefix // split_keys(q.device)))
    return (splits if splits > 1 else 0, *q.shape[:2], q.shape[2] + 2)


def _triton_unsupported(q, k, v, *rest):
    scale, dim, group = rest[11], q.shape[2], q.shape[1] // k.shape[1]
    if dim % 8 or dim > 128:
        return f"the head dim is a multiple of 8 up to 128, not {dim}"
    if group > 64:
        return f"at most 64 query heads share a KV head, not {group}"
    if not scale > 0:
        return f"the scale is positive, not {scale}"
    if q.dtype == torch.bfloat16 and env.triton_interpreter():
        return "Triton's interpreter multiplies bfloat16 wrongly"
    return _triton.unsupported(q)


_OP.register(
    "triton",
    lambda *args: _triton.launch("block_attention", *args, MOST_SPLITS),
    _triton_unsupported,
)
_OP.register("cpp", None, _cpp_unsupported)
_OP.register("reference", _reference)


def block_attention(
    q,
    k,
    v,
    k_cache,
    v_cache,
    block_table,
    rows: Rows,
    *,
    scale: float | None = None,
    window: int = 0,
    out=None,
    lse=None,
    workspace=None,
    backend: str | None = None,
):
    """Attention of packed verify rows and proposals over a paged prefix and each other.

    A verify row i sees the prefix and verify rows 0..i; a mask row of branch c sees the prefix,
    verify rows 0..c-1 and its own proposal (all of it, or causally if not rows.bidirectional),
    nothing of another proposal. Without proposals this is causal attention, as a prefill chunk
    needs it.

    q            bf16 | fp16 | fp32 [T,Hq,Dh], already rotated
    k, v         [T,Hk,Dh], q's dtype; keys of this pass, which are read from here and not from the
                 cache. Dead rows are not read; NaN in a live row may reach other rows of its
                 request
    k_cache, v_cache  [pages,page,Hk,Dh], q's dtype; block_table int32 [B,max_pages]; all None when
                      there is no prefix
    scale        of the logits; default Dh**-0.5
    window       a key at position p is seen by a query at position s iff p > s - window; 0: no
                 window. A proposal sees all of itself whatever the window
    out          [T,Hq,Dh], q's dtype, made if None; 0 for a dead row
    lse          float32 [T,Hq], written if given: natural-log normaliser, -inf for a dead row
    workspace    float32 of `block_attention_workspace`'s shape, made if None
    Raises ValueError or TypeError, before anything is written. Source: TiDAR, arXiv 2511.08923,
    fig. 3.
    """
    check = Check("block_attention")
    check.tensor("q", q, "T Hq Dh")
    check.tensor("k", k, "T Hk Dh", (q.dtype,))
    check.tensor("v", v, "T Hk Dh", (q.dtype,))
    check.need(check.dims["Hk"] > 0, "k", "at least one head", 0)
    check.need(
        check.dims["Hq"] % check.dims["Hk"] == 0,
        "q",
        f"heads a multiple of k's {check.dims['Hk']}",
        check.dims["Hq"],
    )
    check.rows(rows, len(q))
    check.pages(k_cache, v_cache, block_table, rows, q.dtype)
    check.need(window >= 0, "window", "0 (none) or more", window)
    out = q.new_empty(q.shape) if out is None else out
    check.tensor("out", out, "T Hq Dh", (q.dtype,))
    check.tensor("lse", lse, "T Hq", F32, optional=True)
    scale = check.dims["Dh"] ** -0.5 if scale is None else float(scale)
    check.need(math.isfinite(scale), "scale", "a finite number", scale)
    workspace = check.workspace(workspace, q, block_attention_workspace(q, rows), torch.float32)
    _OP(
        backend,
        q,
        k,
        v,
        k_cache,
        v_cache,
        block_table,
        *_rows.flatten(rows),
        scale,
        window,
        split_keys(q.device),
        out,
        lse,
        workspace,
    )
    return out
