"""What one decode pass is made of."""

from dataclasses import dataclass, replace

from ..models.config import ZayaConfig
from .figures import ITEMSIZE_BYTES, WEIGHT_BYTES


@dataclass(frozen=True)
class Workload:
    """One pass of `batch` requests with `context_tokens` cached each.

    verify_rows    V: the anchor and K = V - 1 drafts; all are counted, since shapes are static
    mask_rows      M: the rows of a proposal
    branches       the branch of each of the P proposals
    dtype          of activations and products, and of all weights that the next two do not name
    kv_dtype       of the cached K and V; products stay in `dtype`
    weight_dtype   of the weights of projections and experts; "": as dtype
    head_dtype     of the LM head's weights, which are the embedding's; "": as dtype
    lm_head        "twice": on the verify rows, then on the chosen drafts; "once": on every row of
                   the pass
    routing        share of the rows that each expert gets; None: uniform
    correlation    how far the rows of a request go to the same expert: 0 independent, 1 all to one
    touched        (rows, experts) that were measured, between which is interpolated, in place of
                   what routing and correlation give; None: not measured
    tp             GPUs that share heads, channels and the vocabulary of each layer
    ep             1: the experts' channels are shared as well; tp: whole experts are
    prefill_rows   rows of a prompt in the same pass, which yield no tokens
    accepted       how many drafts are accepted on average, for the cost of acceptance
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
    weight_dtype: str = ""
    head_dtype: str = ""
    correlation: float = 0.0
    touched: tuple[tuple[float, float], ...] | None = None
    tp: int = 1
    ep: int = 1
    prefill_rows: int = 0

    def __post_init__(self) -> None:
        longest = self.model.max_position_embeddings
        drafts = self.verify_rows - 1
        known = ", ".join(ITEMSIZE_BYTES)
        for name, value, least, most, what in (
            ("batch", self.batch, 1, 65536, ""),
            ("context", self.context_tokens, 0, longest, " tokens (the model's longest)"),
            ("verify_rows", self.verify_rows, 1, 1024, ""),
            ("mask_rows", self.mask_rows, 1, 1024, ""),
            ("prefill", self.prefill_rows, 0, longest, " rows of a prompt"),
            ("accepted", self.accepted, 0, drafts, " drafts"),
        ):
            _need(least <= value <= most, name, f"{least} .. {most}{what}", value)
        _need(
            all(1 <= c <= self.verify_rows for c in self.branches),
            "branches",
            f"branches in 1..{self.verify_rows}",
            self.branches,
        )
        _need(
            len(set(self.branches)) == len(self.branches),
            "branches",
            "different ones (a repeated branch is dead, yet its rows run)",
            self.branches,
        )
        for name in ("dtype", "kv_dtype"):
            value = getattr(self, name)
            _need(value in ITEMSIZE_BYTES, name, f"one of {known}", value)
        for name in ("weight_dtype", "head_dtype"):
            value = getattr(self, name)
            _need(
                not value or value in WEIGHT_BYTES, name, f"one of {', '.join(WEIGHT_BYTES)}", value
            )
        self._check_experts()
        self._check_gpus()
        _need(self.lm_head in ("twice", "once"), "lm_head", "twice or once", self.lm_head)
        if self.routing is not None:
            self._check_routing(self.routing)

    def _check_experts(self) -> None:
        _need(0 <= self.correlation <= 1, "correlation", "0 .. 1", self.correlation)
        if self.touched is None:
            return
        rows = [r for r, _ in self.touched]
        most = self.model.num_experts
        _need(
            len(rows) > 0
            and rows == sorted(set(rows))
            and all(r > 0 and 0 < found <= most for r, found in self.touched),
            "touched",
            f"rows:experts with rising rows and experts in 0 .. {most}",
            self.touched,
        )

    def _check_gpus(self) -> None:
        heads = self.model.num_attention_heads
        _need(
            self.tp >= 1 and heads % self.tp == 0,
            "tp",
            f"a divisor of {heads} query heads",
            self.tp,
        )
        _need(self.ep in (1, self.tp), "ep", f"1 or tp = {self.tp}", self.ep)
        _need(
            self.model.num_experts % self.ep == 0,
            "ep",
            f"a divisor of {self.model.num_experts} experts",
            self.ep,
        )

    def _check_routing(self, routing: tuple[float, ...]) -> None:
        experts = self.model.num_experts
        _need(
            len(routing) == experts and all(share >= 0 for share in routing) and sum(routing) > 0,
            "routing",
            f"{experts} shares >= 0, not all 0",
            routing,
        )

    @property
    def weight_bytes(self) -> float:
        """Of one weight of a projection or an expert."""
        return WEIGHT_BYTES[self.weight_dtype or self.dtype]

    @property
    def head_bytes(self) -> float:
        """Of one weight of the LM head."""
        return WEIGHT_BYTES[self.head_dtype or self.dtype]

    @property
    def rows(self) -> int:
        """Rows of one request."""
        return self.verify_rows + len(self.branches) * self.mask_rows

    @property
    def pass_rows(self) -> int:
        """Rows of all requests, and those of a prompt."""
        return self.batch * self.rows + self.prefill_rows

    def autoregressive(self) -> "Workload":
        """The same requests, one row each and nothing drafted."""
        return replace(self, verify_rows=1, branches=(), accepted=0)


def _need(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def spread(proposals: int, verify_rows: int) -> tuple[int, ...]:
    """`proposals` branches spread evenly over 1..V, as the decoder does without a plan."""
    if not 0 <= proposals <= verify_rows:
        raise ValueError(
            f"proposals: expected 0 .. {verify_rows} (one for each branch), got {proposals!r}"
        )
    gaps = max(proposals - 1, 1)
    return tuple(1 + round(j * (verify_rows - 1) / gaps) for j in range(proposals))
