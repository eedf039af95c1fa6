"""The passes of one layout of a batch: their state, and their plans."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .decode_state import Parameters, Record, State
from .graph import Replayed
from .layout import BlockLayout
from .plan import Plan
from .planner import Planner
from .types import NO_PENALTIES, Request

if TYPE_CHECKING:
    from .decode import BlockDecoder


class Stage:
    """Passes of a layout over a batch's requests. A batch has one for each layout that its decoder
    moves between; they share the cache, the parameters and the record."""

    def __init__(
        self,
        decoder: "BlockDecoder",
        layout: BlockLayout,
        branches: list[int] | None,
        cache: Any,
        parameters: Parameters,
        record: Record,
        max_prefix: int,
    ) -> None:
        """`branches` of the proposals; None: planned in each pass."""
        self.decoder, self.layout, self.planned = decoder, layout, branches is None
        self.parameters = parameters
        mask_token = decoder.vocabulary["mask_token"]
        self.state = State(
            layout, cache.prefix_lens, max_prefix, mask_token, branches or [], record
        )
        self.planner = Planner(self.state) if self.planned else None
        self.forward = decoder.model.plan(self.state.inputs, cache)
        self._planned_for: Any = None
        device = decoder.model.device if decoder.graphs else None
        self._verify = Replayed(self._run_verify, device)
        self._decide = Replayed(self._run_decide, device)

    def plan_sampling(self) -> None:
        """Plan acceptance and drafting, again where requests use other options than before, or
        their tensors had to grow."""
        p = self.parameters
        penalties = p.penalties.now if "penalties" in p.used else NO_PENALTIES
        masks = p.masks if "allowed" in p.used else None
        s, decoder = self.state, self.decoder
        s.record.widen(p.top)
        growing = penalties.bias, p.stop if p.stops else None, s.record.top_tokens
        planned_for = p.used, p.top, [None if t is None else t.shape for t in growing]
        if planned_for == self._planned_for:
            return
        s.want(p.top)
        target, drafter = (p.sampling(t) for t in (p.temperature, p.draft_temperature))
        place = dict(seed=p.seed, position=s.record.position, **decoder.vocabulary)
        accepting, drafting = Plan(), Plan()
        accepting.ops.accept_drafts(
            self.forward.logits,
            s.drafts,
            s.draft_len,
            s.branch,
            self.layout.M,
            target_sampling=target,
            drafter_sampling=drafter,
            draft_logits=self.forward.draft_logits,
            draft_lse=s.draft_lse,
            drafter=decoder.drafter,
            penalties=penalties,
            allowed=None if masks is None else masks.verify[:, : self.layout.V],
            draft_allowed=None if masks is None else masks.draft.expand(-1, self.layout.K, -1),
            mix=p.option("mix"),
            rule=decoder.rule,
            remaining=s.record.remaining,
            out=s.verdict,
            **place,
        )
        if self.layout.P > 0:
            drafting.ops.sample_drafts(
                self.forward.draft_logits,
                s.draft_len,
                drafter_sampling=drafter,
                drafter=decoder.drafter,
                penalties=penalties,
                allowed=None if masks is None else masks.draft.expand(-1, self.layout.K, -1),
                out=(s.drafts, s.draft_lse),
                **place,
            )
        self.accepting, self.drafting, self._planned_for = accepting, drafting, planned_for
        self._decide.renew()

    def advance(self, grammars: Sequence[tuple[int, Request]] = ()) -> None:
        """One pass: verify, commit, draft. Nothing here waits for the device unless there are
        `grammars`, requests by slot that give masks for each pass."""
        self._verify()
        if grammars:
            self._ask(grammars)
        self._decide()

    def _run_verify(self) -> None:
        self.state.begin(self.parameters.limit)
        self.forward.run()

    def _run_decide(self) -> None:
        """Accept, commit, and draft what the next pass verifies."""
        s, p = self.state, self.parameters
        self.accepting.run()
        self.forward.commit()
        if self.planner is not None:
            self.planner.measure()
        tokens = s.emit(p.stop if p.stops else None, p.limit)
        if "penalties" in p.used:
            p.penalties.count(tokens, s.verdict.accepted)
        if self.layout.P == 0:
            return
        s.choose_rows()
        self.forward.draft()
        self.drafting.run()
        self._choose_branches()

    def _ask(self, grammars: Sequence[tuple[int, Request]]) -> None:
        """Set the verify rows' masks of the requests that have a function for them."""
        s = self.state
        lengths, emitted = s.draft_len.tolist(), s.record.emitted.tolist()
        for slot, request in grammars:
            if lengths[slot] < 0:
                continue
            tokens = s.record.tokens[slot, : emitted[slot]].tolist()
            drafts = s.drafts[slot, : lengths[slot]].tolist()
            self.parameters.masks.ask(slot, request, tokens, drafts)

    def take_over(self, before: "Stage") -> None:
        """Go on where another layout's stage stands. Drafts beyond K are dropped, which the
        verdict's law allows, since nothing looks at them."""
        s, old = self.state, before.state
        kept = min(self.layout.K, before.layout.K)
        s.anchor.copy_(old.anchor)
        s.drafts.fill_(-1)
        for name in ("drafts", "draft_lse", "offset"):
            getattr(s, name)[:, :kept] = getattr(old, name)[:, :kept]
        s.offset.clamp_(max=self.layout.M - 1)
        self.forward.draft_logits[:, :kept] = before.forward.draft_logits[:, :kept]
        torch.clamp(old.draft_len, max=kept, out=s.draft_len)
        if self.layout.P > 0:
            self._choose_branches()

    def _choose_branches(self) -> None:
        if self.planner is not None:
            sampled = self.decoder.drafter == "sampled"
            temperature = self.parameters.draft_temperature if sampled else None
            self.planner.look(self.forward.draft_logits, temperature)
        if self.planned:
            self.planner.choose()
        else:
            self.state.choose_branches()
