"""Min-p, then top-k, then top-p of what these kept. Ids rank by logit; of equal logits the lower id
ranks first.

A row that was measured is read once more: a sample tells which logits may be cuts, these are listed
(listing.py), and the cuts are found in the list (`truncated`). Programs append to the list in any
order, so sums over it are exact. Where the sample deceives, or there is no room, the row itself is
searched.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .distribution import LAST, Distribution, logits, plain_weights, walk
from .images import image_of, number_at
from .limits import truncates, weight_of
from .listing import BLOCK_BITS, ROOM, enlist, planned, sum_where, survey

MANY = tl.constexpr(1e9)


@triton.jit
def truncated(
    distribution,
    limits,
    row,
    vocabulary,
    listing,
    u,
    vocab_block,
    blocks,
    SPARE: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """(the truncated distribution, first, stop, r) of a row whose list is complete: a draw by
    inverse CDF with the uniform u, or None, is the first id from `first` to `stop` at which the sum
    of weights exceeds r. TILE: small, as the list takes registers."""
    found = _list(distribution, listing, blocks, BLOCKS)
    cut = limits.floor
    total = distribution.total
    same = tl.full([], 0, tl.float64)  # ids at the cut; `ties` of them are kept
    ties = same
    listed = found.whole  # whether the cut is in the list
    for step in range(3):  # min-p, top-k, top-p
        by_mass = step != 1
        wanted = limits.share < 1
        limit = limits.share * total
        if step == 0:
            wanted = (cut > float("-inf")) & (cut == found.low)  # else top-k cuts above it
            limit = float("inf") + total
        if step == 1:
            wanted = limits.count < float("inf")
            limit = limits.count
        if wanted:
            new_cut, before, mass, number, listed = _find(
                distribution, cut, limit, by_mass, row, vocabulary, found, SPARE, TILE
            )
            each = weight_of(distribution, new_cut)
            fit = tl.where(each > 0, (limit - before) / each, MANY)
            fit = tl.where(by_mass, fit, limit - before)
            most = tl.where(new_cut == cut, ties, number)
            same = tl.where(new_cut == cut, same, number)
            ties = tl.minimum(most, tl.ceil(tl.minimum(fit, MANY)))
            total = tl.where(new_cut == float("-inf"), total, mass + ties * each)
            cut = new_cut
    # min-p leaves out ids at its cut, too
    tie = tl.where((cut > float("-inf")) & (same == 0), -1, LAST)
    first = tl.zeros([], tl.int32)
    stop = first + vocabulary.valid
    tie_block = first + blocks
    r = ties - 0.5
    ties_of_block = r
    if ties < same:
        if listed:
            counts = tl.where(found.logits == cut, _counts(found), 0)
            none = tl.zeros([BLOCKS], tl.float64)
            tie_block, before = _block_of(found, counts, none, r, blocks, BLOCKS)
            first = tie_block * vocab_block
            stop = tl.minimum(first + vocab_block, stop)
            r -= before
            ties_of_block = ties - before
        at_cut = with_cut(distribution, cut, tie, total)
        tie = walk(at_cut, row, None, None, r, vocabulary, first, stop, r, True, TILE)
    if u is not None:
        first = tl.zeros([], tl.int32)
        stop = first + vocabulary.valid
        r = u * total
        if listed:
            whole = (found.logits > cut) | ((found.logits == cut) & (_blocks(found) < tie_block))
            block = tl.arange(0, BLOCKS)
            beside = tl.load(listing.masses + block, mask=block < blocks, other=0)
            between = tl.load(listing.masses + blocks + block, mask=block < blocks, other=0)
            beside += tl.where(cut < found.low2, between, 0)
            beside += tl.where(block == tie_block, ties_of_block * weight_of(distribution, cut), 0)
            masses = tl.where(whole, _masses(found), 0)
            chosen, before = _block_of(found, masses, beside, r, blocks, BLOCKS)
            first = chosen * vocab_block
            stop = tl.minimum(first + vocab_block, stop)
            r -= before
    return with_cut(distribution, cut, tie, total), first, stop, r


@triton.jit
def with_cut(distribution, cut, tie, total):
    return Distribution(
        distribution.scale,
        total,
        distribution.top,
        cut,
        tie,
        distribution.point,
        distribution.status,
    )


class List(NamedTuple):
    """A list that was read. `weights` are multiples of one number, so great that sums of masses are
    exact."""

    logits: tl.tensor
    codes: tl.tensor
    weights: tl.tensor
    whole: tl.tensor  # whether there was room
    low: tl.tensor
    high: tl.tensor
    low2: tl.tensor
    high2: tl.tensor
    mass_above: tl.tensor  # high2
    mass_between: tl.tensor  # high and low2
    count_above: tl.tensor
    count_between: tl.tensor


@triton.jit
def _list(distribution, listing, blocks, BLOCKS: tl.constexpr):
    low, high, low2, high2 = planned(listing)
    size = tl.load(listing.counts, volatile=True)  # changed by atomics, maybe of this program
    index = tl.arange(0, ROOM)
    entry = tl.load(listing.entries + index, mask=index < size, other=0xFF800000)  # of -inf
    x = entry.to(tl.uint32).to(tl.float32, bitcast=True)
    code = (entry >> 32).to(tl.int32)
    weight = plain_weights(distribution, x).to(tl.float64)
    anchor = tl.max(weight, 0) * 4194304  # rounds to multiples of its unit in the last place
    block = tl.arange(0, BLOCKS)
    above = tl.load(listing.masses + block, mask=block < blocks, other=0)
    between = tl.load(listing.masses + blocks + block, mask=block < blocks, other=0)
    return List(
        x,
        code,
        ((weight + anchor) - anchor).to(tl.float32),
        size <= ROOM,
        low,
        high,
        low2,
        high2,
        tl.sum(above, 0),
        tl.sum(between, 0),
        tl.load(listing.counts + 1, volatile=True).to(tl.float64),
        tl.load(listing.counts + 2, volatile=True).to(tl.float64),
    )


@triton.jit
def _counts(found):
    return (found.codes >> BLOCK_BITS).to(tl.float64)


@triton.jit
def _masses(found):
    return found.weights.to(tl.float64) * _counts(found)


@triton.jit
def _blocks(found):
    return found.codes - ((found.codes >> BLOCK_BITS) << BLOCK_BITS)


@triton.jit
def _block_of(found, values, beside, r, blocks, BLOCKS: tl.constexpr):
    """(the vocab_block in which the running sum of listed values and of those beside them exceeds
    r, the sum before it). If rounding keeps the sum below r: the last vocab_block with any."""
    whole = _sum_before(found, values, beside, blocks, BLOCKS)
    low = tl.zeros([], tl.int32)
    high = low + blocks
    before = tl.full([], 0, tl.float64)
    while high - low > 1:
        middle = low + (high - low) // 2
        upto = _sum_before(found, values, beside, middle, BLOCKS)
        goes_on = (upto <= r) & (upto < whole)
        before = tl.where(goes_on, upto, before)
        low = tl.where(goes_on, middle, low)
        high = tl.where(goes_on, high, middle)
    return low, before


@triton.jit
def _sum_before(found, values, beside, block, BLOCKS: tl.constexpr):
    return sum_where(_blocks(found) < block, values) + sum_where(
        tl.arange(0, BLOCKS) < block, beside
    )


@triton.jit
def _listed_above(found, values, x, by_mass):
    """The mass, or the number, of the ids with a logit above x, which is in a bracket. `values`:
    the list's, of that kind."""
    above = tl.where(by_mass, found.mass_above, found.count_above)
    between = tl.where(by_mass, found.mass_between, found.count_between)
    return sum_where(found.logits > x, values) + above + tl.where(x < found.low2, between, 0)


