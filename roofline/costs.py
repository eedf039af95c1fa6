"""What each op must at least compute and move: operations, exponentials and bytes of each memory
level. Pure arithmetic. The number of launches stands in launches.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ..models.config import ZayaConfig

# Assumed. Rows that read their shared operand from L2 once: attention rows of a KV head, and rows
# (or columns) of a matrix product
ATTENTION_TILE = 256
MATRIX_TILE = 256
# Rows of a tile of a CPU's product: csrc/tile/cpu/plain.h, with AVX2
CPU_TILE = 3


@dataclass(frozen=True)
class Cost:
    """The least work of an op.

    flops           of products, which a GPU's matrix units do; a multiply-add counts two
    exps            exponentials
    bytes           of main memory, each read or written once, as if caches were ideal
    vector_flops    the rest of the arithmetic, in fp32
    l2_bytes        from L2 to the compute units, where each row tile reads the shared operand again
    activations     those of `bytes` that the op before wrote or the next one reads, which a large
                    last-level cache may hold
    link_bytes      that a GPU sends to others
    tiled           numbers that a CPU's products load and widen: the weights, once for each tile of
                    rows
    """

    flops: float
    exps: float
    bytes: float
    vector_flops: float = 0.0
    l2_bytes: float = 0.0
    activations: float = 0.0
    link_bytes: float = 0.0
    tiled: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.exps + other.exps,
            self.bytes + other.bytes,
            self.vector_flops + other.vector_flops,
            self.l2_bytes + other.l2_bytes,
            self.activations + other.activations,
            self.link_bytes + other.link_bytes,
            self.tiled + other.tiled,
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(
            self.flops * times,
            self.exps * times,
            self.bytes * times,
            self.vector_flops * times,
            self.l2_bytes * times,
            self.activations * times,
            self.link_bytes * times,
            self.tiled * times,
        )

    __rmul__ = __mul__


def distinct_experts(rows: float, routing: Sequence[float]) -> float:
    """Experts that `rows` independent rows are expected to touch, by each expert's share of the
    rows."""
    return sum(1 - (1 - share) ** rows for share in routing)


def linear(
    rows: float, inputs: int, outputs: int, itemsize: float, weight_itemsize: float | None = None
) -> Cost:
    """rows [., inputs] times a matrix."""
    weights = inputs * outputs * (itemsize if weight_itemsize is None else weight_itemsize)
    row_tiles = ceil(rows / MATRIX_TILE)
    column_tiles = ceil(outputs / MATRIX_TILE)
    return Cost(
        flops=2 * rows * inputs * outputs,
        exps=0,
        bytes=weights + rows * (inputs + outputs) * itemsize,
        l2_bytes=row_tiles * weights + rows * (column_tiles * inputs + outputs) * itemsize,
        activations=rows * (inputs + outputs) * itemsize,
        tiled=ceil(rows / CPU_TILE) * inputs * outputs,
    )


def residual_norm(rows: float, hidden: int, itemsize: float) -> Cost:
    """With the scaled residual sum before it, on an fp32 residual stream: sum, square, sum, two
    factors and two biases."""
    moved = rows * hidden * (2 * itemsize + 8)
    return Cost(
        flops=0,
        exps=0,
        bytes=moved,
        vector_flops=10 * rows * hidden,
        l2_bytes=moved,
        activations=moved,
    )


def rope_qkv(rows: int, heads: int, kv_heads: int, head_dim: int, itemsize: float) -> Cost:
    """Rotation of all channels of queries and keys; k and v go to their pages too."""
    inputs = rows * (heads + 2 * kv_heads) * head_dim
    stored = rows * 2 * kv_heads * head_dim
    moved = (2 * inputs + stored) * itemsize + 4 * rows * head_dim
    return Cost(
        flops=0,
        exps=0,
        bytes=moved,
        vector_flops=3 * rows * (heads + kv_heads) * head_dim,
        l2_bytes=moved,
        activations=moved,
    )


def block_attention(
    prefix: int,
    verify_rows: int,
    branches: Sequence[int],
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
    pairs = _attention_pairs(prefix, verify_rows, branches, mask_rows, window)
    read_prefix = min(prefix, window - 1) if window else prefix
    rows = verify_rows + len(branches) * mask_rows
    cached = itemsize if kv_itemsize is None else kv_itemsize
    keys = 2 * read_prefix * kv_heads * head_dim * cached
    own = rows * (2 * query_heads + 2 * kv_heads) * head_dim * itemsize
    tiles = ceil(rows * query_heads // kv_heads / ATTENTION_TILE)
    return Cost(
        flops=4 * pairs * head_dim * query_heads,
        exps=pairs * query_heads,
        bytes=keys + own,
        # scale, maximum, difference and sum of each logit
        vector_flops=4 * pairs * query_heads,
        l2_bytes=tiles * keys + own,
        activations=own,
    )


def _attention_pairs(
    prefix: int, verify_rows: int, branches: Sequence[int], mask_rows: int, window: int
) -> int:
    """Pairs of a row and a key that it sees."""
    verify = [prefix + i + 1 for i in range(verify_rows)]
    if not window:
        return sum(verify) + sum(mask_rows * (prefix + c + mask_rows) for c in branches)
    pairs = sum(min(keys, window) for keys in verify)
    for c in branches:
        for i in range(mask_rows):
            pairs += min(prefix + c, max(window - 1 - i, 0)) + mask_rows
    return pairs


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
    weights = channels * (kernel0 + head_dim * kernel1 + 2) * itemsize
    moved = 2 * rows * (channels + kv_heads * head_dim) * itemsize + weights
    return Cost(
        flops=2 * rows * channels * (kernel0 + head_dim * kernel1),
        exps=0,
        bytes=moved,
        # residual paths, norm, temperature and rotation
        vector_flops=10 * rows * channels,
        l2_bytes=moved + _read_again(rows, weights),
        activations=moved - weights,
    )


def zaya_router(rows: float, hidden: int, inner: int, experts: int, itemsize: float) -> Cost:
    """Down projection, depth averaging, three-layer MLP onto the experts and the skip, softmax and
    argmax."""
    weights = inner * (hidden + 2 * inner + experts + 1)
    moved = (weights + rows * (hidden + 2 * inner)) * itemsize
    return Cost(
        flops=2 * rows * weights,
        exps=rows * (2 * inner + experts + 1),
        bytes=moved,
        vector_flops=20 * rows * inner,
        l2_bytes=moved + _read_again(rows, weights * itemsize),
        activations=moved - weights * itemsize,
    )


def _read_again(rows: float, weight_bytes: float) -> float:
    """Bytes of weights that the row tiles after the first read from L2."""
    return (ceil(rows / MATRIX_TILE) - 1) * weight_bytes


def moe_dispatch(pairs: float, experts: int) -> Cost:
    """The expert of each pair in, order and offsets out, each a 32-bit integer."""
    return Cost(0, 0, 4 * (2 * pairs + experts + 1))


def fused_moe(
    routed_rows: float,
    touched_experts: float,
    hidden: int,
    inner: int,
    itemsize: float,
    weight_itemsize: float | None = None,
) -> Cost:
    """Top-1 SwiGLU: three matrices a row; each touched expert's weights are read once."""
    weight_size = itemsize if weight_itemsize is None else weight_itemsize
    weights = 3 * touched_experts * hidden * inner * weight_size
    moved = 2 * routed_rows * hidden * itemsize
    tiles = ceil(routed_rows / max(touched_experts, 1) / MATRIX_TILE)
    # an expert's last tile has any number of rows, and at least one
    of_rows = (routed_rows + touched_experts * (CPU_TILE - 1) / 2) / CPU_TILE
    return Cost(
        flops=6 * routed_rows * hidden * inner,
        exps=routed_rows * inner,
        bytes=weights + moved,
        vector_flops=4 * routed_rows * inner,
        l2_bytes=tiles * weights + moved + 2 * routed_rows * inner * itemsize,
        activations=moved,
        tiled=3 * hidden * inner * max(of_rows, touched_experts),
    )


