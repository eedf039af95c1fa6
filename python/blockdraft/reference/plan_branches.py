"""The branches for P proposals that maximise the expected number of drafts accepted in the next
pass."""

import torch


def plan_branches(accept, offset_accept, proposals: int, draft_len):
    """branch int32 [B,P], ascending, -1 where a further branch gains nothing. Exact, by dynamic
    programming over levels.

    A pass that accepts a drafts ends on level a + 1, and the largest branch c <= a + 1 supplies the
    next drafts from mask offset a + 2 - c on. accept [B,K]: the probability that each draft is
    accepted, given that those before it are; offset_accept [M]: that of the token at a mask offset.
    The branches do not change the acceptance of the current pass.
    """
    batch, K = accept.shape
    device, levels, mask_rows = accept.device, K + 1, len(offset_accept)
    index = torch.arange(levels, device=device)
    alive = torch.where(index[:K] < draft_len[:, None], accept.double(), 0.0)
    reach = torch.cat(
        [torch.ones(batch, 1, dtype=torch.float64, device=device), alive.cumprod(1)], 1
    )
    weight = reach * (1 - torch.cat([alive, torch.zeros_like(reach[:, :1])], 1))  # [B, level - 1]

    # expected drafts accepted in the next pass, by shift
    gain = torch.zeros(levels, dtype=torch.float64, device=device)
    for shift in range(min(levels, mask_rows)):
        gain[shift] = (
            offset_accept.double()[shift + 1 : shift + 1 + min(mask_rows - 1 - shift, K)]
            .cumprod(0)
            .sum()
        )

    # segment[b, c, e]: the value of levels c..e-1 if branch c serves them
    shift = index[None] - index[:, None]
    value = torch.where(shift >= 0, gain[shift.clamp(min=0)], 0.0) * weight[:, None]
    segment = torch.cat([torch.zeros_like(value[..., :1]), value.cumsum(-1)], -1)
    segment = segment.masked_fill(
        torch.arange(levels + 1, device=device) <= index[:, None], -torch.inf
    )
    allowed = index <= draft_len[:, None]
    end = torch.full((batch, levels + 1), -torch.inf, dtype=torch.float64, device=device)
    end[:, -1] = 0  # tails[n][b, e]: the best value of the levels from e on with n more branches
    tails, choices = [end], []
    for _ in range(proposals):
        best, following = (segment + tails[-1][:, None]).max(-1)
        best = torch.cat([best.masked_fill(~allowed, -torch.inf), tails[0][:, -1:]], 1)
        choices.append(torch.cat([following, torch.full_like(following[:, :1], levels)], 1))
        tails.append(best)

    out = torch.full((batch, proposals), -1, dtype=torch.int32, device=device)
    place = torch.zeros(batch, dtype=torch.long, device=device)
    if proposals:
        place = tails[-1][:, :levels].argmax(1)
        place = torch.where(tails[-1].gather(1, place[:, None])[:, 0] > 0, place, levels)
    for j in range(proposals):
        out[:, j] = torch.where(place < levels, place + 1, -1)
        place = choices[proposals - 1 - j].gather(1, place[:, None])[:, 0]
    return out
