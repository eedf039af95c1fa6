"""The objectives: likelihood for the verify rows; likelihood, agreement with the autoregressive
head, and expected acceptance for the mask rows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .forward import Sequences
from .recipe import Recipe


class Losses(NamedTuple):
    """Nats a token, and drafts accepted by a forward; `masks` and `accepted` None without
    proposals."""

    plain: torch.Tensor
    masks: torch.Tensor | None
    accepted: torch.Tensor | None


def replaced(drawn: Sequences, mask_rows: int) -> torch.Tensor:
    """[P,M]: the place in the clean text of the token that each mask row stands for."""
    return drawn.branch[:, None] + torch.arange(mask_rows)


def agreement(target: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """The probability that a draft is accepted, sum of min(p, q), from log-probabilities."""
    return torch.minimum(target.exp(), draft.exp()).sum(-1)


def expected_length(accepted: torch.Tensor) -> torch.Tensor:
    """Drafts that are accepted one after the other, given each one's probability [...,M]. Mask 0
    stands for the anchor, which is not a draft."""
    return accepted[..., 1:].cumprod(-1).sum(-1)


def losses(
    verify: torch.Tensor, masks: torch.Tensor, drawn: Sequences, recipe: Recipe, final: bool
) -> Losses:
    """`final`: the mask loss is what the acceptance phase minimises."""
    targets = drawn.clean[:, 1:]
    plain = F.cross_entropy(verify.flatten(0, 1), targets.flatten())
    if masks.shape[1] == 0:
        return Losses(plain, None, None)
    place = replaced(drawn, masks.shape[2])
    draft = masks.log_softmax(-1)
    # verify row i predicts token i + 1; the head that tests the drafts learns nothing from them
    target = verify.detach().log_softmax(-1)[:, place - 1]
    accepted = expected_length(agreement(target, draft)).mean()
    weight = recipe.decay ** torch.arange(masks.shape[2])
    weight = weight / weight.sum()
    text = -draft.gather(-1, drawn.clean[:, place, None])[..., 0]
    apart = F.kl_div(draft, target, reduction="none", log_target=True).sum(-1)
    loss = ((1 - recipe.distil) * text + recipe.distil * apart).mean((0, 1)) @ weight
    if final:
        # a tenth of the likelihood keeps far offsets, whose drafts are seldom reached, in shape
        loss = 0.1 * loss - accepted
    return Losses(plain, loss, accepted.detach())