def accept_drafts(
    accepted: float, drafts: int, vocab: int, itemsize: float, block: bool = False
) -> Cost:
    """One request, with the normalisers of the drafts given.

    The token rule reads target rows 0..a; the block rule (`block`) those of all drafts. After a
    rejection the residual takes draft row a, and the target row once more from the cache; the block
    rule compares that residual's sum as well.
    """
    rejected = accepted < drafts
    target_rows = drafts if block and rejected else accepted + 1
    rows = target_rows + rejected
    moved = rows * vocab * itemsize
    return Cost(
        flops=0,
        exps=(target_rows + 2 * rejected) * vocab,
        bytes=moved,
        vector_flops=2 * rows * vocab,
        l2_bytes=moved,
        activations=moved,
    )


def sample_drafts(rows: float, vocab: int, itemsize: float) -> Cost:
    """A normaliser for each row, and a draw that reads again only the part of the row in which the
    running sum passes the random number."""
    moved = rows * vocab * itemsize
    return Cost(
        flops=0,
        exps=rows * vocab,
        bytes=moved,
        vector_flops=2 * rows * vocab,
        l2_bytes=moved,
        activations=moved,
    )


def commit(
    requests: int, layers: int, channels: int, taps: int, late_channels: int, itemsize: float
) -> Cost:
    """State of each layer after the accepted row: read from the pass, written to its slot."""
    moved = 2 * requests * layers * (taps * channels + late_channels) * itemsize
    return Cost(flops=0, exps=0, bytes=moved, l2_bytes=moved, activations=moved / 2)


def plan_branches(requests: int, drafts: int, masks: int, proposals: int, itemsize: float) -> Cost:
    """Reads probabilities and writes branches; a sum and a maximum for each interval of the levels
    on which a pass may end, and each branch."""
    levels = drafts + 1
    moved = itemsize * drafts * (requests + masks) + 4 * requests * (1 + proposals)
    return Cost(0, 0, moved, requests * proposals * levels * (levels + 1))


def active_weights(config: ZayaConfig) -> int:
    """Parameters that one token multiplies with: one expert a layer, and the LM head."""
    hidden = config.hidden_size
    qkv = hidden * (config.conv_channels + 2 * config.late_channels)
    output = config.num_attention_heads * config.head_dim * hidden
    convolutions = config.conv_channels * (config.cca_time0 + config.head_dim * config.cca_time1)
    inner = config.router_hidden_size
    router = inner * (hidden + 2 * inner + config.num_experts + 1)
    expert = 3 * hidden * config.moe_intermediate_size
    layer = qkv + output + convolutions + router + expert
    return config.num_hidden_layers * layer + hidden * config.vocab_size
