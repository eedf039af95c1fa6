"""Draw the next drafts from the drafter's logits."""

import torch

from .argmax import lowest_argmax
from .distribution import distribution, draw, excluded, row_status


def sample_drafts(
    logits, draft_len, uniforms, drafter_sampling, greedy=False, num_valid_vocab=None, mask_token=-1
):
    """tokens int32 [B,K] (-1 from draft_len on, and for a row without a law) and draft_lse float32
    [B,K] (there 0).

    draft_lse is the log of the law's normaliser: log q(x) = logit / temperature - draft_lse for an
    id that is kept. At temperature 0, or when greedy, it is that of the raw logits.
    """
    batch, K, vocab = logits.shape
    banned = excluded(
        vocab, vocab if num_valid_vocab is None else num_valid_vocab, mask_token, logits.device
    )
    x = logits.double().masked_fill(banned, -torch.inf)
    peak = greedy | (drafter_sampling.temperature <= 0)[:, None]
    q = distribution(logits, banned, *drafter_sampling)
    tokens = torch.where(peak, lowest_argmax(x), draw(q, uniforms))
    scale = torch.where(peak, 1.0, drafter_sampling.temperature.double()[:, None])[..., None]
    lse = torch.where((q > 0) | peak[..., None], x / scale, -torch.inf).logsumexp(-1)
    live = (torch.arange(K, device=x.device) < draft_len[:, None]) & (
        row_status(logits, banned) == 0
    )
    return torch.where(live, tokens, -1).int(), torch.where(live, lse, 0.0).float()