@triton.jit
def _find(
    distribution,
    cut,
    limit,
    by_mass,
    row,
    vocabulary,
    found,
    SPARE: tl.constexpr,
    TILE: tl.constexpr,
):
    """(the least logit from the cut on above which the mass, or the number, of ids is less than the
    limit; what is above it; the mass above it; the number of ids at it; whether it is listed)."""
    values = tl.where(by_mass, _masses(found), _counts(found))
    start = tl.maximum(found.low, cut)
    second = tl.maximum(found.low2, start)
    in_second = start >= found.low2
    in_second |= _listed_above(found, values, second, by_mass) >= limit
    lowest = tl.where(in_second, second, start)
    highest = tl.where(in_second, found.high2, found.high)
    above_lowest = _listed_above(found, values, lowest, by_mass)
    before = _listed_above(found, values, highest, by_mass)
    listed = found.whole & (before < limit) & ((above_lowest >= limit) | (lowest == cut))
    if not listed:
        lowest = cut
        highest = distribution.top
        before = tl.full([], 0, tl.float64)
    low = (image_of(lowest) >> SPARE) - 1  # on the grid, and not above `lowest`
    high = image_of(highest) >> SPARE
    fits = listed & (above_lowest < limit)
    high = tl.where(fits, low, high)
    before = tl.where(fits, above_lowest, before)
    mass = before  # above `high`, by a reading; likewise their number, and that above `low`
    number = before
    number_low = before
    tries_lowest = not listed
    while tries_lowest | (high - low > 1):  # above(low) >= limit > above(high)
        x = low + (high - low) // 4
        y = low + (high - low) // 2
        z = high - (high - low) // 4
        at_x = tl.where(tries_lowest, lowest, number_at(x, SPARE))
        at_y = number_at(y, SPARE)
        at_z = number_at(z, SPARE)
        if listed:
            mass_x = _listed_above(found, values, at_x, by_mass)
            mass_y = _listed_above(found, values, at_y, by_mass)
            mass_z = _listed_above(found, values, at_z, by_mass)
            number_x = mass_x
            number_y = mass_y
            number_z = mass_z
        else:
            mass_x, mass_y, mass_z, number_x, number_y, number_z = _above(
                distribution, row, vocabulary, at_x, at_y, at_z, TILE
            )
        x_over = tl.where(by_mass, mass_x, number_x) >= limit
        y_over = tl.where(by_mass, mass_y, number_y) >= limit
        z_over = tl.where(by_mass, mass_z, number_z) >= limit
        fits = tries_lowest & ~x_over
        x = tl.where(tries_lowest, low, x)
        tries_lowest = tries_lowest & False
        if z_over:
            low = z
            number_low = number_z
        elif y_over:
            low, high = y, z
            number_low, number, mass = number_y, number_z, mass_z
        elif x_over:
            low, high = x, y
            number_low, number, mass = number_x, number_y, mass_y
        else:
            high = x
            number, mass = number_x, mass_x
    new_cut = tl.where(fits, lowest, number_at(high, SPARE))
    before = tl.where(by_mass, mass, number)
    if listed:
        mass = _listed_above(found, _masses(found), new_cut, True)
        number = sum_where(found.logits == new_cut, _counts(found))
    else:
        number = number_low - number
    return new_cut, before, mass, number, listed


