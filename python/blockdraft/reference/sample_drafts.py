"""Draws the next drafts from the drafter's logits."""

import torch

from ..types import NO_PENALTIES
from .argmax import lowest_argmax
from .distribution import (
    disallowed,
    distribution,
    draw,
    excluded,
    penalised,
    relative,
    row_status,
    truncated,
)


def sample_drafts(
    logits,
    draft_len,
    uniforms,
    drafter_sampling,
    penalties=NO_PENALTIES,
    allowed=None,
    greedy=False,
    num_valid_vocab=None,
    mask_token=-1,
):
    """tokens int32 [B,K] (-1 from draft_len on and for a row without a distribution) and draft_lse
    float64 [B,K,4] (0 in the same places).

    draft_lse is the row's greatest logit m; l with log q(x) = (logit - m) / temperature - l for
    every kept id x; the least kept logit, and the last id that has it and is kept (the least
    number, and 2^31 - 1, where none is left out). At temperature 0 or if greedy, the distribution
    is that of the raw logits (temperature 1).
    """
    batch, K, vocab = logits.shape
    banned = excluded(
        vocab, vocab if num_valid_vocab is None else num_valid_vocab, mask_token, logits.device
    )
    if penalties.touched is not None:
        logits = penalised(logits, penalties)
    if allowed is not None:
        banned = banned | disallowed(allowed, vocab)
    x = logits.double().masked_fill(banned, -torch.inf)
    peak = greedy | (drafter_sampling.temperature <= 0)[:, None]
    q = distribution(logits, banned, *drafter_sampling)
    _, kept = truncated(x, *drafter_sampling)
    kept = kept | peak[..., None]
    tokens = torch.where(peak, lowest_argmax(x), draw(q, uniforms))
    temperature = torch.where(peak, 1.0, drafter_sampling.temperature.double()[:, None])
    top = x.amax(-1)
    log_sum = relative(x, temperature[..., None]).where(kept, -torch.inf).logsumexp(-1)
    cut = x.where(kept, torch.inf).amin(-1)
    ids = torch.arange(vocab, device=x.device)
    last = ids.where(kept & (x == cut[..., None]), -1).amax(-1)
    whole = kept.all(-1)
    cut, last = cut.where(~whole, -torch.inf), last.where(~whole, 2**31 - 1)
    live = torch.arange(K, device=x.device) < draft_len[:, None]
    live &= row_status(logits, banned) == 0
    lse = torch.stack([top, log_sum, cut, last.double()], -1)
    return torch.where(live, tokens, -1).int(), torch.where(live[..., None], lse, 0.0)
