"""What a batch of requests holds between two passes, in tensors that stay where they are: a step
changes them in place, so that it can be planned once and captured in a graph."""

import secrets
from collections.abc import Sequence

import torch

from .layout import BlockLayout
from .logit_changes import MaskTable, PenaltyTable
from .types import Accepted, PassInputs, Request, Sampling


class Parameters:
    """What the requests of a batch ask for, by slot.

    seed int64 [B]; limit int32 [B], tokens to emit at most; stop int32 [B,S], filled up with -1,
    which is no token; stops: whether there is any; top: the most log-probabilities of a row that a
    request wants. `used` names the options that some request uses;
    ops skip the others' work. `penalties` and `masks` are None until a request has some.
    """

    OFF = dict(top_k=0, top_p=1.0, min_p=0.0, mix=1.0)

    def __init__(self, capacity: int, rows: int, vocab: int, device: torch.device) -> None:
        """`rows`: verify rows of a request, at most."""

        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((capacity,), value, dtype=dtype, device=device)

        self.seed = full(0, torch.int64)
        self.limit = full(1, torch.int32)
        self.stop = torch.full((capacity, 1), -1, dtype=torch.int32, device=device)
        self.temperature = full(1, torch.float32)
        self.draft_temperature = full(1, torch.float32)
        self.options = dict(
            top_k=full(0, torch.int32),
            top_p=full(1, torch.float32),
            min_p=full(0, torch.float32),
            mix=full(1, torch.float32),
        )
        self.penalties: PenaltyTable | None = None
        self.masks: MaskTable | None = None
        self._sizes = rows, vocab
        self.used: frozenset[str] = frozenset()
        self.stops = False
        self.top = 0

    def write(self, slots: list[int], requests: Sequence[Request]) -> None:
        """Set the slots' parameters; draws the seeds that requests leave open."""
        at = torch.tensor(slots, device=self.seed.device)

        def put(tensor: torch.Tensor, values: list) -> None:
            tensor[at] = torch.tensor(values, dtype=tensor.dtype).to(tensor.device)

        seeds = [secrets.randbits(64) - 2**63 if r.seed is None else r.seed for r in requests]
        drafting = [
            r.temperature if r.draft_temperature is None else r.draft_temperature for r in requests
        ]
        put(self.seed, seeds)
        put(self.limit, [r.max_new_tokens for r in requests])
        put(self.temperature, [r.temperature for r in requests])
        put(self.draft_temperature, drafting)
        for name, tensor in self.options.items():
            put(tensor, [getattr(r, name) for r in requests])
        width = max(self.stop.shape[1], *(len(r.stop) for r in requests))
        if width > self.stop.shape[1]:
            more = self.stop.new_full((len(self.stop), width - self.stop.shape[1]), -1)
            self.stop = torch.cat([self.stop, more], 1)
        put(self.stop, [[*r.stop] + [-1] * (width - len(r.stop)) for r in requests])
        self._write_changes(slots, requests)

    def _write_changes(self, slots: list[int], requests: Sequence[Request]) -> None:
        (rows, vocab), capacity, device = self._sizes, len(self.seed), self.seed.device
        if self.penalties is None and any(r.penalised for r in requests):
            self.penalties = PenaltyTable(capacity, vocab, device)
        if self.masks is None and any(r.allowed is not None for r in requests):
            self.masks = MaskTable(capacity, rows, vocab, device)
        for table in (self.penalties, self.masks):
            if table is not None:
                table.write(slots, requests)

    def use(self, requests: Sequence[Request]) -> None:
        """Note the options that these requests, all that are active, use."""
        self.stops = any(r.stop for r in requests)
        self.top = max((r.top_logprobs for r in requests), default=0)
        names = self.OFF.items()
        used = {n for n, off in names if any(getattr(r, n) != off for r in requests)}
        if any(r.penalised for r in requests):
            used.add("penalties")
        if any(r.allowed is not None for r in requests):
            used.add("allowed")
        self.used = frozenset(used)

    def option(self, name: str) -> torch.Tensor | None:
        return self.options[name] if name in self.used else None

    def sampling(self, temperature: torch.Tensor) -> Sampling:
        return Sampling(temperature, *(self.option(n) for n in ("top_k", "top_p", "min_p")))


