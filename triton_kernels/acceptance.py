"""Distributions of a request's rows, kept in the workspace of accept_drafts between its steps."""

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
    Distribution,
    conclude,
    exponent,
    has,
    measure,
)
from .images import spare
from .limits import limits
from .listing import PLAN, ROOM, enlist, has_list, listing_at, needs_sample, nothing_listed, survey
from .request import as_target, draft_logit, row_of_draft, row_of_target
from .truncation import truncated, truncated_alone


class Memory(NamedTuple):
    """A request's part of the workspace."""

    distributions: tl.tensor  # [2 K + 1][FIELDS]
    plans: tl.tensor  # [2 K + 1][PLAN]
    partials: tl.tensor  # [2 K + 1][2][blocks]: sums, then greatest logits
    surplus: tl.tensor  # [K][blocks]
    sums: tl.tensor  # [blocks]
    scale: tl.tensor  # of p in the residual distribution
    lists: tl.tensor  # [2 K + 1][ROOM]


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
def unmixed_row(request, i):
    return as_target(request, i, request.target + i.to(tl.int64) * request.target_row)


@triton.jit
def unmixed(
    request,
    memory,
    i,
    row,
    sampling,
    vocabulary,
    vocab_block,
    blocks,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The target distribution of row i before mixing, which is `row`; temperature 0 counts as
    1."""
    distribution = load_distribution(memory, i, True)
    cut = distribution.cut
    tie = distribution.tie
    top = distribution.top
    total = distribution.total
    scale = distribution.scale
    again = sampling.temperature <= 0
    if request.weight is not None:
        again |= (i < request.live) & (request.weight != 1)
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
    spread = tl.full([], SPREAD, tl.int32)
    return Distribution(scale, total, top, cut, tie, spread, tl.zeros([], tl.int32))


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
