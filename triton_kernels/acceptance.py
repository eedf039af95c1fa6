"""What the steps of accept_drafts do for one request. Rows 0..K are the target's; the drafter's
follow."""

from typing import NamedTuple

import triton
import triton.language as tl

from .distribution import (
    EMPTY,
    FIELDS,
    LOG2_E,
    NOT_NUMBERS,
    NOWHERE,
    SPREAD,
    Blend,
    Changed,
    Distribution,
    Masked,
    MaskedBlend,
    Row,
    conclude,
    exponent,
    find,
    has,
    is_set,
    logits,
    masses_of,
    measure,
    mixed,
    penalised,
    probability,
    uniform,
    walk,
)
from .truncation import (
    PLAN,
    ROOM,
    enlist,
    has_list,
    limits,
    listing_at,
    needs_sample,
    nothing_listed,
    spare,
    survey,
    truncated,
    truncated_alone,
)

# How drafts are accepted, as ops.accept_drafts.RULES; greedy is the token rule at temperature 0.
TOKEN, BLOCK, GREEDY = map(tl.constexpr, range(3))
ACCEPT, DRAW = tl.constexpr(0), tl.constexpr(1)  # purposes of uniforms


class Sampling(NamedTuple):
    """A request's temperature, and pointers to every request's top_k, top_p and min_p."""

    temperature: tl.tensor
    top_k: tl.tensor
    top_p: tl.tensor
    min_p: tl.tensor


class Memory(NamedTuple):
    """A request's part of the workspace."""

    distributions: tl.tensor  # [2 K + 1][FIELDS]
    plans: tl.tensor  # [2 K + 1][PLAN]
    partials: tl.tensor  # [2 K + 1][2][blocks]: sums, then greatest logits
    surplus: tl.tensor  # [K][blocks]
    sums: tl.tensor  # [blocks]
    scale: tl.tensor  # of p in the residual distribution
    lists: tl.tensor  # [2 K + 1][ROOM]


class Request(NamedTuple):
    """A request: its rows, how many drafts a request may have (K) and how many it has (live)."""

    index: tl.tensor
    K: tl.tensor
    live: tl.tensor
    target: tl.tensor  # pointer to its row 0
    target_row: tl.tensor  # stride of rows
    draft: tl.tensor
    draft_row: tl.tensor
    tokens: tl.tensor
    allowed: tl.tensor  # pointer to the words of row 0, or None
    allowed_row: tl.tensor
    draft_allowed: tl.tensor
    draft_allowed_row: tl.tensor
    penalties: tl.tensor  # Penalties, or None
    weight: tl.tensor  # of the target's logits in a mixed row
    sampled: tl.tensor  # whether q has the distribution of the draft logits; else it is a point


@triton.jit
def row_of_target(request, i):
    at = request.target + i.to(tl.int64) * request.target_row
    if request.penalties is not None:
        if request.weight is None:
            return changed(request, at, at, 1.0, request.allowed, request.allowed_row, i, i)
        else:
            other = request.draft + i.to(tl.int64) * request.draft_row
            weight = tl.where(i < request.live, request.weight, 1.0)
            return changed(request, at, other, weight, request.allowed, request.allowed_row, i, i)
    elif request.weight is None:
        if request.allowed is None:
            return Row(at)
        else:
            return Masked(at, request.allowed + i.to(tl.int64) * request.allowed_row)
    else:
        other = request.draft + i.to(tl.int64) * request.draft_row
        weight = tl.where(i < request.live, request.weight, 1.0)
        if request.allowed is None:
            return Blend(at, other, weight)
        else:
            allowed = request.allowed + i.to(tl.int64) * request.allowed_row
            return MaskedBlend(at, other, weight, allowed)


@triton.jit
def changed(request, at, other, weight, allowed, allowed_row, i, drafted):
    p = request.penalties
    masked = allowed is not None
    words = allowed + i.to(tl.int64) * allowed_row if masked else p.touched
    return Changed(
        at,
        other,
        tl.full([], 1, tl.float32) * weight,
        words,
        tl.full([], masked, tl.int1),
        p.touched,
        p.counts,
        p.repetition,
        p.presence,
        p.frequency,
        p.bias_ids,
        p.bias,
        p.biases,
        p.drafts,
        drafted,
    )


