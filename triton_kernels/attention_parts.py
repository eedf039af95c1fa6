"""What the kernels of block_attention share: what a row sees, and how results are joined."""

import triton
import triton.language as tl

NOWHERE = tl.constexpr(1 << 30)


@triton.jit
def row_of(row, rows, verify, draft_len, branch, MASK_ROWS: tl.constexpr):
    """For a row of the request: how many verify keys it sees (0: it is dead), the first row of its
    proposal (NOWHERE: it is in none), and its position after the prefix."""
    is_mask = row >= verify
    proposal = (row - verify) // MASK_ROWS
    branch_of_row = tl.load(branch + proposal, mask=is_mask & (row < rows), other=0)
    limit = tl.where(is_mask, branch_of_row, row + 1)
    live = (limit >= 1) & (limit <= draft_len + 1) & (row < rows)
    first = tl.where(is_mask & live, verify + proposal * MASK_ROWS, NOWHERE)
    return (
        tl.where(live, limit, 0),
        first,
        tl.where(is_mask, branch_of_row + (row - verify) % MASK_ROWS, row),
    )


@triton.jit
def chunks_of(prefix, chunk_keys, MAX_CHUNKS: tl.constexpr):
    """How many chunks a prefix has, and their length."""
    units = tl.cdiv(prefix, chunk_keys)
    length = tl.maximum(tl.cdiv(units, MAX_CHUNKS), 1) * chunk_keys
    return tl.maximum(tl.cdiv(prefix, length), 1), length


@triton.jit
def finite_or_zero(top):
    """What is subtracted from scores: their maximum, or 0 if that is -inf, because (-inf) - (-inf)
    is NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def join(out, top, total, right_out, right_top, right_total, scale):
    """Two adjacent chunks as one. A chunk joined with nothing stays the same to the bit. Nothing
    here may become a fused product and sum in one kernel but not in another."""
    new_top = tl.maximum(top, right_top)
    base = finite_or_zero(new_top)
    left = tl.exp2((top - base) * scale)
    right = tl.exp2((right_top - base) * scale)
    out = tl.fma(right_out, right[:, None], out * left[:, None])
    return out, new_top, tl.fma(right_total, right, total * left)