class Record:
    """What a batch's requests have come to, whatever the layout of its passes.

    position      int32 [B], prefix lengths at the start of the pass; all its random numbers are
                  drawn at this place
    remaining     int32 [B], tokens still to emit
    emitted       int32 [B], tokens emitted so far
    stopped       bool [B], whether a stop token was emitted
    status        int32 [B], not 0 where the logits were invalid (see Accepted)
    tokens        int32 [B, most tokens + V], valid up to `emitted`
    logprobs      float32, likewise
    top_tokens    int32 [B, most tokens + V, n], likewise; top_logprobs float32
    passes        int64 [B]; committed int32 [B, most tokens + 1]: what each of so many passes
                  yielded, before a cut at a stop token
    """

    def __init__(self, batch: int, most: int, verify_rows: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(batch, *shape, dtype=dtype, device=device)

        self.position = zeros()
        self.remaining = zeros() + 1
        self.emitted = zeros()
        self.stopped = zeros(dtype=torch.bool)
        self.status = zeros()
        self.tokens = zeros(most + verify_rows)
        self.logprobs = zeros(most + verify_rows, dtype=torch.float32)
        self.passes = zeros(dtype=torch.int64)
        self.committed = zeros(most + 1)
        self.top_tokens = zeros(most + verify_rows, 0)
        self.top_logprobs = zeros(most + verify_rows, 0, dtype=torch.float32)

    def widen(self, top: int) -> None:
        """Make room for so many log-probabilities of each token."""
        more = top - self.top_tokens.shape[2]
        if more > 0:
            self.top_tokens = torch.nn.functional.pad(self.top_tokens, (0, more))
            self.top_logprobs = torch.nn.functional.pad(self.top_logprobs, (0, more))

    def top(self, slot: int, count: int, n: int) -> list[list[tuple[int, float]]]:
        """The n most probable ids at the places of so many tokens; none for n = 0."""
        if n == 0:
            return []
        ids, values = (t[slot, :count, :n].tolist() for t in (self.top_tokens, self.top_logprobs))
        return [[pair for pair in zip(*row) if pair[0] >= 0] for row in zip(ids, values)]


class State:
    """Where a batch stands between two passes; drafts are those under test in the next one.

    inputs        of the model's pass
    anchor        int32 [B], the last token emitted, or of the prompt: the verdict's next token
    drafts        int32 [B,K], -1 where there is none
    draft_len     int32 [B], drafts in use; -1: the slot is empty, or its request has ended
    draft_lse     [B,K,4], normalisers and cuts of the distributions that drafts were drawn from
    offset        int32 [B,K]: the mask offset of each draft within its proposal
    branches      int32 [P], the decoder's; not used where each pass plans its own
    branch        int32 [B,P], branches of the next pass's proposals; -1: none
    verdict       what acceptance decided in the last pass; acceptance overwrites all of it
    record        what the requests have come to
    """

    def __init__(
        self,
        layout: BlockLayout,
        prefix_lens: torch.Tensor,
        max_prefix: int,
        mask_token: int,
        branches: list[int],
        record: Record,
    ) -> None:
        device, batch = prefix_lens.device, len(prefix_lens)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.layout, self.prefix_lens, self.record = layout, prefix_lens, record
        self.drafts = zeros(batch, layout.K) - 1
        self.draft_len = zeros(batch) - 1
        self.draft_lse = zeros(batch, layout.K, 4, dtype=torch.float64)
        self.offset = zeros(batch, layout.K)
        self.branch = zeros(batch, layout.P) - 1
        self.verdict = Accepted(
            *(zeros(batch) for _ in range(6)), zeros(batch, layout.V, dtype=torch.float32)
        )
        self.anchor = self.verdict.next_token
        place = torch.arange(batch * layout.rows, dtype=torch.int32, device=device)
        place = place.view(batch, layout.rows)
        self._masks = place[:, :1] + layout.V
        self._first_offset = torch.arange(1, layout.V, dtype=torch.int32, device=device)
        self.branches = torch.tensor(branches, dtype=torch.int32, device=device)
        self._lower = torch.nn.functional.pad(self.branches[:-1], (1, 0))
        self._column = torch.arange(layout.V, device=device)
        self._none = zeros(1) - 1
        tokens = torch.full((batch * layout.rows,), max(mask_token, 0), dtype=torch.int32)
        self.inputs = PassInputs(
            tokens=tokens.to(device),
            live=zeros(batch * layout.rows, dtype=torch.bool),
            rows=layout.pack(prefix_lens, self.draft_len, self.branch, max_prefix),
            verify_rows=place[:, : layout.V].contiguous(),
            draft_rows=zeros(batch, layout.K),
            accepted=self.verdict.accepted,
        )

    def place(self, slots: list[int], requests: Sequence[Request]) -> None:
        """Start these requests, whose prompts but for their last tokens are cached, in the slots.
        Nothing is drafted yet: the first pass has one proposal, which continues the anchor."""
        at = torch.tensor(slots, device=self.anchor.device)
        last = torch.tensor([r.prompt[-1] for r in requests], dtype=torch.int32)
        self.anchor[at] = last.to(self.anchor.device)
        self.drafts[at] = -1
        self.branch[at] = -1
        self.branch[at, :1] = 1
        r = self.record
        for tensor in (self.draft_len, r.emitted, r.status, r.passes):
            tensor[at] = 0
        r.stopped[at] = False

    def want(self, top: int) -> None:
        """Have acceptance write so many log-probabilities of each row."""
        tokens = self.drafts.new_empty(*self.verdict.target_logprob.shape, top) if top else None
        logprobs = None if tokens is None else tokens.float()
        self.verdict = self.verdict._replace(top_tokens=tokens, top_logprobs=logprobs)

    def clear(self, slots: list[int]) -> None:
        """Leave the slots idle."""
        at = torch.tensor(slots, device=self.anchor.device)
        self.draft_len[at] = -1
        self.branch[at] = -1

    def begin(self, limit: torch.Tensor) -> None:
        """Set the pass's inputs: anchor, drafts, masks (dead ones as 0), and what is in use."""
        layout, batch, r = self.layout, len(self.anchor), self.record
        r.position.copy_(self.prefix_lens)
        torch.sub(limit, r.emitted, out=r.remaining)
        tokens = self.inputs.tokens.view(batch, layout.rows)
        live = self.inputs.live.view(batch, layout.rows)
        torch.clamp(self.anchor, min=0, out=tokens[:, 0])
        torch.le(self._column, self.draft_len[:, None], out=live[:, : layout.V])
        if layout.K > 0:
            torch.clamp(self.drafts, min=0, out=tokens[:, 1 : layout.V])
        if layout.P > 0:
            masks = live[:, layout.V :].unflatten(1, (layout.P, layout.M))
            masks.copy_((self.branch > 0)[..., None])

    def emitted_tokens(self) -> torch.Tensor:
        """int32 [B,V]: accepted drafts, then the next token; what follows means nothing."""
        v = self.verdict
        tokens = torch.cat([self.drafts, v.next_token[:, None]], 1)
        return torch.where(self._column == v.accepted[:, None], v.next_token[:, None], tokens)

    def emit(self, stop: torch.Tensor | None, limit: torch.Tensor) -> torch.Tensor:
        """Append the accepted drafts and the next token, cut after the first stop token (`stop`
        None: there are none), and end the requests that are done. Returns `emitted_tokens`."""
        v, r, column = self.verdict, self.record, self._column
        accepted, tokens = v.accepted[:, None], self.emitted_tokens()
        # A pass writes all V columns, which is why the buffers are longer by V. The next pass
        # overwrites those beyond `count`, or nothing ever reads them.
        place = r.emitted[:, None] + column
        r.tokens.scatter_(1, place, tokens)
        r.logprobs.scatter_(1, place, v.target_logprob)
        if v.top_tokens is not None:
            n = v.top_tokens.shape[2]
            wide = place[..., None].expand(-1, -1, n)
            r.top_tokens[..., :n].scatter_(1, wide, v.top_tokens)
            r.top_logprobs[..., :n].scatter_(1, wide, v.top_logprobs)
        count = v.accepted + 1
        r.committed.scatter_(1, r.passes[:, None], count[:, None])
        r.passes += count > 0
        if stop is not None:
            is_stop = (tokens[..., None] == stop[:, None]).any(-1) & (column <= accepted)
            stops = is_stop.any(1)
            count = torch.where(stops, is_stop.int().argmax(1).int() + 1, count)
            r.stopped |= stops
        r.emitted += count
        torch.maximum(r.status, v.status, out=r.status)
        done = (r.emitted >= limit).logical_or_(r.stopped)
        torch.where(done, self._none, v.draft_len, out=self.draft_len)
        return tokens

    def choose_rows(self) -> None:
        """Set the rows to draft from, of the proposal that acceptance chose: draft i comes from its
        mask shift + 1 + i."""
        M = self.layout.M
        torch.add(self.verdict.shift[:, None], self._first_offset, out=self.offset)
        self.offset.clamp_(max=M - 1)
        proposal = self.verdict.proposal.clamp(min=0)[:, None]
        row = torch.add(self._masks, proposal, alpha=M)
        torch.add(row, self.offset, out=self.inputs.draft_rows)

    def choose_branches(self) -> None:
        """The decoder's branches, cut to what each request's drafts reach, D + 1. Of those that
        become equal the first stays, since the others would draft the same."""
        most = self.draft_len[:, None] + 1
        reach = torch.minimum(self.branches, most)
        before = torch.minimum(self._lower, most)
        torch.where(reach == before, self._none, reach, out=self.branch)
