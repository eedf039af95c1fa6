"""What each op must at least compute and move: operations, exponentials and bytes of each memory
level. Pure arithmetic."""

from dataclasses import dataclass
from math import ceil

# rows of a tile that reads its operand once from L2: attention rows of a KV head, and rows (or
# columns) of a matrix product
ATTENTION_TILE = MATRIX_TILE = 256


@dataclass(frozen=True)
class Cost:
    """flops: products, multiply-adds count two (matrix units on a GPU). exps: exponentials. bytes:
    of main memory, read or written once, caches being ideal. vector_flops: the rest of the
    arithmetic, in fp32. l2_bytes: from L2 to the compute units, where each row tile reads the
    shared operand again."""

    flops: float
    exps: float
    bytes: float
    vector_flops: float = 0.0
    l2_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.exps + other.exps,
            self.bytes + other.bytes,
            self.vector_flops + other.vector_flops,
            self.l2_bytes + other.l2_bytes,
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(
            self.flops * times,
            self.exps * times,
            self.bytes * times,
            self.vector_flops * times,
            self.l2_bytes * times,
        )

    __rmul__ = __mul__


def distinct_experts(rows: float, routing: list[float]) -> float:
    """Experts that `rows` independent rows are expected to touch, by each expert's share of the
    rows."""
    return sum(1 - (1 - share) ** rows for share in routing)


def linear(
    rows: float, inputs: int, outputs: int, itemsize: float, weight_itemsize: float | None = None
) -> Cost:
    weights = inputs * outputs * (itemsize if weight_itemsize is None else weight_itemsize)
    again = (
        ceil(rows / MATRIX_TILE) * weights
        + rows * (ceil(outputs / MATRIX_TILE) * inputs + outputs) * itemsize
    )
    return Cost(
        2 * rows * inputs * outputs,
        0,
        weights + rows * (inputs + outputs) * itemsize,
        l2_bytes=again,
    )


def rms_norm(rows: float, hidden: int, itemsize: float) -> Cost:
    """With the scaled residual sum before it, on an fp32 residual stream: sum, square, sum, two
    factors and two biases."""
    moved = rows * hidden * (2 * itemsize + 8)
    return Cost(0, 0, moved, 10 * rows * hidden, moved)


def block_attention(
    prefix: int,
    verify_rows: int,
    branches: list[int],
    mask_rows: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: float,
    kv_itemsize: float | None = None,
    window: int = 0,
) -> Cost:
    """One request: verify rows are causal, a proposal of branch c sees the prefix, c verify rows
    and itself. With a window a row sees the keys above its position - window, and all of its own
    proposal. kv_itemsize: of the cached prefix."""
    cached = itemsize if kv_itemsize is None else kv_itemsize
    rows = verify_rows + len(branches) * mask_rows
    if window:
        pairs = sum(min(prefix + i + 1, window) for i in range(verify_rows))
        pairs += sum(
            min(prefix + c, max(window - 1 - i, 0)) + mask_rows
            for c in branches
            for i in range(mask_rows)
        )
        prefix = min(prefix, window - 1)
    else:
        pairs = sum(prefix + i + 1 for i in range(verify_rows)) + sum(
            mask_rows * (prefix + c + mask_rows) for c in branches
        )
    keys = 2 * prefix * kv_heads * head_dim * cached
    own = rows * (2 * query_heads + 2 * kv_heads) * head_dim * itemsize
    tiles = ceil(rows * query_heads // kv_heads / ATTENTION_TILE)
    # scale, maximum, difference and sum of each logit
    return Cost(
        4 * pairs * head_dim * query_heads,
        pairs * query_heads,
        keys + own,
        4 * pairs * query_heads,
        tiles * keys + own,
    )


def cca_qkv(
    rows: float,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    kernel0: int,
    kernel1: int,
    itemsize: float,
) -> Cost:
    """Both convolutions; projections in, q, k and v out."""
    channels = (query_heads + kv_heads) * head_dim
    flops = 2 * rows * channels * (kernel0 + head_dim * kernel1)
    weights = channels * (kernel0 + head_dim * kernel1 + 2)
    moved = (2 * rows * (channels + kv_heads * head_dim) + weights) * itemsize
    # residual paths, norm, temperature and rotation
    return Cost(
        flops,
        0,
        moved,
        10 * rows * channels,
        moved + (ceil(rows / MATRIX_TILE) - 1) * weights * itemsize,
    )


def zaya_router(rows: float, hidden: int, inner: int, experts: int, itemsize: float) -> Cost:
    """Down projection, depth averaging, three-layer MLP onto the experts and the skip, softmax and
    argmax."""
    weights = inner * (hidden + 2 * inner + experts + 1)
    moved = (weights + rows * (hidden + 2 * inner)) * itemsize
    return Cost(
        2 * rows * weights,
        rows * (2 * inner + experts + 1),
        moved,
        20 * rows * inner,
        moved + (ceil(rows / MATRIX_TILE) - 1) * weights * itemsize,
    )


def fused_moe(
    routed_rows: float,
    touched_experts: float,
    hidden: int,
    inner: int,
    itemsize: float,
    weight_itemsize: float | None = None,
) -> Cost:
    """Top-1 SwiGLU: three matrices a row; each touched expert's weights are read once."""
    weights = (
        3
        * touched_experts
        * hidden
        * inner
        * (itemsize if weight_itemsize is None else weight_itemsize)
    )
    moved = 2 * routed_rows * hidden * itemsize
    tiles = ceil(routed_rows / max(touched_experts, 1) / MATRIX_TILE)
    return Cost(
        6 * routed_rows * hidden * inner,
        routed_rows * inner,
        weights + moved,
        4 * routed_rows * inner,
        tiles * weights + moved + 2 * routed_rows * inner * itemsize,
    )


def accept_drafts(
    accepted: float, drafts: int, vocab: int, itemsize: float, block: bool = False
) -> Cost:
    """One request, draft normalisers given. Token rule: target rows 0..a; block rule: those of all
    drafts. After a rejection draft row a, with the target row again, from cache, for the residual
    (whose sum is also what the block rule compares)."""
    rejected = accepted < drafts
    rows = drafts if block and rejected else accepted + 1
    moved = (rows + rejected) * vocab * itemsize
    return Cost(0, (rows + 2 * rejected) * vocab, moved, 2 * (rows + rejected) * vocab, moved)


def sample_drafts(rows: float, vocab: int, itemsize: float) -> Cost:
    """A normaliser for each row, and a draw that walks again only the part of the row where the
    sums before it say it ends."""
    moved = rows * vocab * itemsize
    return Cost(0, rows * vocab, moved, 2 * rows * vocab, moved)


def commit(
    requests: int, layers: int, channels: int, taps: int, late_channels: int, itemsize: float
) -> Cost:
    """State of each layer after the accepted row: read from the pass, written to its slot."""
    moved = 2 * requests * layers * (taps * channels + late_channels) * itemsize
    return Cost(0, 0, moved, 0.0, moved)


def active_weights(config) -> int:
    """Parameters that one token of a ZAYA (`ZayaConfig`) multiplies with: one expert a block, and
    the LM head."""
    block = (
        config.hidden_size * (config.conv_channels + 2 * config.late_channels)
        + config.num_attention_heads * config.head_dim * config.hidden_size
        + config.conv_channels * (config.cca_time0 + config.head_dim * config.cca_time1)
        + config.router_hidden_size
        * (config.hidden_size + 2 * config.router_hidden_size + config.num_experts + 1)
        + 3 * config.hidden_size * config.moe_intermediate_size
    )
    return config.num_hidden_layers * block + config.hidden_size * config.vocab_size