@triton.jit
def as_target(request, i, at):
    """The row at `at`, with the mask and the penalties of target row i."""
    if request.penalties is not None:
        return changed(request, at, at, 1.0, request.allowed, request.allowed_row, i, i)
    elif request.allowed is None:
        return Row(at)
    else:
        return Masked(at, request.allowed + i.to(tl.int64) * request.allowed_row)


@triton.jit
def row_of_draft(request, i):
    at = request.draft + i.to(tl.int64) * request.draft_row
    if request.penalties is not None:
        return changed(
            request, at, at, 1.0, request.draft_allowed, request.draft_allowed_row, i, 0 * i
        )
    elif request.draft_allowed is None:
        return Row(at)
    else:
        return Masked(at, request.draft_allowed + i.to(tl.int64) * request.draft_allowed_row)


@triton.jit
def target_logit(request, i, token, vocabulary):
    """The logits of tokens in target rows i; 0 where there is none."""
    known = has(vocabulary, token) & (i <= request.live)
    x = tl.load(
        request.target + i.to(tl.int64) * request.target_row + token, mask=known, other=0
    ).to(tl.float32)
    if request.weight is not None:
        known &= i < request.live
        y = tl.load(
            request.draft + i.to(tl.int64) * request.draft_row + token, mask=known, other=0
        ).to(tl.float32)
        x = mixed(x, y, tl.where(i < request.live, request.weight, 1.0))
    if request.penalties is not None:
        used = has(vocabulary, token) & (i <= request.live)
        x = penalised(request.penalties, x, token, used, i, request.K)
    if request.allowed is not None:
        used = has(vocabulary, token) & (i <= request.live)
        allowed = is_set(request.allowed + i.to(tl.int64) * request.allowed_row, token, used)
        x = tl.where(allowed, x, float("-inf"))
    return x


@triton.jit
def draft_logit(request, i, token, vocabulary):
    used = has(vocabulary, token) & (i < request.live)
    x = tl.load(request.draft + i.to(tl.int64) * request.draft_row + token, mask=used, other=0).to(
        tl.float32
    )
    if request.penalties is not None:
        x = penalised(request.penalties, x, token, used, 0 * i, 0)
    if request.draft_allowed is not None:
        words = request.draft_allowed + i.to(tl.int64) * request.draft_allowed_row
        x = tl.where(is_set(words, token, used), x, float("-inf"))
    return x


@triton.jit
def given(request, i, draft_lse, lse_row, vocabulary):
    """(whether draft_lse holds the normaliser of draft i, its two numbers). sample_drafts writes
    none for a row without a distribution."""
    at = draft_lse + request.index * lse_row + i * 4
    top = tl.load(at)
    log_sum = tl.load(at + 1)
    finite = (top - top == 0) & (log_sum - log_sum == 0)
    known = finite & has(vocabulary, tl.load(request.tokens + i))
    return known, top, log_sum


@triton.jit
def store_distribution(memory, row, distribution):
    at = memory.distributions + row * FIELDS
    tl.store(at, distribution.scale)
    tl.store(at + 1, distribution.total)
    tl.store(at + 2, distribution.top.to(tl.float64))
    tl.store(at + 3, distribution.cut.to(tl.float64))
    tl.store(at + 4, distribution.tie.to(tl.float64))
    tl.store(at + 5, distribution.point.to(tl.float64))
    tl.store(at + 6, distribution.status.to(tl.float64))


@triton.jit
def load_distribution(memory, row, used):
    """The distribution of one row, or of several."""
    at = memory.distributions + row * FIELDS
    return Distribution(
        tl.load(at, mask=used, other=1),
        tl.load(at + 1, mask=used, other=1),
        tl.load(at + 2, mask=used, other=0).to(tl.float32),
        tl.load(at + 3, mask=used, other=0).to(tl.float32),
        tl.load(at + 4, mask=used, other=0).to(tl.int32),
        tl.load(at + 5, mask=used, other=NOWHERE).to(tl.int32),
        tl.load(at + 6, mask=used, other=0).to(tl.int32),
    )


@triton.jit
def partials(memory, row, blocks, BLOCKS: tl.constexpr):
    index = tl.arange(0, BLOCKS)
    at = memory.partials + row * 2 * blocks + index
    return tl.load(at, mask=index < blocks, other=0), tl.load(
        at + blocks, mask=index < blocks, other=float("-inf")
    ).to(tl.float32)


