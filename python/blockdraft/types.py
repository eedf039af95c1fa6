"""What the public ops and the decoder take and give besides tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class Sampling(NamedTuple):
    """How each request turns logits into a distribution; tensors [B] on the logits' device.

    temperature  float32 >= 0; 0 is greedy
    top_k        int32, 0 keeps every id; None: no request uses it
    top_p        float32 in (0, 1], 1 keeps every id; None: no request uses it
    min_p        float32 in [0, 1]: keeps ids of at least this fraction of the greatest probability,
                 0 keeps every id; None: no request uses it

    They act in vLLM's order: temperature, min-p, top-k, and top-p of what the others kept, as if
    renormalised. (transformers applies min-p last, which keeps more where top-p acts, too.)
    """

    temperature: torch.Tensor
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_p: torch.Tensor | None = None


class Penalties(NamedTuple):
    """What each request changes of its logits before they become a distribution; tensors on the
    logits' device. All but the biases, or none, are given.

    touched     int32 [B,W], W = ceil(vocab/32): the ids that anything below applies to, bit id % 32
                of word id / 32: those of the prompt, the emitted ones, the biased ones. Nothing
                else is looked up for other ids
    counts      int32 [B,vocab]: how often a touched id was emitted; -1 if it is only biased
    repetition  float32 [B] > 0: divides positive logits of ids of the prompt or emitted, and
                multiplies the others; 1 is off
    presence    float32 [B]: subtracted from the logits of emitted ids
    frequency   float32 [B]: subtracted as often as the id was emitted
    bias_ids    int32 [B,N]: touched ids, ascending; unused places at the end are 2^31 - 1
    bias        float32 [B,N]: added to their logits, before all else

    The formulas and their order are vLLM's, in float32. A verify row counts the drafts before it as
    emitted; draft rows count none.
    """

    touched: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    repetition: torch.Tensor | None = None
    presence: torch.Tensor | None = None
    frequency: torch.Tensor | None = None
    bias_ids: torch.Tensor | None = None
    bias: torch.Tensor | None = None


NO_PENALTIES = Penalties()


MAX_TOP = 20  # ids of a row whose log-probabilities may be asked for


class Accepted(NamedTuple):
    """What `accept_drafts` decides for each request; all int32 [B] but the last three.

    accepted        a, the number of drafts kept; -1 for an idle request or a status that is not 0
    next_token      y, the next anchor; -1 where accepted is -1
    proposal        the proposal that supplies the next drafts; -1: none
    shift           its first mask in use is shift + 1
    draft_len       D of the next pass; -1 where accepted is -1
    status          0 fine, 1 NaN or +inf in a row that was read, 2 a row of nothing but -inf
    target_logprob  float32 [B,V], of the committed tokens under the unmixed target distribution,
                    0 beyond them; None unless asked for
    top_tokens, top_logprobs  int32 and float32 [B,V,n]: in the same distributions, the n most
                    probable ids of each row with a committed token, of equal ones the lowest first,
                    and their log-probabilities; -1 and -inf beyond these rows, and where fewer ids
                    have a probability. None unless asked for
    """

    accepted: torch.Tensor
    next_token: torch.Tensor
    proposal: torch.Tensor
    shift: torch.Tensor
    draft_len: torch.Tensor
    status: torch.Tensor
    target_logprob: torch.Tensor | None
    top_tokens: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


class MoeWorkspace(NamedTuple):
    """What `fused_moe` writes on its way, for T rows of k choices: T*k pairs.

    order, offsets  int32 [T*k] and [E+1], as `moe_dispatch` gives them (not for few pairs)
    activations     x's dtype [T*k,I], silu(gate) * up of each pair
    partials        float32 [T*k,H], each pair's output; None where k is 1
    """

    order: torch.Tensor
    offsets: torch.Tensor
    activations: torch.Tensor
    partials: torch.Tensor | None

    @classmethod
    def new(
        cls, x: torch.Tensor, experts: torch.Tensor, num_experts: int, inner: int
    ) -> "MoeWorkspace":
        pairs = experts.numel()
        return cls(
            order=experts.new_empty(pairs),
            offsets=experts.new_empty(num_experts + 1),
            activations=x.new_empty(pairs, inner),
            partials=x.new_empty(pairs, x.shape[1], dtype=torch.float32)
            if experts.shape[1] > 1
            else None,
        )


class RowTable(NamedTuple):
    """What every packed row is: one entry a row, shape [T], int64 but for `live`.

    request   the request that owns the row
    proposal  -1 for a verify row
    index     place within the verify rows, or within the proposal
    branch    c of the row's proposal; for a verify row its index + 1
    live      bool; a dead row computes nothing that is used
    position  for RoPE; 0 for a dead row
    parent    the packed row that the convolution looks back to; -1: the request's stored state
    """

    request: torch.Tensor
    proposal: torch.Tensor
    index: torch.Tensor
    branch: torch.Tensor
    live: torch.Tensor
    position: torch.Tensor
    parent: torch.Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed rows of a batch of B requests; every op that depends on the layout takes one.

    cu_rows        int32 [B+1]: request b owns rows cu_rows[b] up to cu_rows[b+1], first its verify
                   rows, then P * mask_rows mask rows
    prefix_lens    int32 [B]: n, the tokens whose K/V are cached
    draft_len      int32 [B]: D, verify rows 0..D are live and the others dead; -1: the request
                   idles and all its rows are dead
    branch         int32 [B,P]: 1..D+1, or -1 for a dead proposal
    mask_rows      M, the rows of a proposal
    bidirectional  whether the rows of a proposal all see each other; otherwise they are causal
    max_rows       upper bound of a request's rows, known without asking the device
    max_prefix     upper bound of a request's prefix, likewise
    """

    cu_rows: torch.Tensor
    prefix_lens: torch.Tensor
    draft_len: torch.Tensor
    branch: torch.Tensor
    mask_rows: int
    bidirectional: bool
    max_rows: int
    max_prefix: int

    @staticmethod
    def prefill(prefix_lens: torch.Tensor, lengths: list[int], max_prefix: int) -> "Rows":
        """Causal chunks of `lengths[b]` tokens (0 allowed: the request idles) after the given
        prefixes; no proposals."""
        device = prefix_lens.device
        sizes = torch.tensor(lengths, dtype=torch.int32)
        cu_rows = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        cu_rows[1:] = sizes.cumsum(0)
        return Rows(
            cu_rows=cu_rows.to(device),
            prefix_lens=prefix_lens,
            draft_len=(sizes - 1).to(device),
            branch=prefix_lens.new_empty(len(lengths), 0),
            mask_rows=1,
            bidirectional=True,
            max_rows=max(lengths),
            max_prefix=max_prefix,
        )

    def table(self, total: int) -> RowTable:
        """Describe each of the `total` packed rows."""
        cu, n = self.cu_rows.long(), self.prefix_lens.long()
        mask_total = self.branch.shape[1] * self.mask_rows
        row = torch.arange(total, device=cu.device)
        request = torch.searchsorted(cu[1:].contiguous(), row, right=True).clamp(max=len(n) - 1)
        local = row - cu[request]
        masked = local - (cu[request + 1] - cu[request] - mask_total)  # >= 0 for mask rows
        is_mask = masked >= 0
        index = torch.where(is_mask, masked % self.mask_rows, local)
        proposal = torch.where(is_mask, masked // self.mask_rows, -1)
        branch = local + 1
        if mask_total:
            branch = torch.where(
                is_mask, self.branch.long()[request, proposal.clamp(min=0)], branch
            )
        live = (branch >= 1) & (branch <= self.draft_len.long()[request] + 1)
        offset = torch.where(is_mask, branch + index, local)
        first_parent = torch.where(is_mask, cu[request] + branch - 1, -1)
        parent = torch.where(index > 0, row - 1, first_parent)
        return RowTable(
            request=request,
            proposal=proposal,
            index=index,
            branch=branch,
            live=live,
            position=torch.where(live, n[request] + offset, 0),
            parent=torch.where(live, parent, -1),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class PassInputs:
    """What one pass of B requests reads, in tensors that stay while their values change.

    tokens       int32 [T], ids of the packed rows; live bool [T], which rows are in use
    rows         of T = B * (V + P*M) rows
    verify_rows  int32 [B,V], places of the verify rows among the T
    draft_rows   int32 [B,K], places of the mask rows that are drafted from, known after acceptance
    accepted     int32 [B], verify rows 0..accepted[b] are kept; -1: none
    """

    tokens: torch.Tensor
    live: torch.Tensor
    rows: Rows
    verify_rows: torch.Tensor
    draft_rows: torch.Tensor
    accepted: torch.Tensor


def words_of(allowed: torch.Tensor) -> torch.Tensor:
    """The mask bool [...,n] as bits, int32 [...,ceil(n/32)]: bit id % 32 of word id / 32."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[-1] % 32)).unflatten(-1, (-1, 32))
    places = torch.arange(32, device=allowed.device, dtype=torch.int32)
    # an int32 that is shifted to its sign stays one, and a sum of different bits has no carry
    return (padded.int() << places).sum(-1, dtype=torch.int32)


def is_integer(value: object, least: int, most: int) -> bool:
    """Whether value is an int within the bounds; True and False are no integers here."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object, least: float, most: float) -> bool:
    """Whether value is an int or a float within the bounds, which NaN never is."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and least <= value <= most


# A request's numbers become int32 and float32 tensors, so they must be representable there.
_INT32 = 2**31 - 1
_FLOAT32 = torch.finfo(torch.float32)


def _are_token_ids(values: object) -> bool:
    return isinstance(values, (list, tuple)) and all(is_integer(t, 0, _INT32) for t in values)


_ALLOWED = "at least one token id, a function or None"


def _is_finite(value: object) -> bool:
    return is_number(value, -_FLOAT32.max, _FLOAT32.max)


def _is_temperature(value: object) -> bool:
    return is_number(value, 0, _FLOAT32.max)


@dataclass(frozen=True)
class Request:
    """What to complete, and how.

    prompt             token ids, at least one
    max_new_tokens     the most tokens to emit
    seed               a 64-bit integer. Equal seeds and prompts give equal completions, and the
                       default is 0 for every request: to sample a prompt several times, give each
                       request a seed of its own, or None, which draws a fresh one (from the
                       operating system, not from torch's generator) whenever it is decoded
    temperature        0 is greedy
    top_k              keep the k most probable ids; 0 keeps all
    top_p              keep the most probable ids that together have this probability; 1 keeps all
    min_p              keep ids of at least this fraction of the greatest probability; 0 keeps all
    draft_temperature  of the drafter; None follows `temperature`
    mix                below 1, drafts are judged against logits mixed with the drafter's: faster,
                       but the tokens no longer follow the target's distribution
    top_logprobs       also report this many log-probabilities of each row, 20 at most
    stop               token ids that end the completion
    repetition_penalty, presence_penalty, frequency_penalty, logit_bias
                       vLLM's, see `Penalties`; biases by token id
    allowed            what may be emitted: token ids; or a grammar, as a function
                       allowed(emitted, drafts) -> int32 [len(drafts) + 1, ceil(vocab / 32)] of this
                       request's token ids. Row i has the bits (see `words_of`) of what may follow
                       emitted + drafts[:i]; rows behind a draft that is not allowed are not looked
                       at. It is asked once a pass, which then waits for the device; None: all
    """

    prompt: list[int]
    max_new_tokens: int
    seed: int | None = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    draft_temperature: float | None = None
    mix: float = 1.0
    top_logprobs: int = 0
    stop: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed: tuple[int, ...] | Callable[[list[int], list[int]], Any] | None = None

    def __post_init__(self):
        def need(ok: bool, name: str, expected: str) -> None:
            if not ok:
                got = getattr(self, name)
                raise ValueError(f"Request: {name}: expected {expected}, got {got!r}")

        prompt = _are_token_ids(self.prompt) and len(self.prompt) > 0
        seed = self.seed is None or is_integer(self.seed, -(2**63), 2**63 - 1)
        drafting = self.draft_temperature is None or _is_temperature(self.draft_temperature)
        need(prompt, "prompt", "a list of at least one token id")
        need(is_integer(self.max_new_tokens, 1, _INT32), "max_new_tokens", "an integer >= 1")
        need(seed, "seed", "a 64-bit integer or None")
        need(_is_temperature(self.temperature), "temperature", "0 .. 3.4e38")
        need(drafting, "draft_temperature", "None or 0 .. 3.4e38")
        need(is_integer(self.top_k, 0, _INT32), "top_k", "an integer, 0 (off) or more")
        need(is_number(self.top_p, _FLOAT32.tiny, 1), "top_p", "1.2e-38 .. 1")
        need(is_number(self.min_p, 0, 1), "min_p", "0 .. 1")
        need(is_number(self.mix, 0, 1), "mix", "0 .. 1")
        need(is_integer(self.top_logprobs, 0, MAX_TOP), "top_logprobs", f"0 .. {MAX_TOP}")
        need(_are_token_ids(self.stop), "stop", "a tuple of token ids")
        repetition = is_number(self.repetition_penalty, _FLOAT32.tiny, _FLOAT32.max)
        need(repetition, "repetition_penalty", "a number above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            need(_is_finite(getattr(self, name)), name, "a finite number")
        biases = isinstance(self.logit_bias, dict) and _are_token_ids([*self.logit_bias])
        biases = biases and all(map(_is_finite, self.logit_bias.values()))
        need(biases, "logit_bias", "a dict of finite numbers by token id")
        ids = _are_token_ids(self.allowed) and len(self.allowed) > 0
        need(ids or self.allowed is None or callable(self.allowed), "allowed", _ALLOWED)

    @property
    def penalised(self) -> bool:
        """Whether anything is penalised or biased."""
        factors = self.repetition_penalty, self.presence_penalty, self.frequency_penalty
        return factors != (1, 0, 0) or bool(self.logit_bias)


@dataclass(frozen=True)
class Completion:
    """What one request came to.

    tokens     emitted ids; the last is the stop token if there was one
    logprobs   of each token under the unmixed target distribution (temperature 1 for a greedy
               request)
    reason     "stop", "length", "abort", or "invalid": NaN, +inf or nothing finite in the logits
    committed  tokens that each of the request's passes yielded, before any cut at a stop token
    top_logprobs  for each token, the most probable ids at its place with their log-probabilities,
               in the distribution of `logprobs`: as many as the request wants, fewer where fewer
               ids have a probability
    """

    tokens: list[int]
    logprobs: list[float]
    reason: str
    committed: list[int] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)

    @property
    def tokens_per_forward(self) -> float:
        return sum(self.committed) / len(self.committed) if self.committed else 0.0