@triton.jit
def _above(distribution, row, vocabulary, x, y, z, TILE: tl.constexpr):
    """The masses, then the numbers, of the ids with logits above three, by a reading of the row."""
    mass_x = tl.full([], 0, tl.float64)
    mass_y = mass_x
    mass_z = mass_x
    number_x = mass_x
    number_y = mass_x
    number_z = mass_x
    for start in range(0, vocabulary.valid, TILE):
        ids = start + tl.arange(0, TILE)
        logit = logits(row, vocabulary, start, ids, TILE)
        weight = plain_weights(distribution, logit)
        mass_x += sum_where(logit > x, weight)
        mass_y += sum_where(logit > y, weight)
        mass_z += sum_where(logit > z, weight)
        number_x += sum_where(logit > x, 1.0)
        number_y += sum_where(logit > y, 1.0)
        number_z += sum_where(logit > z, 1.0)
    return mass_x, mass_y, mass_z, number_x, number_y, number_z


@triton.jit
def truncated_alone(
    distribution,
    limits,
    row,
    vocabulary,
    listing,
    vocab_block,
    blocks,
    SPARE: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The truncated distribution of a row by one program, which also makes the list; it has stored
    the sample."""
    tl.debug_barrier()
    survey(distribution, limits, vocabulary, listing, SPARE)
    tl.debug_barrier()
    for block in range(blocks):
        first = block * vocab_block
        stop = tl.minimum(first + vocab_block, vocabulary.valid)
        enlist(
            distribution.scale, row, vocabulary, listing, first, stop, block, blocks, SPARE, TILE
        )
    tl.debug_barrier()
    kept = distribution
    if truncates(limits):
        kept, _, _, _ = truncated(
            distribution,
            limits,
            row,
            vocabulary,
            listing,
            None,
            vocab_block,
            blocks,
            SPARE,
            BLOCKS,
            TILE // 8,
        )
    return kept