@triton.jit
def listing_of(memory, row, blocks):
    """A list's masses take the place of the row's partials."""
    return listing_at(
        memory.plans + row * PLAN, memory.partials + row * 2 * blocks, memory.lists + row * ROOM
    )


@triton.jit
def conclude_row(memory, row, index, distribution, logits_row, sampling, vocabulary, blocks):
    """Stores an untruncated distribution, and plans the list that truncates it."""
    store_distribution(memory, row, distribution)
    listing = listing_of(memory, row, blocks)
    if sampling.top_k is None and sampling.top_p is None and sampling.min_p is None:
        nothing_listed(listing)
    else:
        kept_by = limits(
            distribution, vocabulary, sampling.top_k, sampling.top_p, sampling.min_p, index
        )
        SPARE: tl.constexpr = spare(logits_row.at.dtype.element_ty, len(logits_row))
        survey(distribution, kept_by, vocabulary, listing, SPARE)


@triton.jit
def enlist_row(
    memory,
    row,
    logits_row,
    temperature,
    vocabulary,
    first,
    stop,
    index,
    blocks,
    TILE: tl.constexpr,
):
    SPARE: tl.constexpr = spare(logits_row.at.dtype.element_ty, len(logits_row))
    listing = listing_of(memory, row, blocks)
    scale = exponent(temperature)
    enlist(scale, logits_row, vocabulary, listing, first, stop, index, blocks, SPARE, TILE)


