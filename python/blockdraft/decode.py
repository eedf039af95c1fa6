"""Block-diffusion decoding of a batch of requests: verify drafts and draft the next ones in the
same forward pass."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from . import ops
from .layout import BlockLayout
from .types import Sampling


@dataclass(frozen=True)
class Request:
    """What to complete, and how. Temperature 0 is greedy; `draft_temperature` None follows
    `temperature`; `mix` below 1 judges drafts against mixed logits, which is faster and no longer
    the target's law."""

    prompt: list[int]
    max_new_tokens: int
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    draft_temperature: float | None = None
    mix: float = 1.0
    stop: tuple[int, ...] = ()

    def __post_init__(self):
        def need(ok, name, expected):
            if not ok:
                raise ValueError(
                    f"Request: {name}: expected {expected}, got {getattr(self, name)!r}"
                )

        def whole(value, least, below):
            return isinstance(value, int) and least <= value < below

        def number(value):
            return isinstance(value, (int, float)) and math.isfinite(value)

        def ids(value):
            return isinstance(value, (list, tuple)) and all(whole(t, 0, 2**31) for t in value)

        need(ids(self.prompt) and len(self.prompt) > 0, "prompt", "a list of at least one token id")
        need(whole(self.max_new_tokens, 1, 2**31), "max_new_tokens", "an integer of at least 1")
        need(whole(self.seed, -(2**63), 2**63), "seed", "a 64-bit integer")
        need(
            number(self.temperature) and self.temperature >= 0,
            "temperature",
            "a finite number of 0 or more",
        )
        need(
            self.draft_temperature is None
            or number(self.draft_temperature)
            and self.draft_temperature >= 0,
            "draft_temperature",
            "None, or a finite number of 0 or more",
        )
        need(whole(self.top_k, 0, 2**31), "top_k", "an integer, 0 (off) or more")
        need(number(self.top_p) and 0 < self.top_p <= 1, "top_p", "more than 0, at most 1")
        need(number(self.mix) and 0 <= self.mix <= 1, "mix", "0 .. 1")
        need(ids(self.stop), "stop", "a tuple of token ids")


@dataclass(frozen=True)
class Completion:
    tokens: list[int]  # ends with the stop token if there was one
    # of each token, under the unmixed target law (temperature 1 for a greedy request)
    logprobs: list[float]
    reason: str  # "stop", "length", or "invalid": NaN, +inf or nothing finite in the logits
    # tokens that each of the request's steps yielded, uncut
    committed: list[int] = field(default_factory=list)

    @property
    def tokens_per_forward(self) -> float:
        return sum(self.committed) / len(self.committed) if self.committed else 0.0


@dataclass
class _State:
    """Device tensors of one `generate` call; drafts are those under test in the next pass."""

    cache: object
    anchor: torch.Tensor
    drafts: torch.Tensor
    draft_len: torch.Tensor
    draft_logits: torch.Tensor | None
    draft_lse: torch.Tensor
    shift: torch.Tensor
    branch: torch.Tensor
    emitted: torch.Tensor
    stopped: torch.Tensor
    status: torch.Tensor
    output: torch.Tensor
    logprobs: torch.Tensor
    committed: list[torch.Tensor]


