"""From logits to the distribution that a token is drawn from, and the draw."""

import torch

from .argmax import lowest_argmax


def excluded(vocab: int, num_valid_vocab: int, mask_token: int, device) -> torch.Tensor:
    """bool [vocab]: the ids without probability: the vocabulary's padding and the mask token (-1:
    none)."""
    ids = torch.arange(vocab, device=device)
    return (ids >= num_valid_vocab) | (ids == mask_token)


def disallowed(bits, vocab):
    """bool [...,vocab]: the ids whose bit is not set in the words int32 [...,ceil(vocab/32)]."""
    places = torch.arange(32, device=bits.device, dtype=torch.int32)
    return (bits[..., None] >> places & 1).flatten(-2)[..., :vocab] == 0


def penalised(logits, penalties, drafts=None):
    """float32 [B,R,vocab]: logits after vLLM's formulas, in its order: bias, repetition, frequency,
    presence. Row i counts the first i of `drafts` [B,R-1] as emitted (-1: none)."""
    batch, _, vocab = logits.shape
    touched = ~disallowed(penalties.touched, vocab)
    count = penalties.counts.where(touched, -1)[:, None]
    if drafts is not None:
        known = ((drafts >= 0) & (drafts < vocab))[..., None]
        ids = drafts.long().clamp(0, vocab - 1)[..., None]
        emitted = torch.zeros(*drafts.shape, vocab, dtype=torch.int64, device=drafts.device)
        emitted = emitted.scatter_(-1, ids, known.long()).cumsum(1)
        emitted = torch.nn.functional.pad(emitted, (0, 0, 1, 0))  # before each row
        count = torch.where(emitted > 0, count.clamp(min=0) + emitted, count)
    x = logits.float()
    if penalties.bias is not None:
        ids = penalties.bias_ids.long().clamp(max=vocab)
        bias = torch.zeros(batch, vocab + 1, dtype=torch.float32, device=x.device)
        x = x + bias.scatter_(1, ids, penalties.bias)[:, None, :vocab] * touched[:, None]
    repetition, presence, frequency = (t[:, None, None] for t in penalties[2:5])
    x = torch.where(count >= 0, torch.where(x > 0, x / repetition, x * repetition), x)
    # in double, so that the product is not rounded, as in a fused multiply-add
    x = (x.double() - frequency.double() * count.clamp(min=0)).float()
    return torch.where(count > 0, x - presence, x)


def relative(x, temperature):
    """(x - max) / temperature. The subtraction comes first, because x / temperature would round
    away the difference of two logits at low temperatures. In a row without a finite maximum nothing
    is subtracted."""
    top = x.amax(-1, keepdim=True)
    return (x - top.where(top.isfinite(), 0.0)) / temperature


def distribution(logits, banned, temperature, top_k=None, top_p=None, min_p=None):
    """float64 [B,R,vocab] from logits [B,R,vocab] and per-request parameters [B]. A row with NaN
    becomes NaN.

    Order: exclusion, temperature, min-p, top-k, then top-p of what these kept. Of equal logits the
    lower id ranks first; top-p keeps the fewest first ids whose mass reaches it. top_k 0, top_p 1
    and min_p 0 are off. Temperature 0: all mass on the argmax.
    """
    x = logits.double().masked_fill(banned, -torch.inf)
    weights, kept = truncated(x, temperature, top_k, top_p, min_p)
    weights = weights * kept
    sampled = weights / weights.sum(-1, keepdim=True)
    peak = (
        torch.zeros_like(x)
        .scatter(-1, lowest_argmax(x)[..., None], 1.0)
        .where(~x.isnan().any(-1, keepdim=True), torch.nan)
    )
    return torch.where(temperature[:, None, None] > 0, sampled, peak)


def truncated(x, temperature, top_k=None, top_p=None, min_p=None):
    """The ids' weights, and bool: which of them truncation keeps. The greatest weight is 1, so that
    the running sums of equal ones are exact."""
    temperature = temperature.double()[:, None, None]
    weights = relative(x, temperature.where(temperature > 0, 1.0)).exp()
    if top_k is None and top_p is None and min_p is None:
        return weights, torch.ones_like(weights, dtype=torch.bool)
    order = x.sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(-1, order)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if min_p is not None:
        keep &= ranked >= min_p.double()[:, None, None] * ranked[..., :1]
    if top_k is not None:
        k = top_k.long()[:, None, None]
        keep &= (torch.arange(x.shape[-1], device=x.device) < k) | (k <= 0)
    if top_p is not None:
        ranked = ranked * keep
        before = ranked.cumsum(-1) - ranked
        share = top_p.double()[:, None, None]
        keep &= (before < share * ranked.sum(-1, keepdim=True)) | (share >= 1)
    return weights, torch.zeros_like(keep).scatter(-1, order, keep)


def draw(mass, u):
    """A draw by inverse CDF over ascending ids: the first id whose cumulative mass exceeds
    u * total. mass [...,vocab], u [...]."""
    total = mass.cumsum(-1)
    return torch.searchsorted(total, (u * total[..., -1])[..., None], right=True)[..., 0].clamp(
        max=mass.shape[-1] - 1
    )


def row_status(logits, banned):
    """int32 [...]: 1 for a row with NaN or +inf, 2 for a row of -inf only, else 0; excluded ids do
    not count."""
    x = logits.masked_fill(banned, -torch.inf)
    bad, empty = (x.isnan() | (x == torch.inf)).any(-1), (x == -torch.inf).all(-1)
    return torch.where(bad, 1, torch.where(empty, 2, 0)).int()
