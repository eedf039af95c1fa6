"""How many drafts are kept."""

import triton
import triton.language as tl

from .acceptance import load_distribution
from .distribution import SPREAD, has, probability, uniform
from .request import ACCEPT, draft_logit, target_logit

# As ops.accept_drafts.RULES; greedy is the token rule at temperature 0.
TOKEN, BLOCK, GREEDY = map(tl.constexpr, range(3))


@triton.jit
def smaller(slope, bound, next_slope, next_bound):
    """Composition of two functions c -> min(c * slope, bound). Slopes stay finite, so that 0 times
    a slope is 0."""
    return tl.minimum(slope * next_slope, 1e300), tl.minimum(bound * next_slope, next_bound)


@triton.jit
def chances(request, memory, vocabulary, ROWS: tl.constexpr):
    """For all entries: p(x), q(x), whether they are live drafts, and the block rule's p_i."""
    i = tl.arange(0, ROWS)
    draft = i < request.live
    token = tl.load(request.tokens + i, mask=draft, other=-1)
    p = probability(
        load_distribution(memory, i, draft),
        target_logit(request, i, token, vocabulary),
        token,
        vocabulary,
    )
    q_distribution = load_distribution(memory, request.K + 1 + i, draft)
    if request.draft is not None:
        q = probability(
            q_distribution, draft_logit(request, i, token, vocabulary), token, vocabulary
        )
    else:
        q = ((token == q_distribution.point) & has(vocabulary, token)).to(tl.float64)
    slope = tl.where(draft & (p > 0), tl.minimum(p / tl.where(q > 0, q, 1e-300), 1e300), 0)
    product, bound = tl.associative_scan((slope, tl.full([ROWS], 1, tl.float64)), 0, smaller)
    return p, q, draft, tl.minimum(product, bound)


@triton.jit
def shifted(x, i):
    """x[i - 1], or 1 for i = 0."""
    index = tl.arange(0, x.shape[0])
    return tl.where(i > 0, tl.sum(tl.where(index == i - 1, x, 0), 0), 1)


@triton.jit
def surplus_after(request, memory, carry, vocabulary, blocks, ROWS: tl.constexpr):
    """The sum of (carry[i] * p - q)+ in row i + 1, for each draft i except the last."""
    i = tl.arange(0, ROWS) + 1
    inside = i < request.live
    p = load_distribution(memory, i, inside)
    q = load_distribution(memory, request.K + 1 + i, inside)
    spread = tl.zeros([ROWS], tl.float64)
    for first in range(0, blocks, 16):
        block = first + tl.arange(0, 16)
        at = memory.surplus + i[:, None] * blocks + block[None, :]
        spread += tl.sum(tl.load(at, mask=inside[:, None] & (block < blocks)[None, :], other=0), 1)
    spread *= carry / p.total
    if request.draft is not None:
        of_q = probability(
            q,
            draft_logit(request, i, tl.where(inside, p.point, -1), vocabulary),
            p.point,
            vocabulary,
        )
    else:
        of_q = ((p.point == q.point) & has(vocabulary, p.point)).to(tl.float64)
    token = tl.load(request.tokens + i, mask=inside, other=-1)
    of_p = probability(p, target_logit(request, i, token, vocabulary), token, vocabulary)
    outside = tl.where(p.point == SPREAD, carry * (1 - of_p), tl.maximum(carry - of_q, 0))
    return tl.where(
        inside & (carry > 0),
        tl.where((p.point == SPREAD) & (q.point == SPREAD), spread, outside),
        0,
    )


@triton.jit
def decide(
    request,
    memory,
    seed,
    position,
    uniforms,
    uniforms_row,
    vocabulary,
    blocks,
    RULE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """(drafts kept, status, factor of p in the residual)."""
    i = tl.arange(0, ROWS)
    p, q, draft, carry = chances(request, memory, vocabulary, ROWS)
    u = uniform(
        uniforms,
        request.index * uniforms_row + tl.where(draft, i, 0),
        tl.load(seed + request.index),
        tl.load(position + request.index),
        i,
        ACCEPT,
    )
    status = load_distribution(memory, i, i <= request.live).status
    status = tl.maximum(status, load_distribution(memory, request.K + 1 + i, draft).status)
    scale = tl.full([], 1, tl.float64)
    # The block rule keeps all drafts up to the last one whose test succeeds, even if earlier tests
    # fail. It reads no row after a draft with p = 0.
    if RULE == BLOCK:
        surplus = surplus_after(request, memory, carry, vocabulary, blocks, ROWS)
        spoilt = tl.max((surplus != surplus).to(tl.int32), 0)  # the caller gave q's normaliser
        h = tl.where(
            i + 1 == request.live, carry, tl.where(surplus > 0, surplus / (surplus + 1 - carry), 0)
        )
        accepted = tl.max(tl.where(draft & (u < h), i + 1, 0), 0)
        impossible = tl.min(tl.where(draft & ~(p > 0), i, request.live - 1), 0)
        status = tl.where(
            i <= tl.where(accepted == request.live, request.live, impossible), status, 0
        )
        return accepted, tl.maximum(tl.max(status, 0), spoilt), shifted(carry, accepted)
    else:
        stops = (i == request.live) | (status != 0) | ~(u * q < p)
        accepted = tl.min(tl.where(stops, i, ROWS), 0)
        return accepted, tl.sum(tl.where(i == accepted, status, 0), 0), scale