class BlockDecoder:
    """Decodes with any model that has `config`, `new_cache`, `prefill`, `forward`, `logits` and
    `commit` as ZayaModel has.

    layout    BlockLayout; `BlockLayout.autoregressive()` is plain decoding by the same code
    rule      acceptance: "token", "block" or "greedy" (see ops.accept_drafts)
    drafter     how drafts are drawn: "sampled" or "greedy"
    branches  ascending branches of the proposals, "planned" (by measured acceptance, shared by the
              batch: a request's tokens then depend on its company, its law does not), or None:
              spread evenly over 1..V
    """

    def __init__(
        self,
        model,
        layout: BlockLayout,
        *,
        rule: str = "token",
        drafter: str = "sampled",
        branches: list[int] | str | None = None,
        page: int = 16,
        chunk: int = 512,
    ):
        self.model, self.layout, self.rule, self.drafter, self.page, self.chunk = (
            model,
            layout,
            rule,
            drafter,
            page,
            chunk,
        )
        self.planned = branches == "planned"
        V, P = layout.V, layout.P
        if branches is None or self.planned:
            branches = [1 + round(j * (V - 1) / max(P - 1, 1)) for j in range(P)]
        whole = not isinstance(branches, str) and all(isinstance(c, int) for c in branches)
        if (
            not whole
            or len(branches) != P
            or any(not 1 <= c <= V for c in branches)
            or sorted(branches) != list(branches)
        ):
            raise ValueError(
                f"BlockDecoder: branches: expected {P} ascending branches in 1..{V}, got {branches}"
            )
        if P and model.config.mask_token_id is None:
            raise ValueError(
                "BlockDecoder: model: expected a mask_token_id in its config, to draft with, got None"
            )
        if not isinstance(chunk, int) or chunk < 1:
            raise ValueError(
                f"BlockDecoder: chunk: expected an integer of at least 1, got {chunk!r}"
            )
        if rule not in ("token", "block", "greedy"):
            raise ValueError(
                f"BlockDecoder: rule: expected 'token', 'block' or 'greedy', got {rule!r}"
            )
        if drafter not in ("sampled", "greedy"):
            raise ValueError(
                f"BlockDecoder: drafter: expected 'sampled' or 'greedy', got {drafter!r}"
            )
        self.branches = list(branches)

    def generate(
        self, requests: list[Request], on_step: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Complete all requests together. `on_step(tokens)` is called after each pass with the
        tokens emitted so far."""
        if not requests:
            raise ValueError(
                "BlockDecoder.generate: requests: expected at least one, got an empty batch"
            )
        config = self.model.config
        longest = getattr(config, "max_position_embeddings", None)
        for request in requests:
            bad = [t for t in request.prompt if t >= config.vocab_size]
            if bad:
                raise ValueError(
                    f"BlockDecoder.generate: prompt: expected ids in 0..{config.vocab_size - 1}, got {bad[0]}"
                )
            total = len(request.prompt) + request.max_new_tokens
            if longest is not None and total > longest:
                raise ValueError(
                    f"BlockDecoder.generate: requests: expected prompt and max_new_tokens of at most "
                    f"max_position_embeddings = {longest} together, got {total}"
                )
        self._bind(requests)
        state = self._start(requests)
        while bool((state.draft_len >= 0).any()):
            self.step(state)
            if on_step:
                on_step(int(state.emitted.sum()))
        return self._collect(requests, state)

    def step(self, s: _State) -> None:
        """One forward pass: verify, commit, draft. Nothing here waits for the device (some
        reference ops do)."""
        layout, model = self.layout, self.model
        rows = layout.pack(s.cache.prefix_lens, s.draft_len, s.branch, s.cache.max_tokens)
        position = s.cache.prefix_lens.clone()
        hidden = model.forward(self._tokens(s), rows, s.cache).unflatten(0, (-1, layout.rows))
        verdict = ops.accept_drafts(
            model.logits(hidden[:, : layout.V]),
            s.drafts,
            s.draft_len,
            s.branch,
            layout.M,
            seed=self.seed,
            position=position,
            target_sampling=self.target,
            drafter_sampling=self.drafter_sampling,
            draft_logits=s.draft_logits,
            draft_lse=s.draft_lse,
            drafter=self.drafter,
            mix=self.mix,
            rule=self.rule,
            remaining=self.limit - s.emitted,
            with_logprob=True,
            **self.vocabulary,
        )
        model.commit(verdict.accepted, rows, s.cache)
        self._emit(s, verdict)
        if self.planned:
            self._measure(s, verdict.accepted)
        self._draft(s, hidden, verdict, position)

    def _bind(self, requests):
        """Per-request parameters, as device tensors."""
        device = self.model.device

        def column(values, dtype):
            return torch.tensor(values, dtype=dtype, device=device)

        temperature = [r.temperature for r in requests]
        drafting = [
            t if r.draft_temperature is None else r.draft_temperature
            for t, r in zip(temperature, requests)
        ]
        truncation = (
            column([r.top_k for r in requests], torch.int32)
            if any(r.top_k for r in requests)
            else None,
            column([r.top_p for r in requests], torch.float32)
            if any(r.top_p < 1 for r in requests)
            else None,
        )
        self.target = Sampling(column(temperature, torch.float32), *truncation)
        self.drafter_sampling = Sampling(column(drafting, torch.float32), *truncation)
        self.mix = (
            column([r.mix for r in requests], torch.float32)
            if any(r.mix < 1 for r in requests)
            else None
        )
        self.seed = column([r.seed for r in requests], torch.int64)
        self.limit = column([r.max_new_tokens for r in requests], torch.int32)
        self.fixed = column(self.branches, torch.int32)
        stops = max(1, max(len(r.stop) for r in requests))
        self.stop = column(
            [list(r.stop) + [-1] * (stops - len(r.stop)) for r in requests], torch.int32
        )
        mask = self.model.config.mask_token_id
        self.vocabulary = dict(
            num_valid_vocab=self.model.config.num_valid_vocab,
            mask_token=-1 if mask is None else mask,
        )
        # acceptance by mask offset, as counts; the start stands for two tries at one half
        self.tried = torch.full((self.layout.M,), 2.0, dtype=torch.float64, device=device)
        self.kept = self.tried / 2

    def _start(self, requests) -> _State:
        layout, device, batch = self.layout, self.model.device, len(requests)
        cache = self.model.new_cache(
            [len(r.prompt) - 1 + r.max_new_tokens + layout.V for r in requests], self.page
        )
        if any(len(r.prompt) > 1 for r in requests):
            self.model.prefill([list(r.prompt[:-1]) for r in requests], cache, self.chunk)
        i32 = dict(dtype=torch.int32, device=device)
        branch = torch.full((batch, layout.P), -1, **i32)
        branch[:, :1] = 1
        room = max(r.max_new_tokens for r in requests) + layout.V
        return _State(
            cache,
            torch.tensor([r.prompt[-1] for r in requests], **i32),
            torch.full((batch, layout.K), -1, **i32),
            torch.zeros(batch, **i32),
            torch.zeros(
                batch, layout.K, self.model.config.vocab_size, dtype=self.model.dtype, device=device
            ),
            torch.zeros(batch, layout.K, dtype=torch.float32, device=device),
            torch.zeros(batch, **i32),
            branch,
            torch.zeros(batch, **i32),
            torch.zeros(batch, dtype=torch.bool, device=device),
            torch.zeros(batch, **i32),
            torch.zeros(batch, room, **i32),
            torch.zeros(batch, room, dtype=torch.float32, device=device),
            [],
        )

    def _tokens(self, s):
        """Input ids of the pass, packed: anchor, drafts (dead ones as 0), masks."""
        batch, masks = len(s.anchor), self.layout.P * self.layout.M
        mask = s.anchor.new_full((batch, masks), max(self.vocabulary["mask_token"], 0))
        return torch.cat([s.anchor.clamp(min=0)[:, None], s.drafts.clamp(min=0), mask], 1).flatten()

    def _emit(self, s, verdict):
        """Append the accepted drafts and the next token, cut after the first stop token."""
        a, column = verdict.accepted[:, None], torch.arange(self.layout.V, device=s.anchor.device)
        tokens = torch.cat([s.drafts, verdict.next_token[:, None]], 1)
        tokens = torch.where(column == a, verdict.next_token[:, None], tokens)
        halts = (tokens[..., None] == self.stop[:, None]).any(-1) & (column <= a)
        count = torch.where(halts.any(1), halts.int().argmax(1) + 1, verdict.accepted + 1).int()
        # every row has room for V more entries; those beyond `count` are overwritten by the next
        # step or never read
        place = (s.emitted[:, None] + column).long()
        s.output.scatter_(1, place, tokens)
        s.logprobs.scatter_(1, place, verdict.target_logprob)
        s.committed.append(verdict.accepted + 1)
        s.emitted += count
        s.stopped |= halts.any(1)
        s.status = torch.where(verdict.status != 0, verdict.status, s.status)
        s.anchor = verdict.next_token

    def _measure(self, s, accepted):
        """Count which mask offsets were tried and kept in this pass."""
        draft = torch.arange(self.layout.K, device=accepted.device)
        tried = draft < torch.minimum(accepted + 1, s.draft_len)[:, None]
        offset = (s.shift[:, None] + 1 + draft).clamp(max=self.layout.M - 1).long()
        self.tried.index_add_(0, offset.flatten(), tried.flatten().double())
        self.kept.index_add_(
            0, offset.flatten(), (tried & (draft < accepted[:, None])).flatten().double()
        )

    def _draft(self, s, hidden, verdict, position):
        """Drafts of the chosen proposal, and the branches to draft from in the next pass."""
        layout = self.layout
        done = s.stopped | (s.emitted >= self.limit) | (verdict.draft_len < 0)
        s.draft_len, s.shift = torch.where(done, -1, verdict.draft_len), verdict.shift
        if layout.P == 0:
            return
        index = torch.arange(layout.K, device=s.anchor.device)
        offset = (verdict.shift[:, None] + 1 + index).clamp(max=layout.M - 1)
        row = layout.mask_row(verdict.proposal.clamp(min=0)[:, None], offset).long()
        s.draft_logits = self.model.logits(
            hidden.gather(1, row[..., None].expand(-1, -1, hidden.shape[-1]))
        )
        s.drafts, s.draft_lse = ops.sample_drafts(
            s.draft_logits,
            s.draft_len,
            seed=self.seed,
            position=position,
            drafter_sampling=self.drafter_sampling,
            drafter=self.drafter,
            **self.vocabulary,
        )
        if self.planned:
            rate = self.kept / self.tried
            s.branch = ops.plan_branches(rate[offset.long()], rate, layout.P, s.draft_len)
        else:
            reach = torch.minimum(self.fixed, s.draft_len[:, None] + 1)
            repeated = torch.cat(
                [torch.zeros_like(reach[:, :1], dtype=torch.bool), reach[:, 1:] == reach[:, :-1]], 1
            )
            s.branch = torch.where(repeated | (reach < 1), -1, reach)

    def _collect(self, requests, s) -> list[Completion]:
        committed = torch.stack(s.committed, 1).tolist()
        counts, status, stopped = s.emitted.tolist(), s.status.tolist(), s.stopped.tolist()
        return [
            Completion(
                s.output[b, : counts[b]].tolist(),
                s.logprobs[b, : counts[b]].tolist(),
                "invalid" if status[b] else "stop" if stopped[b] else "length",
                [c for c in committed[b] if c],
            )
            for b in range(len(requests))
        ]
