"""What the public ops take and give besides tensors."""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Sampling(NamedTuple):
    """How a request turns logits into a law; tensors of shape [B] on the logits' device.

    temperature float32 >= 0 (0: greedy); top_k int32 (0: off) or None; top_p float32 in (0, 1] (1:
    off) or None.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None


class Accepted(NamedTuple):
    """What `accept_drafts` decides for each request; all int32 [B] but target_logprob."""

    accepted: torch.Tensor  # a: drafts kept; -1 for an idle request or one whose status is not 0
    next_token: torch.Tensor  # y, the next anchor; -1 where accepted is -1
    proposal: torch.Tensor  # proposal that supplies the next drafts, -1: none
    shift: torch.Tensor  # its first mask in use is shift + 1
    draft_len: torch.Tensor  # D' of the next step; -1 where accepted is -1
    # 0 fine, 1 NaN or +inf in a row that was read, 2 a row of nothing but -inf
    status: torch.Tensor
    # float32 [B,V]: of the committed tokens under the unmixed target law; 0 beyond
    target_logprob: torch.Tensor | None


class RowTable(NamedTuple):
    """What every packed row is, one entry a row (shape [T]); positions, parents and masks all
    follow from it."""

    request: torch.Tensor  # int64, owner of the row
    proposal: torch.Tensor  # int64, -1 for a verify row
    index: torch.Tensor  # int64, place within the verify rows or within the proposal
    branch: torch.Tensor  # int64, c of the row's proposal; for a verify row its index + 1
    live: torch.Tensor  # bool
    position: torch.Tensor  # int64, position for RoPE; 0 for a dead row
    # int64, packed row that the convolution looks back to; -1: the request's stored state
    parent: torch.Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed rows of a batch of B requests; every op that depends on the layout takes one.

    cu_rows      int32 [B+1]  request b owns rows cu_rows[b]..cu_rows[b+1]: its verify rows, then P
                 * mask_rows mask rows
    prefix_lens  int32 [B]    n, tokens whose K/V are cached
    draft_len    int32 [B]    D: verify rows 0..D live, the others are dead; -1: the request is
                 idle, all rows dead
    branch       int32 [B,P]  1..D+1, or -1 for a dead proposal
    mask_rows    rows of a proposal (M); bidirectional: they all see each other, otherwise they are
                 causal
    max_rows, max_prefix  host-known upper bounds of a request's rows and prefix
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
            cu_rows.to(device),
            prefix_lens,
            (sizes - 1).to(device),
            prefix_lens.new_empty(len(lengths), 0),
            1,
            True,
            max(lengths),
            max_prefix,
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
            request,
            proposal,
            index,
            branch,
            live,
            torch.where(live, n[request] + offset, 0),
            torch.where(live, parent, -1),
        )
