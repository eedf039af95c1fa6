"""Block-diffusion decoding of a batch of requests: one forward pass verifies the last drafts and
draws the next ones."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from . import ops
from .contract import Check
from .decode_state import Parameters, State
from .layout import BlockLayout
from .types import Accepted, Completion, Request, Rows, is_integer


class Model(Protocol):
    """What BlockDecoder needs of a model; ZayaModel has it.

    `config` has vocab_size, num_valid_vocab, mask_token_id and, where there is such a limit,
    max_position_embeddings. A cache belongs to one batch and has prefix_lens int32 [B] and
    max_tokens, the host's bound on them.
    """

    config: Any
    dtype: torch.dtype
    device: torch.device

    def new_cache(self, max_tokens: list[int], page: int) -> Any:
        """An empty cache for requests of at most `max_tokens` each."""

    def prefill(self, prompts: list[list[int]], cache: Any, chunk: int) -> Any:
        """Cache the prompts, `chunk` tokens of each at a time."""

    def forward(self, tokens: torch.Tensor, rows: Rows, cache: Any) -> torch.Tensor:
        """Hidden states [T,H] of the packed rows."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [...,vocab] of hidden states [...,H]."""

    def commit(self, accepted: torch.Tensor, rows: Rows, cache: Any) -> None:
        """Keep verify rows 0..accepted[b] of the last pass; prefix_lens grows in place."""


