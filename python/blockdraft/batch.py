"""A batch whose requests come and go between passes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .contract import Check
from .decode_state import Parameters, State
from .plan import Plan
from .planner import Planner
from .types import Completion, Request, is_integer

if TYPE_CHECKING:
    from .decode import BlockDecoder


class Batch:
    """Up to `capacity` requests that are decoded together; `BlockDecoder.batch` makes one.

        batch = decoder.batch(capacity=16, max_tokens=4096)
        ticket, = batch.add(Request(prompt, 100))
        while batch.active:
            for ticket, completion in batch.step().items(): ...

    A request's tokens do not depend on the others of the batch (with the decoder's branches
    "planned" their distribution does not). A batch belongs to one thread.
    """

    def __init__(
        self, decoder: "BlockDecoder", capacity: int, max_tokens: int, pages: int | None
    ) -> None:
        model, layout = decoder.model, decoder.layout
        self.decoder = decoder
        self.max_tokens = max_tokens
        # a pass stores all its verify rows, up to V - 1 beyond the last token
        room = max_tokens + layout.V
        self.cache = model.new_cache(capacity, room, decoder.page, pages)
        self.parameters = Parameters(capacity, model.device)
        mask_token = decoder.vocabulary["mask_token"]
        self.state = State(
            layout, self.cache.prefix_lens, room, max_tokens, mask_token, decoder.branches
        )
        self.planner = Planner(self.state) if decoder.planned else None
        self.forward = model.plan(self.state.inputs, self.cache)
        self._requests: dict[int, Request] = {}  # by slot
        self._tickets: dict[int, int] = {}  # slot by ticket
        self._free = list(range(capacity))[::-1]
        self._issued = 0
        self._planned_for: frozenset[str] | None = None  # options
        self._plan_sampling()

    @property
    def active(self) -> int:
        """Requests that have tokens to emit."""
        return len(self._tickets)

    @property
    def emitted(self) -> int:
        """Tokens emitted by the requests in the slots; waits for the device."""
        return int(self.state.emitted.sum())

    def add(self, *requests: Request) -> list[int]:
        """Cache the prompts and start the requests; returns a ticket for each. Raises ValueError
        for a request that cannot be decoded, and `OutOfPages` or OverflowError, with nothing
        changed, where there is no room."""
        check = Check("Batch.add")
        self.decoder.check_requests(check, requests)
        for request in requests:
            total = len(request.prompt) + request.max_new_tokens
            together = f"prompt and max_new_tokens of at most {self.max_tokens} together"
            check.need(total <= self.max_tokens, "requests", together, total)
        if len(requests) > len(self._free):
            raise OverflowError(
                f"Batch.add: requests: expected at most {len(self._free)}, for which there are "
                f"free slots, got {len(requests)}"
            )
        if not requests:
            return []
        slots = self._open(requests)
        try:
            self._start(slots, requests)
        except BaseException:  # an interrupt, too, leaves the batch as it was
            self._vacate(slots)
            raise
        tickets = list(range(self._issued, self._issued + len(requests)))
        self._issued += len(requests)
        self._tickets |= zip(tickets, slots)
        return tickets

    def _start(self, slots: list[int], requests: Sequence[Request]) -> None:
        """Cache the prompts, and put the requests into their slots."""
        prompts: list[list[int]] = [[] for _ in range(len(self.state.anchor))]
        for slot, request in zip(slots, requests):
            self._requests[slot] = request
            prompts[slot] = list(request.prompt[:-1])
        if any(prompts):
            self.decoder.model.prefill(prompts, self.cache, self.decoder.chunk)
        self.parameters.write(slots, requests)
        self._plan_sampling()
        self.state.place(slots, requests)

    def step(self, passes: int = 1) -> dict[int, Completion]:
        """Run so many passes, then wait for the device and return the requests that have ended, by
        ticket."""
        for _ in range(passes):
            self._advance()
        draft_len = self.state.draft_len.tolist()
        ended = [ticket for ticket, slot in self._tickets.items() if draft_len[slot] < 0]
        return self._close(ended)

    def tokens(self, ticket: int) -> list[int]:
        """What an active request has emitted so far; waits for the device."""
        Check("Batch.tokens").need(ticket in self._tickets, "ticket", "an active one", ticket)
        slot = self._tickets[ticket]
        return self.state.tokens[slot, : int(self.state.emitted[slot])].tolist()

    def abort(self, ticket: int) -> Completion:
        """End a request now; returns what it has come to."""
        Check("Batch.abort").need(ticket in self._tickets, "ticket", "an active one", ticket)
        return self._close([ticket], aborted=True)[ticket]

    def _open(self, requests: Sequence[Request]) -> list[int]:
        slots: list[int] = []
        try:
            for request in requests:
                tokens = len(request.prompt) + request.max_new_tokens + self.decoder.layout.V
                self.cache.open(self._free[-1], tokens)
                slots.append(self._free.pop())
        except BaseException:
            self._vacate(slots)
            raise
        return slots

    def _vacate(self, slots: list[int]) -> None:
        """Leave the slots idle and free, with their pages."""
        if not slots:
            return
        self.state.clear(slots)
        for slot in reversed(slots):
            self._requests.pop(slot, None)
            self.cache.close(slot)
            self._free.append(slot)

    def _close(self, tickets: list[int], aborted: bool = False) -> dict[int, Completion]:
        if not tickets:
            return {}
        slots = [self._tickets.pop(ticket) for ticket in tickets]
        done = dict(zip(tickets, self._completions(slots, "abort" if aborted else "length")))
        self._vacate(slots)
        return done

    def _completions(self, slots: list[int], reason: str) -> list[Completion]:
        """What the slots' requests have come to; `reason` where there was no stop token."""
        s = self.state
        at = torch.tensor(slots, device=s.anchor.device)
        columns = (s.tokens, s.logprobs, s.emitted, s.status, s.stopped, s.committed, s.passes)
        return [
            Completion(
                tokens=tokens[:count],
                logprobs=logprobs[:count],
                reason="invalid" if status else "stop" if stopped else reason,
                committed=committed[:passes],
            )
            for tokens, logprobs, count, status, stopped, committed, passes in zip(
                *(column[at].tolist() for column in columns)
            )
        ]

    def _plan_sampling(self) -> None:
        """Plan acceptance and drafting, again where requests use other options than before."""
        p = self.parameters
        p.use(list(self._requests.values()))
        if p.used == self._planned_for:
            return
        s, decoder = self.state, self.decoder
        target, drafter = (p.sampling(t) for t in (p.temperature, p.draft_temperature))
        place = dict(seed=p.seed, position=s.position, **decoder.vocabulary)
        accepting, drafting = Plan(), Plan()
        accepting.ops.accept_drafts(
            self.forward.logits,
            s.drafts,
            s.draft_len,
            s.branch,
            decoder.layout.M,
            target_sampling=target,
            drafter_sampling=drafter,
            draft_logits=self.forward.draft_logits,
            draft_lse=s.draft_lse,
            drafter=decoder.drafter,
            mix=p.option("mix"),
            rule=decoder.rule,
            remaining=s.remaining,
            out=s.verdict,
            **place,
        )
        if decoder.layout.P > 0:
            drafting.ops.sample_drafts(
                self.forward.draft_logits,
                s.draft_len,
                drafter_sampling=drafter,
                drafter=decoder.drafter,
                out=(s.drafts, s.draft_lse),
                **place,
            )
        self._accepting, self._drafting, self._planned_for = accepting, drafting, p.used

    @torch.no_grad()
    def _advance(self) -> None:
        """One pass: verify, commit, draft. Nothing here waits for the device."""
        s, p = self.state, self.parameters
        s.begin(p.limit)
        self.forward.run()
        self._accepting.run()
        self.forward.commit()
        if self.planner is not None:
            self.planner.measure()
        s.emit(p.stop if p.stops else None, p.limit)
        if self.decoder.layout.P == 0:
            return
        s.choose_rows()
        self.forward.draft()
        self._drafting.run()
        if self.planner is not None:
            sampled = self.decoder.drafter == "sampled"
            self.planner.look(self.forward.draft_logits, p.draft_temperature if sampled else None)
        if self.decoder.planned:
            self.planner.choose()
        else:
            s.choose_branches()


def check_batch(check: Check, capacity: object, max_tokens: object, pages: object) -> None:
    for name, value in (("capacity", capacity), ("max_tokens", max_tokens), ("pages", pages)):
        fits = is_integer(value, 1, 2**31 - 1) or value is None and name == "pages"
        check.need(fits, name, "an integer of at least 1", repr(value))
