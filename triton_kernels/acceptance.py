"""What the steps of accept_drafts do for one request; rows 0..K are the target's, then come the
draft's."""

from typing import NamedTuple

import triton
import triton.language as tl

from .distribution import (
    EMPTY,
    FIELDS,
    LAST,
    LOG2_E,
    NOT_NUMBERS,
    NOWHERE,
    SPREAD,
    Blend,
    Distribution,
    Row,
    conclude,
    exponent,
    find,
    has,
    mass_of,
    measure,
    mixed,
    probability,
    truncated,
    uniform,
    walk,
)

# How drafts are accepted, as ops.accept_drafts.RULES; greedy is the token rule at temperature 0.
TOKEN, BLOCK, GREEDY = map(tl.constexpr, range(3))
ACCEPT, DRAW = tl.constexpr(0), tl.constexpr(1)  # purposes of uniforms


class Sampling(NamedTuple):
    """A request's temperature, and pointers to every request's top_k and top_p."""

    temperature: tl.tensor
    top_k: tl.tensor
    top_p: tl.tensor


class Memory(NamedTuple):
    """A request's part of the workspace."""

    distributions: tl.tensor  # [2 K + 1][FIELDS]
    partials: tl.tensor  # [2 K + 1][2][blocks]: sums, greatest
    surplus: tl.tensor  # [K][blocks]
    sums: tl.tensor  # [blocks]
    scale: tl.tensor  # of p in the residual distribution


class Request(NamedTuple):
    """A request: drafts that there may be (K) and are under test (live), and its rows."""

    request: tl.tensor
    K: tl.tensor
    live: tl.tensor
    target: tl.tensor  # its row 0
    target_row: tl.tensor
    draft: tl.tensor
    draft_row: tl.tensor
    tokens: tl.tensor
    weight: tl.tensor  # of the target in mixed rows
    sampled: tl.tensor  # whether drafts have distributions of their own; else they are points


@triton.jit
def row_of_target(b, i):
    if b.weight is None:
        return Row(b.target + i.to(tl.int64) * b.target_row)
    else:
        return Blend(
            b.target + i.to(tl.int64) * b.target_row,
            b.draft + i.to(tl.int64) * b.draft_row,
            tl.where(i < b.live, b.weight, 1.0),
        )


@triton.jit
def row_of_draft(b, i):
    return Row(b.draft + i.to(tl.int64) * b.draft_row)


@triton.jit
def target_logit(b, i, token, vocabulary):
    """Of tokens in rows i; 0 where there is none."""
    known = has(vocabulary, token) & (i <= b.live)
    x = tl.load(b.target + i.to(tl.int64) * b.target_row + token, mask=known, other=0).to(
        tl.float32
    )
    if b.weight is not None:
        known &= i < b.live
        y = tl.load(b.draft + i.to(tl.int64) * b.draft_row + token, mask=known, other=0).to(
            tl.float32
        )
        x = mixed(x, y, tl.where(i < b.live, b.weight, 1.0))
    return x


@triton.jit
def draft_logit(b, i, token, vocabulary):
    return tl.load(
        b.draft + i.to(tl.int64) * b.draft_row + token,
        mask=has(vocabulary, token) & (i < b.live),
        other=0,
    ).to(tl.float32)


@triton.jit
def given(b, i, draft_lse, lse_row, drafter, vocabulary):
    """(whether the caller knows a draft's normaliser, its two numbers). No draw leaves one for a
    row without a distribution; a cut must be found again."""
    at = draft_lse + b.request * lse_row + i * 2
    top = tl.load(at)
    log_sum = tl.load(at + 1)
    finite = (top - top == 0) & (log_sum - log_sum == 0)
    known = finite & has(vocabulary, tl.load(b.tokens + i))
    if drafter.top_k is not None:
        known &= tl.load(drafter.top_k + b.request) <= 0
    if drafter.top_p is not None:
        known &= tl.load(drafter.top_p + b.request) >= 1
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
    """Of one row, or of several."""
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
def row_status(row, vocabulary, TILE: tl.constexpr):
    sum_, greatest = measure(row, vocabulary, tl.full([], 1, tl.float64), 0, vocabulary.valid, TILE)
    return tl.where(sum_ != sum_, NOT_NUMBERS, tl.where(greatest == float("-inf"), EMPTY, 0))


