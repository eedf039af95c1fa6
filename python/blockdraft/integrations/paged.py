"""What the attention backends of serving engines share: their metadata as Rows."""

import torch

from ..types import Rows


def rows_of(
    starts: torch.Tensor,
    lengths: torch.Tensor,
    max_rows: int,
    max_length: int,
    draft_len: torch.Tensor | None = None,
    branch: torch.Tensor | None = None,
    mask_rows: int = 1,
) -> Rows:
    """Rows of requests whose packed tokens begin at `starts` [B+1] and of which, with those tokens,
    there are `lengths` [B]. They are causal, or draft blocks: then draft_len [B], branch [B,P] and
    mask_rows are those of Rows, and lengths count the verify rows, dead ones too. A request without
    tokens idles. Nothing waits for the device."""
    starts = starts.int()
    masks = 0 if branch is None else branch.shape[1] * mask_rows
    verify = starts.diff() - masks
    return Rows(
        cu_rows=starts,
        prefix_lens=(lengths.int() - verify).clamp(min=0),
        draft_len=verify - 1 if draft_len is None else draft_len.int(),
        branch=starts.new_empty(len(lengths), 0) if branch is None else branch.int(),
        mask_rows=mask_rows,
        bidirectional=True,
        max_rows=max_rows,
        max_prefix=max_length,
    )
