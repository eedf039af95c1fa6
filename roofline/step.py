"""One decode pass as a list of op costs, and the time that a device takes for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..models.config import ZayaConfig
from . import costs
from .costs import Cost
from .devices import ITEMSIZE_BYTES, Ceilings


@dataclass(frozen=True)
class Workload:
    """One pass of `batch` requests with `context_tokens` cached each.

    verify_rows    V: the anchor and K = V - 1 drafts; all are counted, since shapes are static
    mask_rows      M, rows of a proposal; branches: c of each of the P proposals
    dtype          of weights, activations and products; kv_dtype: of the cached K and V (products
                   stay in `dtype`)
    lm_head        "twice": on the verify rows, then on the chosen drafts; "once": on every row of
                   the pass
    routing        share of the rows that each expert gets; None: uniform
    accepted       drafts accepted, for the cost of acceptance (the mean)
    """

    model: ZayaConfig
    batch: int = 1
    context_tokens: int = 8192
    verify_rows: int = 17
    mask_rows: int = 17
    branches: tuple[int, ...] = (1, 9, 17)
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    lm_head: str = "twice"
    routing: tuple[float, ...] | None = None
    accepted: float = 3.6

    def __post_init__(self):
        def need(ok, name, expected, got):
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {got!r}")

        longest = self.model.max_position_embeddings
        need(1 <= self.batch <= 65536, "batch", "1 .. 65536", self.batch)
        need(
            0 <= self.context_tokens <= longest,
            "context",
            f"0 .. {longest} tokens (the model's longest)",
            self.context_tokens,
        )
        need(1 <= self.verify_rows <= 1024, "verify_rows", "1 .. 1024", self.verify_rows)
        need(1 <= self.mask_rows <= 1024, "mask_rows", "1 .. 1024", self.mask_rows)
        need(
            all(1 <= c <= self.verify_rows for c in self.branches),
            "branches",
            f"branches in 1..{self.verify_rows}",
            self.branches,
        )
        for name in ("dtype", "kv_dtype"):
            need(
                getattr(self, name) in ITEMSIZE_BYTES,
                name,
                f"one of {', '.join(ITEMSIZE_BYTES)}",
                getattr(self, name),
            )
        need(self.lm_head in ("twice", "once"), "lm_head", "twice or once", self.lm_head)
        need(
            0 <= self.accepted <= self.verify_rows - 1,
            "accepted",
            f"0 .. {self.verify_rows - 1} drafts",
            self.accepted,
        )
        if self.routing is not None:
            experts = self.model.num_experts
            need(
                len(self.routing) == experts
                and all(share >= 0 for share in self.routing)
                and sum(self.routing) > 0,
                "routing",
                f"{experts} shares >= 0, not all 0",
                self.routing,
            )

    @property
    def rows(self) -> int:
        return self.verify_rows + len(self.branches) * self.mask_rows

    def autoregressive(self) -> "Workload":
        """The same requests, one row each and nothing drafted."""
        return replace(self, verify_rows=1, branches=(), accepted=0)


@dataclass(frozen=True)
class OpCost:
    """Cost of all calls of an op in a pass; launches: kernels started, as blockdraft's ops are laid
    out."""

    name: str
    cost: Cost
    launches: int


@dataclass(frozen=True)
class OpTime:
    """seconds: of all calls of the op in a pass, launches included; bound: "memory", "matrix",
    "vector", "L2", "arithmetic" (on a CPU) or "launch"."""

    op: OpCost
    seconds: float
    bound: str


def expected_experts(w: Workload) -> float:
    """Experts of a block that the pass is expected to touch; rows are taken as independent."""
    experts = w.model.num_experts
    shares = (
        [1 / experts] * experts
        if w.routing is None
        else [share / sum(w.routing) for share in w.routing]
    )
    return costs.distinct_experts(w.batch * w.rows, shares)


def pass_ops(w: Workload) -> list[OpCost]:
    """Every op of the pass, summed over blocks."""
    m, size, kv = w.model, ITEMSIZE_BYTES[w.dtype], ITEMSIZE_BYTES[w.kv_dtype]
    blocks, rows, hidden, heads = (
        m.num_hidden_layers,
        w.batch * w.rows,
        m.hidden_size,
        m.num_attention_heads * m.head_dim,
    )
    attention = sum(
        (_attention(w, window, size, kv) * count for window, count in _windows(m).items()),
        Cost(0, 0, 0),
    )
    ops = [
        OpCost(
            "norms, residuals",
            (2 * blocks + 1) * costs.rms_norm(rows, hidden, size),
            2 * blocks + 1,
        ),
        OpCost(
            "qkv projection",
            blocks * costs.linear(rows, hidden, m.conv_channels + 2 * m.late_channels, size),
            blocks,
        ),
        OpCost(
            "cca_qkv",
            blocks
            * costs.cca_qkv(
                rows,
                m.num_attention_heads,
                m.num_key_value_heads,
                m.head_dim,
                m.cca_time0,
                m.cca_time1,
                size,
            ),
            blocks,
        ),
        OpCost("block_attention", attention, 2 * blocks),  # splits, then their merge
        OpCost("output projection", blocks * costs.linear(rows, heads, hidden, size), blocks),
        OpCost(
            "zaya_router",
            blocks * costs.zaya_router(rows, hidden, m.router_hidden_size, m.num_experts, size),
            blocks,
        ),
        OpCost(
            "fused_moe",
            blocks
            * costs.fused_moe(rows, expected_experts(w), hidden, m.moe_intermediate_size, size),
            3 * blocks,
        ),
    ]
    return ops + _heads(w, size)


def _heads(w: Workload, size: float) -> list[OpCost]:
    """LM head, acceptance, drafts and commit."""
    m, drafts = w.model, w.verify_rows - 1
    proposing = bool(w.branches)
    accept = w.batch * costs.accept_drafts(w.accepted, drafts, m.vocab_size, size)
    commit = costs.commit(
        w.batch, m.num_hidden_layers, m.conv_channels, m.conv_depth, m.late_channels, size
    )

    def head(rows):
        return costs.linear(rows, m.hidden_size, m.vocab_size, size)

    if w.lm_head == "once":
        return [
            OpCost("LM head, all rows", head(w.batch * w.rows), 1),
            OpCost("accept_drafts", accept, 1),
            *(
                [
                    OpCost(
                        "sample_drafts",
                        costs.sample_drafts(w.batch * drafts, m.vocab_size, size),
                        1,
                    )
                ]
                if proposing
                else []
            ),
            OpCost("commit", commit, 1),
        ]
    ops = [
        OpCost("LM head, verify", head(w.batch * w.verify_rows), 1),
        OpCost("accept_drafts", accept, 1),
    ]
    if proposing:
        ops += [
            OpCost("LM head, drafts", head(w.batch * drafts), 1),
            OpCost("sample_drafts", costs.sample_drafts(w.batch * drafts, m.vocab_size, size), 1),
        ]
    return [*ops, OpCost("commit", commit, 1)]


def _windows(model: ZayaConfig) -> dict[int, int]:
    """Number of blocks by sliding window (0: none)."""
    sliding = model.layer_types.count("hybrid_sliding")
    return {
        window: count
        for window, count in (
            (0, model.num_hidden_layers - sliding),
            (model.sliding_window, sliding),
        )
        if count
    }


def _attention(w: Workload, window: int, size: float, kv: float) -> Cost:
    m = w.model
    return w.batch * costs.block_attention(
        w.context_tokens,
        w.verify_rows,
        w.branches,
        w.mask_rows,
        m.num_attention_heads,
        m.num_key_value_heads,
        m.head_dim,
        size,
        kv,
        window,
    )


def time_ops(ops: Sequence[OpCost], ceilings: Ceilings, launch_us: float = 0.0) -> list[OpTime]:
    """Each op after the other, `launch_us` microseconds added for each kernel started."""
    if not 0 <= launch_us <= 1000:
        raise ValueError(f"launch_us: expected 0 .. 1000 microseconds, got {launch_us!r}")
    timed = []
    for op in ops:
        seconds, bound = ceilings.seconds(op.cost)
        launching = 1e-6 * launch_us * op.launches
        timed.append(OpTime(op, seconds + launching, "launch" if launching > seconds else bound))
    return timed


def pass_seconds(w: Workload, ceilings: Ceilings, launch_us: float = 0.0) -> float:
    return sum(timed.seconds for timed in time_ops(pass_ops(w), ceilings, launch_us))


def spread(proposals: int, verify_rows: int) -> tuple[int, ...]:
    """`proposals` branches spread evenly over 1..V, as the decoder does without a plan."""
    if not 0 <= proposals <= verify_rows:
        raise ValueError(
            f"proposals: expected 0 .. {verify_rows} (one for each branch), got {proposals!r}"
        )
    return tuple(1 + round(j * (verify_rows - 1) / max(proposals - 1, 1)) for j in range(proposals))


def fits(w: Workload, memory_bytes: float) -> bool:
    """Do the weights and the cache fit into a device's memory? (`models.weight_count` without
    norms.)"""
    from .models import kv_bytes_per_token, weight_count

    weights = weight_count(w.model) * ITEMSIZE_BYTES[w.dtype]
    return (
        weights
        + w.batch * w.context_tokens * kv_bytes_per_token(w.model, ITEMSIZE_BYTES[w.kv_dtype])
        <= memory_bytes
    )
