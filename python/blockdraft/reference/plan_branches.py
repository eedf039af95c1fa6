"""The branches for P proposals that maximise the expected number of drafts accepted in the next
pass."""

import torch
import torch.nn.functional as F


def plan_branches(accept, mask_accept, proposals: int, draft_len):
    """branch int32 [B,P], ascending, -1 where a further branch gains nothing. Exact, by dynamic
    programming over levels.

    A pass that accepts a drafts ends on level a + 1, and the largest branch c <= a + 1 supplies the
    next drafts from mask a + 2 - c on. accept [B,K]: the probability that each draft is accepted,
    given that those before it are; mask_accept [K,M]: that of draft i of the next pass, if it comes
    from mask m. The branches do not change the acceptance of the current pass.
    """
    batch, K = accept.shape
    masks = mask_accept.shape[1]
    level = torch.arange(K + 1, device=accept.device)
    draft = level[:K]
    alive = torch.where(draft < draft_len[:, None], accept.double(), 0.0)
    # [B, level - 1]: the probability that the pass ends there
    weight = F.pad(alive.cumprod(1), (1, 0), value=1.0) * (1 - F.pad(alive, (0, 1)))

    # expected drafts accepted in the next pass, by shift
    mask = level[:, None] + 1 + draft
    rate = mask_accept.double()[draft, mask.clamp(max=masks - 1)]
    gain = torch.where(mask < masks, rate, 0.0).cumprod(1).sum(1)

    # segment[b, c, e]: the value of levels c..e-1 if branch c serves them
    shift = level - level[:, None]
    value = torch.where(shift >= 0, gain[shift.clamp(min=0)], 0.0) * weight[:, None]
    segment = F.pad(value.cumsum(-1), (1, 0))
    empty = torch.arange(K + 2, device=accept.device) <= level[:, None]
    beyond = level[:, None] > draft_len[:, None, None]
    segment.masked_fill_(empty | beyond, -torch.inf)
    end = segment.new_full((batch, K + 2), -torch.inf)
    end[:, -1] = 0  # tails[n][b, e]: the best value of the levels from e on with n more branches
    tails, choices = [end], []
    for _ in range(proposals):
        best, following = _last_greatest(segment + tails[-1][:, None])
        choices.append(F.pad(following, (0, 1), value=K + 1))
        tails.append(F.pad(best, (0, 1)))

    out = torch.full((batch, proposals), -1, dtype=torch.int32, device=accept.device)
    place = torch.zeros(batch, dtype=torch.long, device=accept.device)
    if proposals:
        best, place = _last_greatest(tails[-1][:, : K + 1])
        place.masked_fill_(best <= 0, K + 1)
    for j in range(proposals):
        out[:, j] = torch.where(place <= K, place + 1, -1)
        place = choices[proposals - 1 - j].gather(1, place[:, None])[:, 0]
    return out


def _last_greatest(x):
    """The maxima of the last dimension, and their places: of equal ones the last, which takes the
    fewest branches."""
    greatest, place = x.flip(-1).max(-1)
    return greatest, x.shape[-1] - 1 - place
