"""One decode pass as a list of ops with their costs, and the time that a device takes for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from ..models.config import ZayaConfig
from . import costs
from .calibration import Calibration
from .costs import Cost
from .devices import Ceilings
from .figures import ITEMSIZE_BYTES
from .launches import launches
from .workload import Workload


@dataclass(frozen=True)
class OpCost:
    """cost: of all `calls` of an op in a pass. launches: the kernels that they start. stem: that of
    the op, where its name says in what place it stands."""

    name: str
    cost: Cost
    launches: int
    calls: int = 1
    stem: str = ""

    @property
    def op(self) -> str:
        return self.stem or self.name


@dataclass(frozen=True)
class OpTime:
    """seconds: of all calls of the op in a pass, launches included. bound: "memory", "matrix",
    "vector", "L2", "cache", "arithmetic" (on a CPU), "launch" or "host"."""

    op: OpCost
    seconds: float
    bound: str


def expected_experts(w: Workload) -> float:
    """Experts of a layer that the pass is expected to touch. The rows of a request count as
    1 + (rows - 1) (1 - correlation) independent ones."""
    if w.touched is not None:
        return _interpolated(w.touched, w.pass_rows)
    experts = w.model.num_experts
    routing = w.routing or (1.0,) * experts
    total = sum(routing)
    rows = w.batch * (1 + (w.rows - 1) * (1 - w.correlation)) + w.prefill_rows
    return costs.distinct_experts(rows, [share / total for share in routing])


def _interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """Linear between the points, and constant beyond them."""
    points = [(0.0, 0.0), *points]
    for (low, before), (high, after) in pairwise(points):
        if at <= high:
            return before + (after - before) * (at - low) / (high - low)
    return points[-1][1]


def pass_ops(w: Workload) -> list[OpCost]:
    """Every op of the pass on one GPU, summed over its layers."""
    return [*_layer_ops(w), *_exchange(w), *_vocabulary_ops(w), _commit(w)]


def _layer_ops(w: Workload) -> list[OpCost]:
    m = w.model
    size = ITEMSIZE_BYTES[w.dtype]
    layers = m.num_hidden_layers
    rows = w.pass_rows
    hidden = m.hidden_size
    norms = 2 * layers + 1
    heads, kv_heads = _heads(w)
    qkv_channels = (heads + kv_heads) * m.head_dim + 2 * m.late_channels // min(
        w.tp, m.num_key_value_heads
    )
    cca = costs.cca_qkv(rows, heads, kv_heads, m.head_dim, m.cca_time0, m.cca_time1, size)
    router = costs.zaya_router(rows, hidden, m.router_hidden_size, m.num_experts, size)
    attending = launches("block_attention", prefix=w.context_tokens)
    qkv = costs.linear(rows, hidden, qkv_channels, size, w.weight_bytes)
    output = costs.linear(rows, heads * m.head_dim, hidden, size, w.weight_bytes)
    return [
        OpCost(
            "norms, residuals",
            norms * costs.residual_norm(rows, hidden, size),
            norms * launches("residual_norm"),
            norms,
            "residual_norm",
        ),
        OpCost("qkv projection", layers * qkv, layers * launches("linear"), layers, "linear"),
        OpCost("cca_qkv", layers * cca, layers * launches("cca_qkv"), layers),
        OpCost("block_attention", _attention(w), layers * attending, layers),
        OpCost("output projection", layers * output, layers * launches("linear"), layers, "linear"),
        OpCost("zaya_router", layers * router, layers * launches("zaya_router"), layers),
        OpCost("fused_moe", layers * _moe(w), layers * launches("fused_moe", pairs=rows), layers),
    ]


def _heads(w: Workload) -> tuple[int, int]:
    """Query heads and KV heads of a GPU."""
    m = w.model
    return m.num_attention_heads // w.tp, max(1, m.num_key_value_heads // w.tp)


def _moe(w: Workload) -> Cost:
    """One layer's experts. With whole experts on each GPU the busiest one counts: it has no fewer
    than its share, and at least one that is touched."""
    m = w.model
    rows = w.pass_rows
    inner = m.moe_intermediate_size
    touched = expected_experts(w)
    if w.ep == 1:
        inner //= w.tp
    else:
        rows, touched = busiest(rows, touched, m.num_experts, w.ep)
    return costs.fused_moe(
        rows, touched, m.hidden_size, inner, ITEMSIZE_BYTES[w.dtype], w.weight_bytes
    )


def busiest(rows: float, touched: float, experts: int, gpus: int) -> tuple[float, float]:
    """Rows and touched experts of the busiest of the GPUs, over which the experts are spread:
    assumed two standard deviations above the mean, and no more than there are."""
    own = experts // gpus
    share = 1 / gpus
    most = min(rows, rows * share + 2 * sqrt(rows * share * (1 - share)))
    hit = touched / experts
    found = own * hit + 2 * sqrt(own * hit * (1 - hit))
    return most, min(own, touched, max(1.0, found))


def _exchange(w: Workload) -> list[OpCost]:
    """Two sums over the GPUs in each layer, of every row's hidden state:
    the bytes that a GPU sends and receives in a ring."""
    if w.tp == 1:
        return []
    size = ITEMSIZE_BYTES[w.dtype]
    count = 2 * w.model.num_hidden_layers
    ring = 2 * (w.tp - 1) / w.tp
    moved = ring * w.pass_rows * w.model.hidden_size * size
    sums = Cost(0, 0, 0, link_bytes=count * moved)
    return [OpCost("sums over GPUs", sums, count, count, "exchange")]


def _attention(w: Workload) -> Cost:
    """Of all layers, each with its window. Rows of a prompt are taken to be half way through the
    context."""
    m = w.model
    heads, kv_heads = _heads(w)
    total = Cost(0, 0, 0)
    decoding = (w.context_tokens, w.verify_rows, w.branches, w.mask_rows)
    prefill = (w.context_tokens // 2, w.prefill_rows, (), 1)
    sizes = (heads, kv_heads, m.head_dim, ITEMSIZE_BYTES[w.dtype], ITEMSIZE_BYTES[w.kv_dtype])
    for window, layers in _windows(m).items():
        total += w.batch * costs.block_attention(*decoding, *sizes, window) * layers
        if w.prefill_rows:
            total += layers * costs.block_attention(*prefill, *sizes, window)
    return total


def _windows(model: ZayaConfig) -> dict[int, int]:
    """Number of layers by sliding window (0: none)."""
    sliding = model.layer_types.count("hybrid_sliding")
    layers = {0: model.num_hidden_layers - sliding}
    if sliding:
        layers[model.sliding_window] = sliding
    return {window: count for window, count in layers.items() if count}


def _vocabulary_ops(w: Workload) -> list[OpCost]:
    """LM head, acceptance and the next drafts.

    The acceptance is that of `BlockDecoder`: the token rule, with log-probabilities.
    """
    size = ITEMSIZE_BYTES[w.dtype]
    vocabulary = w.model.vocab_size
    drafts = w.verify_rows - 1
    chosen = w.batch * drafts

    def lm_head(name: str, rows: int) -> OpCost:
        own = -(-vocabulary // w.tp)
        cost = costs.linear(rows, w.model.hidden_size, own, size, w.head_bytes)
        return OpCost(f"LM head, {name}", cost, launches("linear"), 1, "linear")

    accept = OpCost(
        "accept_drafts",
        w.batch * costs.accept_drafts(w.accepted, drafts, vocabulary, size),
        launches("accept_drafts", rule="token", logprob=True),
    )
    sample = OpCost(
        "sample_drafts",
        costs.sample_drafts(chosen, vocabulary, size),
        launches("sample_drafts"),
    )
    proposing = bool(w.branches)
    if w.lm_head == "once":
        head = lm_head("all rows", w.batch * w.rows)
        return [head, accept, sample] if proposing else [head, accept]
    head = lm_head("verify", w.batch * w.verify_rows)
    return [head, accept, lm_head("drafts", chosen), sample] if proposing else [head, accept]


def _commit(w: Workload) -> OpCost:
    m = w.model
    cost = costs.commit(
        w.batch,
        m.num_hidden_layers,
        m.conv_channels,
        m.conv_depth,
        m.late_channels,
        ITEMSIZE_BYTES[w.dtype],
    )
    return OpCost("commit", cost, launches("commit"))


def time_ops(ops: Sequence[OpCost], ceilings: Ceilings, launch_us: float = 0.0) -> list[OpTime]:
    """Each op after the other, `launch_us` microseconds added for each kernel started. Calibrated
    ceilings bring fixed costs of their own instead, and end with the host's share of a pass."""
    if not 0 <= launch_us <= 1000:
        raise ValueError(f"launch_us: expected 0 .. 1000 microseconds, got {launch_us!r}")
    if ceilings.calibration is not None:
        return _calibrated(ops, ceilings, ceilings.calibration)
    timed = []
    for op in ops:
        seconds, bound = ceilings.seconds(op.cost, op.calls)
        launching = 1e-6 * launch_us * op.launches
        timed.append(OpTime(op, seconds + launching, "launch" if launching > seconds else bound))
    return timed


def _calibrated(
    ops: Sequence[OpCost], ceilings: Ceilings, calibration: Calibration
) -> list[OpTime]:
    timed = []
    for op in ops:
        phases = ceilings.phases(op.cost, op.calls, op.op)
        seconds = calibration.seconds(op.op, phases, op.calls, op.launches)
        timed.append(OpTime(op, seconds, ceilings.seconds(op.cost, op.calls)[1]))
    if calibration.host_us:
        host = OpCost("host", Cost(0, 0, 0), 0)
        timed.append(OpTime(host, 1e-6 * calibration.host_us, "host"))
    return timed


def pass_seconds(w: Workload, ceilings: Ceilings, launch_us: float = 0.0) -> float:
    return sum(timed.seconds for timed in time_ops(pass_ops(w), ceilings, launch_us))
