"""What an engine's requests carry from one step to the next, and a step's part after the target's
pass: acceptance and the next drafts."""

from collections.abc import Callable

import torch

from .. import ops
from ..decode_state import Record, State
from ..layout import BlockLayout
from ..types import Accepted, Sampling


class Drafts:
    """By an engine's number of a request (its slot): drafts under test, how many of them are in
    use, and the branches of the next proposals.

    Drafts are greedy: their distribution is a point, so that nothing of the size of a vocabulary is
    kept between steps, and the emitted tokens have the target's distribution.
    """

    def __init__(
        self,
        requests: int,
        layout: BlockLayout,
        mask_token: int,
        num_valid_vocab: int | None,
        device: torch.device | str,
    ) -> None:
        def full(*shape: int) -> torch.Tensor:
            return torch.full((requests, *shape), -1, dtype=torch.int32, device=device)

        self.layout, self.device = layout, device
        self.vocabulary = dict(num_valid_vocab=num_valid_vocab, mask_token=mask_token)
        self.fields = dict(drafts=full(layout.K), draft_len=full(), branch=full(layout.P))
        self._states: dict[int, State] = {}  # by the number of requests

    def start(self, slots: torch.Tensor) -> None:
        """Nothing is drafted yet: the first step has one proposal, which continues the anchor."""
        self.fields["drafts"][slots] = -1
        self.fields["draft_len"][slots] = 0
        self.fields["branch"][slots] = -1
        self.fields["branch"][slots, :1] = 1

    def load(self, slots: torch.Tensor, prefix_lens: torch.Tensor, anchor: torch.Tensor) -> State:
        """The state of these requests. Its tensors stay for the next step of so many; they are not
        to be handed out."""
        requests = len(slots)
        if requests not in self._states:
            record = Record(requests, 0, self.layout.V, torch.device(self.device))
            prefixes = torch.zeros(requests, dtype=torch.int32, device=self.device)
            branches, mask = self.layout.spread(), self.vocabulary["mask_token"]
            self._states[requests] = State(self.layout, prefixes, 0, mask, branches, record)
        s = self._states[requests]
        for name, field in self.fields.items():
            getattr(s, name).copy_(field[slots])
        s.prefix_lens.copy_(prefix_lens)
        s.record.position.copy_(prefix_lens)
        s.anchor.copy_(anchor)
        return s

    def accept(
        self, s: State, logits: torch.Tensor, seed: torch.Tensor, sampling: Sampling
    ) -> Accepted:
        """By logits [B,V,vocab] of the verify rows."""
        return ops.accept_drafts(
            logits,
            s.drafts,
            s.draft_len,
            s.branch,
            self.layout.M,
            seed=seed,
            position=s.record.position,
            target_sampling=sampling,
            drafter="greedy",
            out=s.verdict,
            **self.vocabulary,
        )

    def draft(
        self,
        slots: torch.Tensor,
        s: State,
        hidden: torch.Tensor,
        masks: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        seed: torch.Tensor,
        sampling: Sampling,
    ) -> None:
        """After acceptance. `hidden` [T,H] are the final hidden states of the pass, masks [B] the
        places of each request's first mask row; head(hidden) are logits."""
        s.draft_len.copy_(s.verdict.draft_len)
        if self.layout.P > 0:
            s.choose_rows()
            first = torch.arange(len(slots), device=slots.device) * self.layout.rows
            # the engine's rows stand elsewhere than those of the state's own layout
            places = s.inputs.draft_rows.long() + (masks - first - self.layout.V)[:, None]
            ops.sample_drafts(
                head(hidden[places.flatten()]).unflatten(0, places.shape),
                s.draft_len,
                seed=seed,
                position=s.record.position,
                drafter_sampling=sampling,
                drafter="greedy",
                out=(s.drafts, s.draft_lse),
                **self.vocabulary,
            )
            s.choose_branches()
        for name, field in self.fields.items():
            field[slots] = getattr(s, name)