@triton.jit
def truncate(
    memory,
    row,
    index,
    logits_row,
    sampling,
    vocabulary,
    vocab_block,
    blocks,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Truncates the distribution of a row that has a list."""
    listing = listing_of(memory, row, blocks)
    if has_list(listing):
        plain = load_distribution(memory, row, True)
        kept_by = limits(plain, vocabulary, sampling.top_k, sampling.top_p, sampling.min_p, index)
        kept, _, _, _ = truncated(
            plain,
            kept_by,
            logits_row,
            vocabulary,
            listing,
            None,
            vocab_block,
            blocks,
            spare(logits_row.at.dtype.element_ty, len(logits_row)),
            BLOCKS,
            TILE // 8,
        )
        store_distribution(memory, row, kept)


@triton.jit
def measure_row(
    memory, row, index, logits_row, sampling, vocabulary, first, stop, blocks, TILE: tl.constexpr
):
    """Measures a span of a row, and stores its sample if the row is truncated."""
    scale = exponent(sampling.temperature)
    if sampling.top_k is None and sampling.top_p is None and sampling.min_p is None:
        total, greatest = measure(logits_row, vocabulary, scale, first, stop, None, False, TILE)
    else:
        sampled = needs_sample(vocabulary, sampling.top_k, sampling.top_p, sampling.min_p, index)
        sample = listing_of(memory, row, blocks).sample
        total, greatest = measure(logits_row, vocabulary, scale, first, stop, sample, sampled, TILE)
    return total, greatest


@triton.jit
def row_status(row, vocabulary, TILE: tl.constexpr):
    one = tl.full([], 1, tl.float64)
    sum_, greatest = measure(row, vocabulary, one, 0, vocabulary.valid, None, False, TILE)
    return tl.where(sum_ != sum_, NOT_NUMBERS, tl.where(greatest == float("-inf"), EMPTY, 0))


@triton.jit
def normalise_target(
    request,
    memory,
    i,
    sampling,
    vocabulary,
    vocab_block,
    blocks,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = row_of_target(request, i)
    sums, greatest = partials(memory, i, blocks, BLOCKS)
    distribution = conclude(
        sums, greatest, sampling.temperature, row, vocabulary, vocab_block, TILE
    )
    status = distribution.status
    if request.weight is not None:
        # the status of a blend does not show which of its two rows is invalid
        if (i < request.live) & (request.weight != 1) & ((status != 0) | (request.weight == 0)):
            own = row_status(as_target(request, i, row.at), vocabulary, TILE)
            status = tl.maximum(
                tl.where(own != 0, own, status),
                row_status(as_target(request, i, row.other), vocabulary, TILE),
            )
    conclude_row(
        memory,
        i,
        request.index,
        Distribution(
            distribution.scale,
            distribution.total,
            distribution.top,
            distribution.cut,
            distribution.tie,
            distribution.point,
            status,
        ),
        row,
        sampling,
        vocabulary,
        blocks,
    )


@triton.jit
def normalise_draft(
    request,
    memory,
    i,
    drafter,
    draft_lse,
    lse_row,
    vocabulary,
    vocab_block,
    blocks,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = request.K + 1 + i
    nothing_listed(listing_of(memory, row, blocks))
    token = tl.load(request.tokens + i)
    zero = tl.zeros([], tl.int32)
    nothing = tl.full([], float("-inf"), tl.float32)
    if request.draft is not None:
        if request.sampled:
            known = False
            if draft_lse is not None:
                known, top, log_sum = given(request, i, draft_lse, lse_row, vocabulary)
                if known:
                    scale = exponent(drafter.temperature)
                    cut = draft_lse + request.index * lse_row + i * 4 + 2
                    status = tl.where(
                        draft_logit(request, i, token, vocabulary) < float("inf"), 0, NOT_NUMBERS
                    )
                    store_distribution(
                        memory,
                        row,
                        Distribution(
                            scale,
                            tl.exp2(log_sum * LOG2_E),
                            top.to(tl.float32),
                            tl.load(cut).to(tl.float32),
                            tl.load(cut + 1).to(tl.int32),
                            zero + SPREAD,
                            status,
                        ),
                    )
            if not known:
                sums, greatest = partials(memory, row, blocks, BLOCKS)
                distribution = conclude(
                    sums,
                    greatest,
                    drafter.temperature,
                    row_of_draft(request, i),
                    vocabulary,
                    vocab_block,
                    TILE,
                )
                conclude_row(
                    memory,
                    row,
                    request.index,
                    distribution,
                    row_of_draft(request, i),
                    drafter,
                    vocabulary,
                    blocks,
                )
    if not request.sampled:
        one = tl.full([], 1, tl.float64)
        point = tl.where(has(vocabulary, token), token, NOWHERE)
        store_distribution(memory, row, Distribution(one, one, nothing, nothing, zero, point, zero))


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


@triton.jit
def weigh(
    request, memory, accepted, scale, index, vocab_block, blocks, vocabulary, TILE: tl.constexpr
):
    """The mass of a vocab_block in p and, if a draft was rejected, in the residual."""
    p = load_distribution(memory, accepted, True)
    if p.point == SPREAD:
        first = index * vocab_block
        stop = tl.minimum(first + vocab_block, vocabulary.valid)
        row = row_of_target(request, accepted)
        partial = memory.partials + accepted * 2 * blocks + index
        known = not has_list(listing_of(memory, accepted, blocks))
        own = tl.full([], 0, tl.float64)
        if accepted < request.live:
            q = load_distribution(memory, request.K + 1 + accepted, True)
            ratio = p.total / q.total / scale
            if request.draft is None:
                own, rest = masses_of(p, row, q, None, ratio, vocabulary, first, stop, TILE)
            else:
                q_row = row_of_draft(request, accepted)
                own, rest = masses_of(p, row, q, q_row, ratio, vocabulary, first, stop, TILE)
            tl.store(memory.sums + index, rest)
        elif not known:
            own, _ = masses_of(p, row, None, None, scale, vocabulary, first, stop, TILE)
        if known:
            own = tl.load(partial) * tl.exp2((tl.load(partial + blocks) - p.top) * p.scale)
            own = tl.where(own > 0, own, 0)
        tl.store(partial, own)


@triton.jit
def draw(
    request,
    memory,
    accepted,
    u,
    vocab_block,
    blocks,
    vocabulary,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """(token, status): a draw by inverse CDF, from the residual if a draft was rejected and the
    residual has mass, else from p."""
    p = load_distribution(memory, accepted, True)
    token = p.point
    status = tl.zeros([], tl.int32)
    if p.point == SPREAD:
        index = tl.arange(0, BLOCKS)
        own, _ = partials(memory, accepted, blocks, BLOCKS)
        residual = tl.load(
            memory.sums + index, mask=(index < blocks) & (accepted < request.live), other=0
        )
        remaining = tl.sum(residual, 0)
        if remaining != remaining:
            status = tl.full([], NOT_NUMBERS, tl.int32)
            token = tl.full([], -1, tl.int32)
        else:
            of_residual = remaining > 0
            sums = tl.where(of_residual, residual, own)
            chosen, r = find(sums, u * tl.sum(sums, 0))
            first = chosen * vocab_block
            stop = tl.minimum(first + vocab_block, vocabulary.valid)
            row = row_of_target(request, accepted)
            if of_residual:
                q = load_distribution(memory, request.K + 1 + accepted, True)
                ratio = p.total / q.total / tl.load(memory.scale)
                if request.draft is None:
                    token = walk(p, row, q, None, ratio, vocabulary, first, stop, r, False, TILE)
                else:
                    token = walk(
                        p,
                        row,
                        q,
                        row_of_draft(request, accepted),
                        ratio,
                        vocabulary,
                        first,
                        stop,
                        r,
                        False,
                        TILE,
                    )
            else:
                token = walk(p, row, None, None, r, vocabulary, first, stop, r, False, TILE)
    return token, status


@triton.jit
def log_probability(
    request,
    memory,
    i,
    token,
    sampling,
    vocabulary,
    vocab_block,
    blocks,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Log-probability of a token in the unmixed target distribution; temperature 0 counts as 1."""
    distribution = load_distribution(memory, i, True)
    cut = distribution.cut
    tie = distribution.tie
    top = distribution.top
    total = distribution.total
    scale = distribution.scale
    again = sampling.temperature <= 0
    if request.weight is not None:
        again |= (i < request.live) & (request.weight != 1)
    row = as_target(request, i, request.target + i.to(tl.int64) * request.target_row)
    if again:
        scale = exponent(sampling.temperature)
        stop = vocabulary.valid
        total, top = measure_row(
            memory, i, request.index, row, sampling, vocabulary, 0, stop, blocks, TILE
        )
        plain = Distribution(
            scale,
            total,
            top,
            tl.full([], float("-inf"), tl.float32),
            tie,
            tl.full([], SPREAD, tl.int32),
            tl.zeros([], tl.int32),
        )
        kept = plain
        if sampling.top_k is not None or sampling.top_p is not None or sampling.min_p is not None:
            kept = truncated_alone(
                plain,
                limits(
                    plain,
                    vocabulary,
                    sampling.top_k,
                    sampling.top_p,
                    sampling.min_p,
                    request.index,
                ),
                row,
                vocabulary,
                listing_of(memory, i, blocks),
                vocab_block,
                blocks,
                spare(row.at.dtype.element_ty, len(row)),
                BLOCKS,
                TILE,
            )
        cut = kept.cut
        tie = kept.tie
        total = kept.total
    x = logits(row, vocabulary, token, token, 1)
    value = ((x.to(tl.float64) - top) * scale - tl.log2(total)) / LOG2_E
    return tl.where(
        (x > cut) | ((x == cut) & (token <= tie)), tl.minimum(value, 0), float("-inf")
    ).to(tl.float32)


@triton.jit
def next_pass(
    request,
    accepted,
    branch,
    proposals,
    mask_rows,
    remaining,
    proposal_out,
    shift_out,
    draft_len_out,
    PROPOSALS: tl.constexpr,
):
    """Stores the proposal of the largest live branch <= accepted + 1 (ties: the lowest index), and
    how many drafts it supplies."""
    j = tl.arange(0, PROPOSALS)
    branches = tl.load(branch + j, mask=j < proposals, other=0)
    branches = tl.where((branches >= 1) & (branches <= accepted + 1), branches, 0)
    best = tl.max(branches, 0)
    proposal = tl.where(best > 0, tl.min(tl.where(branches == best, j, PROPOSALS), 0), -1)
    shift = tl.where(best > 0, accepted + 1 - best, 0)
    length = tl.where(best > 0, tl.minimum(tl.maximum(mask_rows - 1 - shift, 0), request.K), 0)
    if remaining is not None:
        length = tl.minimum(
            length, tl.maximum(tl.load(remaining + request.index) - accepted - 2, 0)
        )
    tl.store(proposal_out + request.index, proposal)
    tl.store(shift_out + request.index, shift)
    tl.store(draft_len_out + request.index, tl.where(accepted < 0, -1, length))
