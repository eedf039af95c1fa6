"""Draws the next drafts from the drafter's logits."""

import torch

from .argmax import lowest_argmax
from .distribution import distribution, draw, excluded, relative, row_status


def sample_drafts(
    logits, draft_len, uniforms, drafter_sampling, greedy=False, num_valid_vocab=None, mask_token=-1
):
    """tokens int32 [B,K] (-1 from draft_len on and for a row without a distribution) and draft_lse
    float64 [B,K,2] (0 in the same places).

    draft_lse is the row's greatest logit m, and l with log q(x) = (logit - m) / temperature - l for
    every kept id x. At temperature 0 or if greedy, l is that of the raw logits (temperature 1).
    """
    batch, K, vocab = logits.shape
    banned = excluded(
        vocab, vocab if num_valid_vocab is None else num_valid_vocab, mask_token, logits.device
    )
    x = logits.double().masked_fill(banned, -torch.inf)
    peak = greedy | (drafter_sampling.temperature <= 0)[:, None]
    q = distribution(logits, banned, *drafter_sampling)
    tokens = torch.where(peak, lowest_argmax(x), draw(q, uniforms))
    temperature = torch.where(peak, 1.0, drafter_sampling.temperature.double()[:, None])
    top = x.amax(-1)
    kept = torch.where((q > 0) | peak[..., None], relative(x, temperature[..., None]), -torch.inf)
    live = torch.arange(K, device=x.device) < draft_len[:, None]
    live &= row_status(logits, banned) == 0
    lse = torch.stack([top, kept.logsumexp(-1)], -1)
    return torch.where(live, tokens, -1).int(), torch.where(live[..., None], lse, 0.0)
