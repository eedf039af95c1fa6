"""The token after the kept drafts, drawn from the residual (scale * p - q)+ of a rejected draft's
row, else from p."""

import triton
import triton.language as tl

from .acceptance import listing_of, load_distribution, partials
from .distribution import NOT_NUMBERS, SPREAD, find, masses_of, walk
from .listing import has_list
from .request import row_of_draft, row_of_target


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
