"""One decode pass as a list of ops with their costs, and the time that a device takes for it."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Experts of a layer that the pass is expected to touch; rows are taken as independent."""
    experts = w.model.num_experts
    routing = w.routing or (1.0,) * experts
    total = sum(routing)
    return costs.distinct_experts(w.batch * w.rows, [share / total for share in routing])


def pass_ops(w: Workload) -> list[OpCost]:
    """Every op of the pass, summed over its layers."""
    return [*_layer_ops(w), *_vocabulary_ops(w), _commit(w)]


def _layer_ops(w: Workload) -> list[OpCost]:
    m = w.model
    size = ITEMSIZE_BYTES[w.dtype]
    layers = m.num_hidden_layers
    rows = w.batch * w.rows
    hidden = m.hidden_size
    norms = 2 * layers + 1
    qkv_channels = m.conv_channels + 2 * m.late_channels
    head_channels = m.num_attention_heads * m.head_dim
    cca = costs.cca_qkv(
        rows,
        m.num_attention_heads,
        m.num_key_value_heads,
        m.head_dim,
        m.cca_time0,
        m.cca_time1,
        size,
    )
    router = costs.zaya_router(rows, hidden, m.router_hidden_size, m.num_experts, size)
    moe = costs.fused_moe(rows, expected_experts(w), hidden, m.moe_intermediate_size, size)
    attending = launches("block_attention", prefix=w.context_tokens)
    return [
        OpCost(
            "norms, residuals",
            norms * costs.residual_norm(rows, hidden, size),
            norms * launches("residual_norm"),
            norms,
            "residual_norm",
        ),
        OpCost(
            "qkv projection",
            layers * costs.linear(rows, hidden, qkv_channels, size),
            layers * launches("linear"),
            layers,
            "linear",
        ),
        OpCost("cca_qkv", layers * cca, layers * launches("cca_qkv"), layers),
        OpCost("block_attention", _attention(w), layers * attending, layers),
        OpCost(
            "output projection",
            layers * costs.linear(rows, head_channels, hidden, size),
            layers * launches("linear"),
            layers,
            "linear",
        ),
        OpCost("zaya_router", layers * router, layers * launches("zaya_router"), layers),
        OpCost("fused_moe", layers * moe, layers * launches("fused_moe", pairs=rows), layers),
    ]


def _attention(w: Workload) -> Cost:
    """Of all layers, each with its window."""
    m = w.model
    total = Cost(0, 0, 0)
    for window, layers in _windows(m).items():
        request = costs.block_attention(
            w.context_tokens,
            w.verify_rows,
            w.branches,
            w.mask_rows,
            m.num_attention_heads,
            m.num_key_value_heads,
            m.head_dim,
            ITEMSIZE_BYTES[w.dtype],
            ITEMSIZE_BYTES[w.kv_dtype],
            window,
        )
        total += w.batch * request * layers
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
        cost = costs.linear(rows, w.model.hidden_size, vocabulary, size)
        return OpCost(f"LM head, {name}", cost, launches("linear"), 1, "linear")

    accept = OpCost(
        "accept_drafts",
        w.batch * costs.accept_drafts(w.accepted, drafts, vocabulary, size),
        launches("accept_drafts", rule="token", drafts=drafts, logprob=True),
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
        phases = ceilings.phases(op.cost, op.calls)
        seconds = calibration.seconds(op.op, *phases, op.calls, op.launches)
        timed.append(OpTime(op, seconds, ceilings.seconds(op.cost, op.calls)[1]))
    if calibration.host_us:
        host = OpCost("host", Cost(0, 0, 0), 0)
        timed.append(OpTime(host, 1e-6 * calibration.host_us, "host"))
    return timed


def pass_seconds(w: Workload, ceilings: Ceilings, launch_us: float = 0.0) -> float:
    return sum(timed.seconds for timed in time_ops(pass_ops(w), ceilings, launch_us))
