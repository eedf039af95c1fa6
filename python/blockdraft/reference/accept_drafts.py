"""Speculative acceptance: token rule (arXiv 2211.17192), block rule (arXiv 2403.10444), greedy
match, mixed logits."""

import torch

from ..types import NO_PENALTIES, Accepted
from .distribution import (
    disallowed,
    distribution,
    draw,
    excluded,
    penalised,
    row_status,
    truncated,
)


def accept_drafts(
    target_logits,
    draft_tokens,
    draft_len,
    branch,
    mask_rows,
    uniforms,
    target_sampling,
    drafter_sampling,
    penalties=NO_PENALTIES,
    allowed=None,
    draft_allowed=None,
    mix=None,
    draft_logits=None,
    dirac=False,
    rule="token",
    num_valid_vocab=None,
    mask_token=-1,
    remaining=None,
    with_logprob=False,
    top_n=0,
) -> Accepted:
    """uniforms [B,K+1]: one for the acceptance of each draft, the last one for the draw."""
    batch, V, vocab = target_logits.shape
    K, D, device = V - 1, draft_len.long(), target_logits.device
    banned = excluded(
        vocab, vocab if num_valid_vocab is None else num_valid_vocab, mask_token, device
    )
    draft_banned = banned if draft_allowed is None else banned | disallowed(draft_allowed, vocab)
    if allowed is not None:
        banned = banned | disallowed(allowed, vocab)
    x = draft_tokens.long()
    known = (x >= 0) & (x < vocab)
    column = torch.arange(V, device=device)
    drafted = column[:K] < D[:, None]
    if rule == "greedy":
        target_sampling, dirac = (
            target_sampling._replace(temperature=torch.zeros_like(target_sampling.temperature)),
            True,
        )

    # p is the distribution to verify against (the bonus row D is never mixed), q the one that the
    # drafts were drawn from.
    verified, status = target_logits.double(), row_status(target_logits, banned)
    draft_status = torch.zeros_like(status[:, :K])
    if draft_logits is not None:
        w = (
            torch.ones(batch, 1, 1, dtype=torch.float64, device=device)
            if mix is None
            else mix.double()[:, None, None]
        )
        mixes = drafted[..., None] & (w != 1)
        blend = torch.where(w == 0, draft_logits, w * target_logits[:, :K] + (1 - w) * draft_logits)
        verified = torch.cat([torch.where(mixes, blend, verified[:, :K]), verified[:, K:]], 1)
        if penalties.touched is not None:
            draft_logits = penalised(draft_logits, penalties)
        sampled = (drafter_sampling.temperature > 0) & (not dirac)
        mixed_status = row_status(draft_logits, banned if allowed is None else banned[:, :K])
        mixed_status = torch.where(mixes[..., 0], mixed_status, 0)
        drawn_status = row_status(draft_logits, draft_banned)
        drawn_status = torch.where(drafted & sampled[:, None], drawn_status, 0)
        draft_status = torch.maximum(mixed_status, drawn_status)
    if penalties.touched is not None:
        verified = penalised(verified, penalties, x)
        target_logits = penalised(target_logits, penalties, x)
    p = distribution(verified, banned, *target_sampling)
    # A blend of rows with disjoint supports is empty.
    status = torch.where(status == 0, row_status(verified, banned), status)
    # An invalid temperature, which is not checked on a GPU, gives p no mass.
    status = torch.where((status == 0) & ~(p.sum(-1) > 0), 2, status)
    point = torch.zeros(batch, K, vocab, dtype=torch.float64, device=device)
    point.scatter_(-1, x.clamp(0, vocab - 1)[..., None], known[..., None].double())
    if dirac or draft_logits is None:
        q = point
    else:
        q = torch.where(
            drafter_sampling.temperature[:, None, None] > 0,
            distribution(draft_logits, draft_banned, *drafter_sampling),
            point,
        )

    at = (x.clamp(0, vocab - 1))[..., None]
    px = p[:, :K].gather(-1, at)[..., 0] * known
    qx = q.gather(-1, at)[..., 0]
    if rule == "block":
        a, scale = _block(p, q, px, qx, uniforms[:, :K], drafted, D)
    else:
        a = (drafted & (uniforms[:, :K] * qx < px)).int().cumprod(1).sum(1)
        scale = torch.ones(batch, dtype=torch.float64, device=device)

    # The draw is from the residual if a draft was rejected, from the bonus row if none was.
    row = torch.arange(batch, device=device)
    base = p[row, a]
    mass = base
    if K:
        residual = (scale[:, None] * base - q[row, a.clamp(max=K - 1)]).clamp(min=0)
        usable = (a < D) & (residual.sum(-1) > 0)
        mass = torch.where(usable[:, None], residual, base)
    y = draw(mass, uniforms[:, K])

    last_read = a
    if rule == "block":  # the rows of all drafts, but none after a draft with p = 0
        ends = torch.where(drafted & ~(px > 0), column[:K], K)
        last_read = torch.where(a == D, D, torch.minimum(ends.amin(1), D - 1)) if K else D
    seen = column <= last_read[:, None]
    status = torch.cat([torch.where(seen, status, 0), torch.where(seen[:, :K], draft_status, 0)], 1)
    status = torch.where(D >= 0, status.amax(1) if batch else status.sum(1), 0)
    idle = (D < 0) | (status != 0)
    a, y = torch.where(idle, -1, a), torch.where(idle, -1, y)
    proposal, shift, next_len = _next(a, branch.long(), mask_rows, K, remaining)
    logprobs = ()
    if with_logprob:
        logprobs = _logprobs(target_logits, banned, target_sampling, x, a, y, top_n)
    return Accepted(
        *(t.int() for t in (a, y, proposal, shift, next_len, status)), *(logprobs or (None,))
    )