class BlockDecoder:
    """Decodes with any `Model`. It holds nothing of a call, so that threads may share one, and
    `on_step` may call it again.

    layout    BlockLayout; `BlockLayout.autoregressive()` is plain decoding by the same code
    rule      how drafts are accepted: "token", "block" or "greedy" (see ops.accept_drafts)
    drafter   how drafts are drawn: "sampled" or "greedy"
    branches  of the proposals, ascending. None: spread evenly over 1..V. "planned": chosen in each
              pass by the batch's measured acceptance; a request's tokens then depend on the others
              in its batch, their distribution does not
    page      tokens of a page of the cache
    chunk     tokens of each prompt that one pass of the prefill takes
    """

    def __init__(
        self,
        model: Model,
        layout: BlockLayout,
        *,
        rule: str = "token",
        drafter: str = "sampled",
        branches: Sequence[int] | str | None = None,
        page: int = 16,
        chunk: int = 512,
    ):
        check = Check("BlockDecoder")
        parts = ("config", "new_cache", "prefill", "forward", "logits", "commit")
        is_model = all(hasattr(model, part) for part in parts)
        is_page = is_integer(page, 8, 2**31 - 1) and page & (page - 1) == 0
        is_chunk = is_integer(chunk, 1, 2**31 - 1)
        check.need(is_model, "model", f"an object with {', '.join(parts)}", type(model).__name__)
        check.need(isinstance(layout, BlockLayout), "layout", "a BlockLayout", repr(layout))
        check.choice("rule", rule, ("token", "block", "greedy"))
        check.choice("drafter", drafter, ("sampled", "greedy"))
        check.need(is_page, "page", "a power of two of at least 8", repr(page))
        check.need(is_chunk, "chunk", "an integer of at least 1", repr(chunk))
        mask_token = model.config.mask_token_id
        masked = mask_token is not None or layout.P == 0
        check.need(masked, "model", "a mask_token_id in its config, to draft with", mask_token)
        self.model = model
        self.layout = layout
        self.rule = rule
        self.drafter = drafter
        self.page = page
        self.chunk = chunk
        self.planned = isinstance(branches, str) and branches == "planned"
        self.branches = _branches(check, layout, None if self.planned else branches)

    def generate(
        self, requests: Sequence[Request], on_step: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Complete all requests together. `on_step(tokens)` is called after each pass with the
        number of tokens emitted so far."""
        _check_requests(requests, self.model.config)
        if on_step is not None and not callable(on_step):
            Check("BlockDecoder.generate").fail("on_step", "a function or None", repr(on_step))
        state = self._start(requests)
        while state.running():
            self.step(state)
            if on_step is not None:
                on_step(int(state.emitted.sum()))
        return state.completions()

    def step(self, state: State) -> None:
        """One forward pass: verify, commit, draft. Nothing here waits for the device, though some
        reference ops do."""
        layout, model = self.layout, self.model
        cache, parameters = state.cache, state.parameters
        # `commit` changes prefix_lens, but the whole step draws its random numbers at this place
        position = cache.prefix_lens.clone()
        rows = layout.pack(cache.prefix_lens, state.draft_len, state.branch, cache.max_tokens)
        hidden = model.forward(self._tokens(state), rows, cache).unflatten(0, (-1, layout.rows))
        verdict = ops.accept_drafts(
            model.logits(hidden[:, : layout.V]),
            state.drafts,
            state.draft_len,
            state.branch,
            layout.M,
            seed=parameters.seed,
            position=position,
            target_sampling=parameters.target_sampling,
            drafter_sampling=parameters.drafter_sampling,
            draft_logits=state.draft_logits,
            draft_lse=state.draft_lse,
            drafter=self.drafter,
            mix=parameters.mix,
            rule=self.rule,
            remaining=parameters.max_new_tokens - state.emitted,
            with_logprob=True,
            **self._vocabulary(),
        )
        model.commit(verdict.accepted, rows, cache)
        state.emit(verdict)
        if self.planned:
            state.measure(verdict.accepted)
        done = state.stopped | (state.emitted >= parameters.max_new_tokens)
        state.draft_len = torch.where(done, -1, verdict.draft_len)
        state.shift = verdict.shift
        if layout.P > 0:
            self._draft(state, hidden, verdict, position)

    def _start(self, requests: Sequence[Request]) -> State:
        """Prefill all of each prompt but its last token, which becomes the first anchor."""
        model, layout, batch = self.model, self.layout, len(requests)
        device = model.device
        room = [r.max_new_tokens + layout.V for r in requests]
        cache = model.new_cache(
            [len(r.prompt) - 1 + more for r, more in zip(requests, room)], self.page
        )
        if any(len(r.prompt) > 1 for r in requests):
            model.prefill([list(r.prompt[:-1]) for r in requests], cache, self.chunk)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # nothing is drafted yet: the first pass has one proposal, which continues the anchor
        branch = zeros(batch, layout.P) - 1
        branch[:, :1] = 1
        vocabulary = model.config.vocab_size
        # planning starts as if each mask offset had been tried twice and kept once
        tried = zeros(layout.M, dtype=torch.float64) + 2
        return State(
            parameters=Parameters.of(requests, self.branches, device),
            cache=cache,
            anchor=torch.tensor([r.prompt[-1] for r in requests], dtype=torch.int32, device=device),
            drafts=zeros(batch, layout.K) - 1,
            draft_len=zeros(batch),
            draft_logits=zeros(batch, layout.K, vocabulary, dtype=model.dtype),
            draft_lse=zeros(batch, layout.K, 2, dtype=torch.float64),
            shift=zeros(batch),
            branch=branch,
            emitted=zeros(batch),
            stopped=zeros(batch, dtype=torch.bool),
            status=zeros(batch),
            tokens=zeros(batch, max(room)),
            logprobs=zeros(batch, max(room), dtype=torch.float32),
            committed=[],
            tried=tried,
            kept=tried / 2,
        )

    def _vocabulary(self) -> dict[str, int]:
        """How the ops read a row of logits: how many ids are real, and which one is the mask."""
        config = self.model.config
        mask_token = -1 if config.mask_token_id is None else config.mask_token_id
        return dict(num_valid_vocab=config.num_valid_vocab, mask_token=mask_token)

    def _tokens(self, state: State) -> torch.Tensor:
        """Input ids of the pass, packed: anchor, drafts (dead ones as 0), masks."""
        anchor, drafts = state.anchor[:, None].clamp(min=0), state.drafts.clamp(min=0)
        masks = self.layout.P * self.layout.M
        mask_token = max(self._vocabulary()["mask_token"], 0)
        mask = anchor.new_full((len(anchor), masks), mask_token)
        return torch.cat([anchor, drafts, mask], 1).flatten()

    def _draft(
        self, state: State, hidden: torch.Tensor, verdict: Accepted, position: torch.Tensor
    ) -> None:
        """Draw drafts from the chosen proposal, and choose the branches of the next pass."""
        layout, parameters = self.layout, state.parameters
        index = torch.arange(layout.K, device=hidden.device)
        offset = (verdict.shift[:, None] + 1 + index).clamp(max=layout.M - 1).long()
        row = layout.mask_row(verdict.proposal.clamp(min=0)[:, None], offset)
        chosen = hidden.gather(1, row[..., None].expand(-1, -1, hidden.shape[-1]))
        state.draft_logits = self.model.logits(chosen)
        state.drafts, state.draft_lse = ops.sample_drafts(
            state.draft_logits,
            state.draft_len,
            seed=parameters.seed,
            position=position,
            drafter_sampling=parameters.drafter_sampling,
            drafter=self.drafter,
            **self._vocabulary(),
        )
        if self.planned:
            rate = state.kept / state.tried
            state.branch = ops.plan_branches(rate[offset], rate, layout.P, state.draft_len)
        else:
            state.branch = _reachable(parameters.branches, state.draft_len)


def _branches(check: Check, layout: BlockLayout, branches: Any) -> list[int]:
    """The proposals' branches, checked; None spreads them evenly over 1..V."""
    V, P = layout.V, layout.P
    if branches is None:
        return [1 + round(j * (V - 1) / max(P - 1, 1)) for j in range(P)]
    fits = isinstance(branches, (list, tuple)) and all(is_integer(c, 1, V) for c in branches)
    fits = fits and len(branches) == P and sorted(branches) == list(branches)
    check.need(fits, "branches", f"{P} ascending branches in 1..{V}", repr(branches))
    return list(branches)


def _reachable(branches: torch.Tensor, draft_len: torch.Tensor) -> torch.Tensor:
    """int32 [B,P]: the branches cut to what each request's drafts reach, D + 1. Of those that
    become equal the first stays, since the others would draft the same."""
    reach = torch.minimum(branches, draft_len[:, None] + 1)
    repeated = torch.zeros_like(reach, dtype=torch.bool)
    repeated[:, 1:] = reach[:, 1:] == reach[:, :-1]
    return torch.where(repeated | (reach < 1), -1, reach)


def _check_requests(requests: Any, config: Any) -> None:
    """Refuse what cannot be decoded, before anything is allocated."""
    check = Check("BlockDecoder.generate")
    expected = "a list of Request"
    if not isinstance(requests, (list, tuple)):
        check.fail("requests", expected, repr(requests))
    check.need(len(requests) > 0, "requests", "at least one", "an empty batch")
    vocab, longest = config.vocab_size, getattr(config, "max_position_embeddings", None)
    for i, request in enumerate(requests):
        if not isinstance(request, Request):
            check.fail("requests", expected, f"{request!r} at {i}")
        highest = max(request.prompt)
        check.need(highest < vocab, "prompt", f"ids in 0..{vocab - 1}", highest)
        total = len(request.prompt) + request.max_new_tokens
        if longest is not None and total > longest:
            together = f"of at most max_position_embeddings = {longest} together"
            check.fail("requests", f"prompt and max_new_tokens {together}", total)
