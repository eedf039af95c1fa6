"""A batch whose requests come and go between passes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .contract import Check
from .decode_state import Parameters, Record
from .stage import Stage
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
    "planned", or several layouts, their distribution does not). A batch belongs to one thread.
    """

    def __init__(
        self, decoder: "BlockDecoder", capacity: int, max_tokens: int, pages: int | None
    ) -> None:
        model = decoder.model
        self.decoder = decoder
        self.max_tokens = max_tokens
        # a pass stores all its verify rows, up to V - 1 beyond the last token
        room = max_tokens + decoder.verify_rows
        self.cache = model.new_cache(capacity, room, decoder.page, pages)
        vocab = model.config.vocab_size
        self.parameters = Parameters(capacity, decoder.verify_rows, vocab, model.device)
        self.record = Record(capacity, max_tokens, decoder.verify_rows, model.device)
        shared = self.cache, self.parameters, self.record, room
        self._stages = {
            least: Stage(decoder, layout, branches, *shared)
            for least, (layout, branches) in decoder.layouts.items()
            if least <= capacity
        }
        self.stage = self._stages[1]
        self._requests: dict[int, Request] = {}  # by slot
        self._tickets: dict[int, int] = {}  # slot by ticket
        self._free = list(range(capacity))[::-1]
        self._issued = 0
        self._use_options()

    @property
    def active(self) -> int:
        """Requests that have tokens to emit."""
        return len(self._tickets)

    @property
    def emitted(self) -> int:
        """Tokens emitted by the requests in the slots; waits for the device."""
        return int(self.record.emitted.sum())

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
        prompts: list[list[int]] = [[] for _ in range(len(self.record.emitted))]
        for slot, request in zip(slots, requests):
            self._requests[slot] = request
            prompts[slot] = list(request.prompt[:-1])
        if any(prompts):
            self.decoder.model.prefill(prompts, self.cache, self.decoder.chunk)
        self.parameters.write(slots, requests)
        self._use_options()
        self.stage.state.place(slots, requests)

    @torch.no_grad()
    def step(self, passes: int = 1) -> dict[int, Completion]:
        """Run so many passes, then wait for the device and return the requests that have ended, by
        ticket."""
        for _ in range(passes):
            self._advance()
        draft_len = self.stage.state.draft_len.tolist()
        ended = [ticket for ticket, slot in self._tickets.items() if draft_len[slot] < 0]
        return self._close(ended)

    def tokens(self, ticket: int) -> list[int]:
        """What an active request has emitted so far; waits for the device."""
        Check("Batch.tokens").need(ticket in self._tickets, "ticket", "an active one", ticket)
        slot = self._tickets[ticket]
        return self.record.tokens[slot, : int(self.record.emitted[slot])].tolist()

    def abort(self, ticket: int) -> Completion:
        """End a request now; returns what it has come to."""
        Check("Batch.abort").need(ticket in self._tickets, "ticket", "an active one", ticket)
        return self._close([ticket], aborted=True)[ticket]

    def _open(self, requests: Sequence[Request]) -> list[int]:
        slots: list[int] = []
        try:
            for request in requests:
                tokens = len(request.prompt) + request.max_new_tokens + self.decoder.verify_rows
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
        self.stage.state.clear(slots)
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
        r = self.record
        at = torch.tensor(slots, device=r.emitted.device)
        columns = (r.tokens, r.logprobs, r.emitted, r.status, r.stopped, r.committed, r.passes)
        return [
            Completion(
                tokens=tokens[:count],
                logprobs=logprobs[:count],
                reason="invalid" if status else "stop" if stopped else reason,
                committed=committed[:passes],
                top_logprobs=r.top(slot, count, self._requests[slot].top_logprobs),
            )
            for slot, tokens, logprobs, count, status, stopped, committed, passes in zip(
                slots, *(column[at].tolist() for column in columns)
            )
        ]

    def _use_options(self) -> None:
        """What the requests' options ask of the stage's plans."""
        self.parameters.use(list(self._requests.values()))
        self.stage.plan_sampling()

    def _advance(self) -> None:
        """One pass, of the layout for so many requests."""
        stage = self._stage_for(self.active)
        if stage is not self.stage:
            stage.take_over(self.stage)
            stage.plan_sampling()
            self.stage = stage
        stage.advance([each for each in self._requests.items() if callable(each[1].allowed)])

    def _stage_for(self, active: int) -> Stage:
        return self._stages[max(least for least in self._stages if least <= max(active, 1))]


def check_batch(check: Check, capacity: object, max_tokens: object, pages: object) -> None:
    for name, value in (("capacity", capacity), ("max_tokens", max_tokens), ("pages", pages)):
        fits = is_integer(value, 1, 2**31 - 1) or value is None and name == "pages"
        check.need(fits, name, "an integer of at least 1", repr(value))
