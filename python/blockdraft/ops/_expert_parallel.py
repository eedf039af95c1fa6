"""`fused_moe` with the experts spread over the processes of a group."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from .. import registry
from ..contract import F32, I32, Check


def fused_moe(
    local: Callable[..., torch.Tensor],
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    hidden: int,
    count: int,
    group: dist.ProcessGroup,
    shards: Sequence[int] | None,
    skip_prob: torch.Tensor | None,
) -> torch.Tensor:
    """y of this process's rows. `local(x, experts, weights)` has the `count` experts of this
    process; `shards` are the counts of all, by rank (None: all have as many).

    A row is sent once to each process that has experts of its choice, as bytes together with its
    choices there, and comes back as their sum in x's dtype. The sums are added in fp32, by rank.
    """
    check = Check("fused_moe")
    check.tensor("x", x, "T H")
    check.need(x.shape[1] == hidden, "x", f"rows of {hidden}", x.shape[1])
    check.tensor("experts", experts, "T k", I32)
    check.tensor("weights", weights, "T k", F32)
    check.tensor("skip_prob", skip_prob, "T", F32, optional=True)
    check.need(not registry.is_recording(), "group", "None, within a Plan", "a group")
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    shards = [count] * size if shards is None else list(shards)
    check.need(len(shards) == size, "shards", f"{size} counts of experts", shards)
    check.need(shards[rank] == count, "shards", f"{count} experts for rank {rank}", shards)
    last = sum(shards) - 1
    check.values("experts", experts, -1, last, f"-1 .. {last}")
    ends = torch.tensor(shards, device=x.device).cumsum(0)
    owner = torch.searchsorted(ends, experts.long(), right=True)
    owner = owner.masked_fill(experts < 0, size)
    ranks = torch.arange(size, device=x.device)
    to, row = (owner[None] == ranks[:, None, None]).any(2).nonzero(as_tuple=True)
    first = (ends - ends.new_tensor(shards))[to, None]
    there = owner[row] == to[:, None]
    choices = torch.where(there, experts[row] - first, -1).int()
    sent = torch.bincount(to, minlength=size)
    got = _counts(sent, [*shards, hidden, experts.shape[1], x.element_size()], group)
    sent = sent.tolist()
    parts = _exchange([x[row], choices, weights[row]], sent, got, group)
    y = local(*parts) if len(parts[0]) else parts[0]
    (back,) = _exchange([y], got, sent, group)
    out = x.new_zeros(x.shape, dtype=torch.float32)
    for rows, values in zip(row.split(sent), back.split(sent)):
        out[rows] += values.float()  # within one rank's share no row comes twice
    return out if skip_prob is None else out + x.float() * skip_prob[:, None]


def _counts(sent: torch.Tensor, shape: list[int], group: dist.ProcessGroup) -> list[int]:
    """How many rows each process sends to this one. All must have called with the same shape."""
    message = torch.tensor([shape] * len(sent), device=sent.device)
    message = torch.cat([sent[:, None], message], 1)
    got = torch.empty_like(message)
    _all_to_all(got, message, None, None, group)
    for peer, (_, *theirs) in enumerate(got.tolist()):
        if theirs != shape:
            raise ValueError(
                "fused_moe: shards, hidden size, choices and bytes of a number: expected those of "
                f"this process, {shape}, got {theirs} in process {peer} of the group"
            )
    return got[:, 0].tolist()


def _exchange(
    tensors: list[torch.Tensor], sent: list[int], got: list[int], group: dist.ProcessGroup
) -> list[torch.Tensor]:
    """The rows of all tensors, `sent[r]` of them to rank r, `got[r]` from it, in one message."""
    widths = [t.shape[1] * t.element_size() for t in tensors]
    parts = [t.flatten().view(torch.uint8).view(-1, w) for t, w in zip(tensors, widths)]
    message = torch.cat(parts, 1)
    received = message.new_empty(sum(got), message.shape[1])
    _all_to_all(received, message, got, sent, group)
    copies = [
        part.clone(memory_format=torch.contiguous_format) for part in received.split(widths, 1)
    ]
    return [copy.view(t.dtype) for copy, t in zip(copies, tensors)]


def _all_to_all(
    out: torch.Tensor,
    message: torch.Tensor,
    got: list[int] | None,
    sent: list[int] | None,
    group: dist.ProcessGroup,
) -> None:
    try:
        dist.all_to_all_single(out, message, got, sent, group=group)
    except RuntimeError as error:
        raise RuntimeError(
            f"fused_moe: group: expected an answer of all its processes, got {error}"
        ) from error
