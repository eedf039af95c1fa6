"""What each op must at least compute and move: operations, exponentials and bytes from main memory. Pure arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """flops: multiply-adds count two. exps: exponentials. bytes: read or written once, caches being ideal."""

    flops: float
    exps: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.exps + other.exps, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.exps * times, self.bytes * times)

    __rmul__ = __mul__


def block_attention(prefix: int, verify_rows: int, branches: list[int], mask_rows: int, query_heads: int, kv_heads: int,
                    head_dim: int, itemsize: int) -> Cost:
    """One request: verify rows are causal, a proposal of branch c sees the prefix, c verify rows and itself."""
    rows = verify_rows + len(branches) * mask_rows
    pairs = sum(prefix + i + 1 for i in range(verify_rows)) + sum(mask_rows * (prefix + c + mask_rows) for c in branches)
    moved = 2 * prefix * kv_heads + rows * (2 * query_heads + 2 * kv_heads)
    return Cost(4 * pairs * head_dim * query_heads, pairs * query_heads, moved * head_dim * itemsize)


def cca_qkv(rows: int, query_heads: int, kv_heads: int, head_dim: int, kernel0: int, kernel1: int, itemsize: int) -> Cost:
    """Both convolutions; projections in, q, k and v out."""
    channels = (query_heads + kv_heads) * head_dim
    flops = 2 * rows * channels * (kernel0 + head_dim * kernel1)
    weights = channels * (kernel0 + head_dim * kernel1 + 2)
    return Cost(flops, 0, (2 * rows * (channels + kv_heads * head_dim) + weights) * itemsize)


def fused_moe(routed_rows: int, touched_experts: int, hidden: int, inner: int, itemsize: int) -> Cost:
    """Top-1 SwiGLU: three matrices a row; each touched expert's weights are read once."""
    moved = 3 * touched_experts * hidden * inner + 2 * routed_rows * hidden
    return Cost(6 * routed_rows * hidden * inner, routed_rows * inner, moved * itemsize)


def accept_drafts(accepted: int, drafts: int, vocab: int, itemsize: int) -> Cost:
    """Token rule for one request, draft normalisers given: target rows 0..a, and draft row a after a rejection. The row of
    the draw is walked again, from cache."""
    rejected = accepted < drafts
    rows_read = accepted + 1 + rejected
    return Cost(2 * rows_read * vocab, (accepted + 1 + 1 + rejected) * vocab, rows_read * vocab * itemsize)


def linear(rows: int, inputs: int, outputs: int, itemsize: int) -> Cost:
    return Cost(2 * rows * inputs * outputs, 0, (inputs * outputs + rows * (inputs + outputs)) * itemsize)


def accept_drafts_block(drafts: int, vocab: int, itemsize: int) -> Cost:
    """Block rule for one request: all target and draft rows, each with an exponential per entry for the surpluses, and the
    targets' normalisers before that."""
    rows_read = 2 * drafts + 1
    return Cost(4 * rows_read * vocab, (rows_read + drafts + 1) * vocab, rows_read * vocab * itemsize)
