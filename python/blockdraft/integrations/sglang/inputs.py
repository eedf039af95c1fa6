"""What SGLang's batches carry of the algorithm: within a step, and from one to the next."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType

from ...types import Rows


class Projected(NamedTuple):
    """A layer's inputs of CCA [T,...], and where its requests' states are kept."""

    qk: torch.Tensor
    v_late: torch.Tensor
    hidden: torch.Tensor
    state: Any

    def of(self, rows: torch.Tensor) -> "Projected":
        """Copies of these rows, which stay until acceptance."""
        return Projected(self.qk[rows], self.v_late[rows], self.hidden[rows], self.state)


class VerifyInput(SpecInput):
    """One pass over verify rows and proposals: `rows`, their table, places of the verify rows, and
    `kept`, Rows of those alone.

    The pass leaves `hidden`, the final hidden states of all rows, `head`, which makes logits of
    such, and what each layer of CCA has `projected` in the verify rows.
    """

    ragged_verify_layout = retrieve_next_token = retrieve_next_sibling = None
    hidden: torch.Tensor
    head: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, rows: Rows, kept: Rows, verify_rows: torch.Tensor) -> None:
        super().__init__(
            SpecInputType.NGRAM_VERIFY
        )  # the kinds are closed; this one has no drafter
        self.rows, self.kept, self.verify_rows = rows, kept, verify_rows
        self.table = rows.table(rows.max_rows * len(rows.prefix_lens))
        self.positions = self.table.position
        self.draft_token_num = self.num_tokens_per_req = rows.max_rows
        self.num_tokens_for_logprob_per_req = rows.max_rows
        self.projected: list[Projected] = []


class DraftInput(SpecInput):
    """The last emitted token of each request, whose keys are not cached, and the lengths of what
    is. Drafts stay with the worker. With overlapped scheduling, SGLang relays the tokens itself and
    leaves `future_indices`."""

    topk_p: ClassVar[None] = None
    topk_index: ClassVar[None] = None
    hidden_states: ClassVar[None] = None

    def __init__(self, bonus_tokens: torch.Tensor, new_seq_lens: torch.Tensor) -> None:
        super().__init__(SpecInputType.UNO_STATE)  # carried, no forward runs on it
        self.bonus_tokens, self.new_seq_lens = bonus_tokens, new_seq_lens
        self.future_indices: torch.Tensor | None = None
        self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = 1

    def filter_batch(
        self, new_indices: torch.Tensor, new_indices_cpu: list[int] | None = None
    ) -> None:
        self._set(lambda name: getattr(self, name)[new_indices])

    def merge_batch(self, other: "DraftInput") -> None:
        self._set(lambda name: torch.cat([getattr(self, name), getattr(other, name)]))

    def _set(self, value: Callable[[str], torch.Tensor]) -> None:
        relayed = self.future_indices is not None
        for name in ("future_indices",) if relayed else ("bonus_tokens", "new_seq_lens"):
            setattr(self, name, value(name))


def around_logits(
    original: Callable[..., Any],
    self: Any,
    input_ids: torch.Tensor | None,
    hidden_states: torch.Tensor,
    lm_head: Any,
    logits_metadata: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`LogitsProcessor.forward`: a step's logits are those of its verify rows; those of the rows to
    draft from are wanted after acceptance."""
    info = getattr(logits_metadata, "spec_info", None)

    def logits(hidden: torch.Tensor) -> Any:
        return original(self, input_ids, hidden, lm_head, logits_metadata, *args, **kwargs)

    if not isinstance(info, VerifyInput):
        return logits(hidden_states)
    info.hidden, info.head = hidden_states, lambda hidden: logits(hidden).next_token_logits
    return logits(hidden_states[info.verify_rows])