@triton.jit
def normalise_target(
    b, memory, i, sampling, vocabulary, block, blocks, BLOCKS: tl.constexpr, TILE: tl.constexpr
):
    row = row_of_target(b, i)
    sums, greatest = partials(memory, i, blocks, BLOCKS)
    distribution = truncated(
        conclude(sums, greatest, sampling.temperature, row, vocabulary, block, TILE),
        row,
        vocabulary,
        sampling.top_k,
        sampling.top_p,
        b.request,
        TILE,
    )
    status = distribution.status
    if b.weight is not None:
        # a blend cannot tell which of its rows is at fault
        if (i < b.live) & (b.weight != 1) & ((status != 0) | (b.weight == 0)):
            own = row_status(Row(row.at), vocabulary, TILE)
            status = tl.maximum(
                tl.where(own != 0, own, status), row_status(row_of_draft(b, i), vocabulary, TILE)
            )
    store_distribution(
        memory,
        i,
        Distribution(
            distribution.scale,
            distribution.total,
            distribution.top,
            distribution.cut,
            distribution.tie,
            distribution.point,
            status,
        ),
    )


@triton.jit
def normalise_draft(
    b,
    memory,
    i,
    drafter,
    draft_lse,
    lse_row,
    vocabulary,
    block,
    blocks,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = b.K + 1 + i
    token = tl.load(b.tokens + i)
    zero = tl.zeros([], tl.int32)
    nothing = tl.full([], float("-inf"), tl.float32)
    if b.draft is not None:
        if b.sampled:
            known = False
            if draft_lse is not None:
                known, top, log_sum = given(b, i, draft_lse, lse_row, drafter, vocabulary)
                if known:
                    scale = exponent(drafter.temperature)
                    status = tl.where(
                        draft_logit(b, i, token, vocabulary) < float("inf"), 0, NOT_NUMBERS
                    )
                    store_distribution(
                        memory,
                        row,
                        Distribution(
                            scale,
                            tl.exp2(log_sum * LOG2_E),
                            top.to(tl.float32),
                            nothing,
                            zero + LAST,
                            zero + SPREAD,
                            status,
                        ),
                    )
            if not known:
                sums, greatest = partials(memory, row, blocks, BLOCKS)
                distribution = conclude(
                    sums, greatest, drafter.temperature, row_of_draft(b, i), vocabulary, block, TILE
                )
                store_distribution(
                    memory,
                    row,
                    truncated(
                        distribution,
                        row_of_draft(b, i),
                        vocabulary,
                        drafter.top_k,
                        drafter.top_p,
                        b.request,
                        TILE,
                    ),
                )
    if not b.sampled:
        one = tl.full([], 1, tl.float64)
        point = tl.where(has(vocabulary, token), token, NOWHERE)
        store_distribution(memory, row, Distribution(one, one, nothing, nothing, zero, point, zero))


@triton.jit
def smaller(slope, bound, next_slope, next_bound):
    """Of c -> min(c * slope, bound), one after the other. Slopes stay finite, so that 0 times one
    is 0."""
    return tl.minimum(slope * next_slope, 1e300), tl.minimum(bound * next_slope, next_bound)


@triton.jit
def chances(b, memory, vocabulary, ROWS: tl.constexpr):
    """For all drafts: p(x), q(x), whether they are drafts, and the block rule's p_i."""
    i = tl.arange(0, ROWS)
    draft = i < b.live
    token = tl.load(b.tokens + i, mask=draft, other=-1)
    p = probability(
        load_distribution(memory, i, draft),
        target_logit(b, i, token, vocabulary),
        token,
        vocabulary,
    )
    q_distribution = load_distribution(memory, b.K + 1 + i, draft)
    if b.draft is not None:
        q = probability(q_distribution, draft_logit(b, i, token, vocabulary), token, vocabulary)
    else:
        q = ((token == q_distribution.point) & has(vocabulary, token)).to(tl.float64)
    slope = tl.where(draft & (p > 0), tl.minimum(p / tl.where(q > 0, q, 1e-300), 1e300), 0)
    product, bound = tl.associative_scan((slope, tl.full([ROWS], 1, tl.float64)), 0, smaller)
    return p, q, draft, tl.minimum(product, bound)


@triton.jit
def shifted(x, i):
    """x[i - 1]; of row 0, 1."""
    index = tl.arange(0, x.shape[0])
    return tl.where(i > 0, tl.sum(tl.where(index == i - 1, x, 0), 0), 1)


@triton.jit
def surplus_after(b, memory, carry, vocabulary, blocks, ROWS: tl.constexpr):
    """Sum of (carry[i] * p - q)+ of row i + 1, for each draft i but the last."""
    i = tl.arange(0, ROWS) + 1
    inside = i < b.live
    p = load_distribution(memory, i, inside)
    q = load_distribution(memory, b.K + 1 + i, inside)
    spread = tl.zeros([ROWS], tl.float64)
    for first in range(0, blocks, 16):
        block = first + tl.arange(0, 16)
        at = memory.surplus + i[:, None] * blocks + block[None, :]
        spread += tl.sum(tl.load(at, mask=inside[:, None] & (block < blocks)[None, :], other=0), 1)
    spread *= carry / p.total
    if b.draft is not None:
        of_q = probability(
            q, draft_logit(b, i, tl.where(inside, p.point, -1), vocabulary), p.point, vocabulary
        )
    else:
        of_q = ((p.point == q.point) & has(vocabulary, p.point)).to(tl.float64)
    token = tl.load(b.tokens + i, mask=inside, other=-1)
    of_p = probability(p, target_logit(b, i, token, vocabulary), token, vocabulary)
    outside = tl.where(p.point == SPREAD, carry * (1 - of_p), tl.maximum(carry - of_q, 0))
    return tl.where(
        inside & (carry > 0),
        tl.where((p.point == SPREAD) & (q.point == SPREAD), spread, outside),
        0,
    )


@triton.jit
def decide(
    b,
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
    """(drafts kept, status, factor of p in the residual distribution)."""
    i = tl.arange(0, ROWS)
    p, q, draft, carry = chances(b, memory, vocabulary, ROWS)
    u = uniform(
        uniforms,
        b.request * uniforms_row + tl.where(draft, i, 0),
        tl.load(seed + b.request),
        tl.load(position + b.request),
        i,
        ACCEPT,
    )
    status = load_distribution(memory, i, i <= b.live).status
    status = tl.maximum(status, load_distribution(memory, b.K + 1 + i, draft).status)
    scale = tl.full([], 1, tl.float64)
    # no early break, a later draft may be kept where an earlier one was not, unless the target
    # cannot have it
    if RULE == BLOCK:
        surplus = surplus_after(b, memory, carry, vocabulary, blocks, ROWS)
        spoilt = tl.max((surplus != surplus).to(tl.int32), 0)  # in a row whose normaliser was given
        h = tl.where(
            i + 1 == b.live, carry, tl.where(surplus > 0, surplus / (surplus + 1 - carry), 0)
        )
        accepted = tl.max(tl.where(draft & (u < h), i + 1, 0), 0)
        impossible = tl.min(tl.where(draft & ~(p > 0), i, b.live - 1), 0)
        status = tl.where(i <= tl.where(accepted == b.live, b.live, impossible), status, 0)
        return accepted, tl.maximum(tl.max(status, 0), spoilt), shifted(carry, accepted)
    else:
        stops = (i == b.live) | (status != 0) | ~(u * q < p)
        accepted = tl.min(tl.where(stops, i, ROWS), 0)
        return accepted, tl.sum(tl.where(i == accepted, status, 0), 0), scale


@triton.jit
def weigh(b, memory, a, scale, index, block, blocks, vocabulary, TILE: tl.constexpr):
    """The block's mass in p and, if a draft was rejected, in the residual."""
    p = load_distribution(memory, a, True)
    if p.point == SPREAD:
        first = index * block
        stop = tl.minimum(first + block, vocabulary.valid)
        row = row_of_target(b, a)
        partial = memory.partials + a * 2 * blocks + index
        if p.cut == float("-inf"):
            mass = tl.load(partial) * tl.exp2((tl.load(partial + blocks) - p.top) * p.scale)
            mass = tl.where(mass > 0, mass, 0)
        else:
            mass = mass_of(p, row, None, None, scale, vocabulary, first, stop, TILE)
        tl.store(partial, mass)
        if a < b.live:
            q = load_distribution(memory, b.K + 1 + a, True)
            ratio = p.total / q.total / scale
            if b.draft is None:
                tl.store(
                    memory.sums + index,
                    mass_of(p, row, q, None, ratio, vocabulary, first, stop, TILE),
                )
            else:
                tl.store(
                    memory.sums + index,
                    mass_of(p, row, q, row_of_draft(b, a), ratio, vocabulary, first, stop, TILE),
                )


@triton.jit
def draw(b, memory, a, u, block, blocks, vocabulary, BLOCKS: tl.constexpr, TILE: tl.constexpr):
    """(token, status): by inverse CDF, from the residual if a draft was rejected and there is one,
    else from p."""
    p = load_distribution(memory, a, True)
    token = p.point
    status = tl.zeros([], tl.int32)
    if p.point == SPREAD:
        index = tl.arange(0, BLOCKS)
        own, _ = partials(memory, a, blocks, BLOCKS)
        residual = tl.load(memory.sums + index, mask=(index < blocks) & (a < b.live), other=0)
        remaining = tl.sum(residual, 0)
        if remaining != remaining:
            status = tl.full([], NOT_NUMBERS, tl.int32)
            token = tl.full([], -1, tl.int32)
        else:
            of_residual = remaining > 0
            sums = tl.where(of_residual, residual, own)
            chosen, r = find(sums, u * tl.sum(sums, 0))
            first = chosen * block
            stop = tl.minimum(first + block, vocabulary.valid)
            row = row_of_target(b, a)
            if of_residual:
                q = load_distribution(memory, b.K + 1 + a, True)
                ratio = p.total / q.total / tl.load(memory.scale)
                if b.draft is None:
                    token = walk(p, row, q, None, ratio, vocabulary, first, stop, r, False, TILE)
                else:
                    token = walk(
                        p,
                        row,
                        q,
                        row_of_draft(b, a),
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
def log_probability(b, memory, i, token, sampling, vocabulary, TILE: tl.constexpr):
    """Under the unmixed target distribution, of temperature 1 where it is 0."""
    distribution = load_distribution(memory, i, True)
    cut = distribution.cut
    tie = distribution.tie
    top = distribution.top
    total = distribution.total
    scale = distribution.scale
    again = sampling.temperature <= 0
    if b.weight is not None:
        again |= (i < b.live) & (b.weight != 1)
    row = Row(b.target + i.to(tl.int64) * b.target_row)
    if again:
        scale = exponent(sampling.temperature)  # of 1 where it is 0
        total, top = measure(row, vocabulary, scale, 0, vocabulary.valid, TILE)
        plain = Distribution(
            scale,
            total,
            top,
            tl.full([], float("-inf"), tl.float32),
            tie,
            tl.full([], SPREAD, tl.int32),
            tl.zeros([], tl.int32),
        )
        kept = truncated(plain, row, vocabulary, sampling.top_k, sampling.top_p, b.request, TILE)
        cut = kept.cut
        tie = kept.tie
        total = kept.total
    x = tl.load(row.at + token).to(tl.float32)
    value = ((x.to(tl.float64) - top) * scale - tl.log2(total)) / LOG2_E
    return tl.where(
        (x > cut) | ((x == cut) & (token <= tie)), tl.minimum(value, 0), float("-inf")
    ).to(tl.float32)


@triton.jit
def next_pass(
    b,
    a,
    branch,
    proposals,
    mask_rows,
    remaining,
    proposal_out,
    shift_out,
    draft_len_out,
    PROPOSALS: tl.constexpr,
):
    """The proposal of the largest live branch <= a + 1 (ties: the lowest), and how many drafts it
    supplies."""
    j = tl.arange(0, PROPOSALS)
    c = tl.load(branch + j, mask=j < proposals, other=0)
    c = tl.where((c >= 1) & (c <= a + 1), c, 0)
    best = tl.max(c, 0)
    proposal = tl.where(best > 0, tl.min(tl.where(c == best, j, PROPOSALS), 0), -1)
    shift = tl.where(best > 0, a + 1 - best, 0)
    length = tl.where(best > 0, tl.minimum(tl.maximum(mask_rows - 1 - shift, 0), b.K), 0)
    if remaining is not None:
        length = tl.minimum(length, tl.maximum(tl.load(remaining + b.request) - a - 2, 0))
    tl.store(proposal_out + b.request, proposal)
    tl.store(shift_out + b.request, shift)
    tl.store(draft_len_out + b.request, tl.where(a < 0, -1, length))
