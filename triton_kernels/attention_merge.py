"""The kernel of block_attention that joins the splits of a prefix."""

import triton
import triton.language as tl

from .attention_parts import chunks_of, finite_or_zero, join, row_of


@triton.jit
def _node(partial, apart, split, splits, d, DIM: tl.constexpr):
    """The output, maximum and sum of splits, of which some may not be there."""
    there = split < splits
    at = partial + split * apart
    out = tl.load(at[:, None] + d[None, :], mask=there[:, None] & (d < DIM)[None, :], other=0)
    top = tl.load(at + DIM, mask=there, other=float("-inf"))
    return out, top, tl.load(at + DIM + 1, mask=there, other=0)


@triton.jit(do_not_specialize=["total_rows", "max_rows", "chunk_keys", "branch_row", "proposals"])
def merge(
    cu_rows,
    prefix_lens,
    draft_len,
    branch,
    out,
    lse,
    workspace,
    total_rows,
    max_rows,
    chunk_keys,
    branch_row,
    proposals,
    scale,
    OUT_ROW: tl.constexpr,
    OUT_HEAD: tl.constexpr,
    LSE_ROW: tl.constexpr,
    LSE_HEAD: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    SPLIT_CHUNKS: tl.constexpr,
    PAIRS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Merges the splits of a row and head, all of which are read at once. Pairs of chunks are
    summed, as many for every prefix, so that the order does not depend on the batch."""
    entries = max_rows * HEADS
    request = tl.program_id(0) // entries
    entry = tl.program_id(0) % entries
    base = tl.load(cu_rows + request)
    rows = tl.load(cu_rows + request + 1) - base
    chunks, _ = chunks_of(tl.load(prefix_lens + request), chunk_keys, MAX_CHUNKS)
    splits = tl.cdiv(chunks, SPLIT_CHUNKS)
    row = entry // HEADS
    head = entry % HEADS
    if row >= rows:
        return
    limit, _, _ = row_of(
        row,
        rows,
        rows - proposals * MASK_ROWS,
        tl.load(draft_len + request),
        branch + request * branch_row,
        MASK_ROWS,
    )
    d = tl.arange(0, PADDED)
    row64 = base.to(tl.int64) + row
    partial = workspace + (row64 * HEADS + head) * (DIM + 2)
    apart = total_rows.to(tl.int64) * HEADS * (DIM + 2)
    pair = tl.arange(0, PAIRS)
    if SPLIT_CHUNKS == 1:
        outputs, tops, sums = _node(partial, apart, 2 * pair, splits, d, DIM)
        right, right_tops, right_sums = _node(partial, apart, 2 * pair + 1, splits, d, DIM)
        outputs, tops, sums = join(outputs, tops, sums, right, right_tops, right_sums, scale)
    else:
        outputs, tops, sums = _node(partial, apart, pair, splits, d, DIM)
    top = tl.max(tops, 0)
    weights = tl.exp2((tops - finite_or_zero(top)) * scale)
    total = tl.sum(sums * weights, 0)
    result = tl.sum(outputs * weights[:, None], 0)
    live = (limit > 0) & (total != 0)
    result = tl.where(live, result * (1 / tl.where(live, total, 1)), 0)
    at = row64 * OUT_ROW + head * OUT_HEAD
    tl.store(out + at + d, result.to(out.dtype.element_ty), mask=d < DIM)
    if lse is not None:
        natural = (top * scale + tl.log2(total)) * 0.6931471805599453
        tl.store(lse + row64 * LSE_ROW + head * LSE_HEAD, tl.where(live, natural, float("-inf")))
