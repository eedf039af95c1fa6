"""What the drafter would commit if the target were the file itself."""

import torch

from .. import BlockLayout
from ..models.zaya import ZayaModel


@torch.no_grad()
def teacher_forced(
    model: ZayaModel, source: bytes, mask_rows: int, length: int = 512, group: int = 32
) -> list[int]:
    """Tokens committed by each forward if the target were the file itself: greedy drafts, taken
    while they equal it.

    The file is cut into pieces of `length`; every branch of a piece is drafted from, `group`
    proposals a pass, then a walk takes what each forward would commit. The first half of a piece is
    context only.
    """
    committed = []
    for start in range(0, len(source) - length + 1, length):
        text = torch.tensor(list(source[start : start + length]))
        branches = list(range(length // 2, length - mask_rows + 1))
        matches: dict[int, int] = {}
        for first in range(0, len(branches), group):
            some = branches[first : first + group]
            matches.update(zip(some, _matches(model, text, some, mask_rows)))
        at = branches[0]
        while at in matches:
            committed.append(matches[at] + 1)
            at += matches[at] + 1
    return committed


def _matches(
    model: ZayaModel, text: torch.Tensor, branches: list[int], mask_rows: int
) -> list[int]:
    """For each branch, how many greedy drafts in a row equal the text."""
    length = len(text)
    i32 = dict(dtype=torch.int32)
    layout = BlockLayout(length - 1, mask_rows, len(branches))
    rows = layout.pack(
        torch.zeros(1, **i32),
        torch.full((1,), layout.K, **i32),
        torch.tensor([branches], **i32),
        0,
    )
    masks = torch.full((len(branches) * mask_rows,), model.config.mask_token_id)
    hidden = model.forward(torch.cat([text, masks]), rows)[length:]
    logits = model.logits(hidden).unflatten(0, (len(branches), mask_rows))
    logits[..., model.config.num_valid_vocab :] = -torch.inf
    truth = text[torch.tensor(branches)[:, None] + torch.arange(mask_rows)]
    # mask 0 stands on the next anchor, masks 1.. are the drafts after it
    return (logits.argmax(-1) == truth)[:, 1:].int().cumprod(1).sum(1).tolist()