def _block(p, q, px, qx, u, drafted, D):
    """By the block rule: the number of accepted drafts, and the factor p_tau of p in the
    residual."""
    batch, K = px.shape
    carry = torch.ones(batch, dtype=torch.float64, device=px.device)
    a, scale = torch.zeros_like(D), carry
    for i in range(K):
        carry = torch.where(px > 0, carry[:, None] * px / qx, 0)[:, i].clamp(max=1.0)
        if i + 1 < K:
            surplus = (carry[:, None] * p[:, i + 1] - q[:, i + 1]).clamp(min=0).sum(-1)
        else:
            surplus = torch.zeros_like(carry)
        h = torch.where(surplus > 0, surplus / (surplus + 1 - carry), 0.0)
        h = torch.where(D == i + 1, carry, h)  # the last draft has no next row
        taken = drafted[:, i] & (u[:, i] < h)
        a, scale = torch.where(taken, i + 1, a), torch.where(taken, carry, scale)
    return a, scale


def _next(a, branch, mask_rows, K, remaining):
    """The proposal of the largest live branch c <= a + 1 (ties: the lowest index), its shift, and
    how many drafts it supplies."""
    none = torch.full_like(a, -1)
    proposal, shift, length = none, torch.zeros_like(a), torch.zeros_like(a)
    if branch.shape[1]:
        fits = torch.where((branch >= 1) & (branch <= a[:, None] + 1), branch, 0)
        best = fits.amax(1)
        index = torch.arange(branch.shape[1], device=a.device)
        first = torch.where(fits == best[:, None], index, branch.shape[1]).amin(1)
        found = best > 0
        proposal, shift = torch.where(found, first, none), torch.where(found, a + 1 - best, 0)
        length = torch.where(found, (mask_rows - 1 - shift).clamp(0, K), 0)
    if remaining is not None:
        length = torch.minimum(length, (remaining.long() - a - 2).clamp(min=0))
    return proposal, shift, torch.where(a < 0, none, length)


def _logprobs(target_logits, banned, target_sampling, x, a, y, top_n):
    """Log-probabilities of the accepted drafts and of y in the unmixed target distribution;
    temperature 0 counts as 1. If top_n is not 0, also the top_n first ids and their
    log-probabilities."""
    batch, V, vocab = target_logits.shape
    temperature = target_sampling.temperature.where(target_sampling.temperature > 0, 1.0)
    p = distribution(target_logits, banned, temperature, *target_sampling[1:])
    column = torch.arange(V, device=x.device)
    tokens = torch.cat([x, y[:, None]], 1)
    tokens = torch.where(column == a[:, None], y[:, None], tokens).clamp(min=0)
    value = p.gather(-1, tokens[..., None])[..., 0].log()
    committed = column <= a[:, None]
    logprob = torch.where(committed, value, 0.0).float()
    if top_n == 0:
        return (logprob,)
    logits = target_logits.double().masked_fill(banned, -torch.inf)
    kept = truncated(logits, temperature, *target_sampling[1:])[1]
    first = logits.where(kept, -torch.inf).sort(dim=-1, descending=True, stable=True)
    place = torch.arange(top_n, device=x.device).clamp(max=vocab - 1).expand(batch, V, -1)
    exists = (first.values.gather(-1, place) > -torch.inf) & committed[..., None]
    exists &= torch.arange(top_n, device=x.device) < vocab
    ids = first.indices.gather(-1, place)
    value = p.gather(-1, ids).log()
    ids, value = torch.where(exists, ids, -1), torch.where(exists, value, -torch.inf)
    return logprob, ids.int(), value.float()
