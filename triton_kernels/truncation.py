"""Min-p, then top-k, then top-p of what these kept. Ids rank by logit; of equal logits the lower id
ranks first.

A row that was measured is read once more: a sample tells which logits may be cuts (`survey`), these
are listed, by many programs (`enlist`), and the cuts are found in the list (`truncated`). Programs
append to the list in any order, so sums over it are exact. Where the sample deceives, or there is
no room, the row itself is searched.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from triton.runtime.jit import constexpr_function

from .distribution import (
    GROUP,
    LAST,
    SAMPLE,
    SPREAD,
    Distribution,
    eights,
    logits,
    plain_weights,
    sample_stride,
    sum_eights,
    walk,
)

MANY = tl.constexpr(1e9)
ROOM = tl.constexpr(8192)  # entries of a list; a sample, which comes before, has as many bytes
FULL = tl.constexpr(6144.0)  # how many are planned at most
# A bracket extends so many times the greatest standard deviation of a sampled mass on either side;
# of a number so many times more, as groups may differ and few are listed; less, if too many are.
DOUBT, OF_NUMBERS, TRIES = tl.constexpr(4.0), tl.constexpr(4.0), tl.constexpr(4)
THREADS = 512  # of programs that hold a sample or a list
PLAN = tl.constexpr(8)  # doubles of a list's header
BLOCK_BITS = tl.constexpr(8)  # low bits of an entry's code


class Listing(NamedTuple):
    """The memory of a row's list: of the logits in (low, high] and in (low2, high2]."""

    plan: tl.tensor  # low, high, low2, high2; the counts; the greatest logit. low NaN: no list
    counts: tl.tensor  # int32: entries; ids above high2; ids between high and low2
    masses: tl.tensor  # [2][blocks] of ids above high2, of ids between high and low2
    sample: tl.tensor  # [SAMPLE], fp32, before there is a list
    entries: tl.tensor  # [ROOM], int64: a logit, and how many ids of which vocab_block have it


class Limits(NamedTuple):
    """What a request keeps: logits above `floor`, `count` ids, a `share` of the mass; -inf, inf and
    1 where all are kept."""

    floor: tl.tensor
    count: tl.tensor
    share: tl.tensor


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
def listing_at(plan, masses, entries):
    """`plan`, `masses` and `entries` point to PLAN, 2 * blocks and ROOM doubles."""
    counts = (plan + 4).to(tl.pointer_type(tl.int32))
    sample = entries.to(tl.pointer_type(tl.float32))
    return Listing(plan, counts, masses, sample, entries.to(tl.pointer_type(tl.int64)))


@triton.jit
def _image(x):
    """Maps floats to integers of the same order; -0 counts as 0."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True).to(tl.int64)
    return tl.where(bits >= 0x80000000, 0xFFFFFFFF - bits, bits + 0x80000000)


@triton.jit
def _number(place, SPARE: tl.constexpr):
    """The logit of an image without its spare bits."""
    image = place << SPARE
    image = tl.where(image >= 0x80000000, image, image | ((1 << SPARE) - 1))
    bits = tl.where(image >= 0x80000000, image - 0x80000000, 0xFFFFFFFF - image)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _before(x, SPARE: tl.constexpr):
    """The number before x; of 0 it is not -0."""
    return _number((_image(x) >> SPARE) - tl.where(x == 0, 2, 1), SPARE)


@triton.jit
def _after(x, SPARE: tl.constexpr):
    """The least number above x."""
    place = _image(x) >> SPARE
    same = _number(place, SPARE)
    return tl.where(same > x, same, _number(place + 1, SPARE))


@constexpr_function
def spare(dtype, members):
    """The low bits of an image that logits of the type never set. Those of a row with more than two
    members, a blend or one with penalties, may set all."""
    if members > 2:
        return 0
    return 16 if dtype == tl.bfloat16 else 13 if dtype == tl.float16 else 0


@constexpr_function
def _coarse(spare):
    """The low bits of an image that a search in a sample ignores."""
    return max(spare, 8)


@triton.jit
def needs_sample(vocabulary, top_k, top_p, min_p, request):
    """Whether the list of a request's row, if it gets one, is planned by a sample. The three point
    to the values of all requests, or are None."""
    wanted = vocabulary.valid < 0
    if top_k is not None:
        wanted |= tl.load(top_k + request) > 0
    if top_p is not None:
        wanted |= tl.load(top_p + request) < 1
    if min_p is not None:
        wanted |= tl.load(min_p + request) > 0
    return wanted & (vocabulary.valid > ROOM)


@triton.jit
def limits(distribution, vocabulary, top_k, top_p, min_p, request):
    """The same for a distribution. Only one by weights is truncated."""
    spread = (distribution.point == SPREAD) & (distribution.status == 0)
    floor = tl.full([], float("-inf"), tl.float32)
    count = tl.full([], float("inf"), tl.float64)
    share = tl.full([], 1, tl.float64)
    if min_p is not None:
        least = tl.load(min_p + request)
        if spread & (least > 0):
            floor = _left_out(distribution, least)
    if top_k is not None:
        k = tl.load(top_k + request)
        count = tl.where(spread & (k > 0) & (k < vocabulary.valid), k.to(tl.float64), count)
    if top_p is not None:
        p = tl.load(top_p + request)
        share = tl.where(spread & (p < 1), p.to(tl.float64), share)
    return Limits(floor, count, share)


@triton.jit
def _left_out(distribution, share):
    """The greatest number below the logits of at least `share` of the greatest weight."""
    least = tl.log2(share.to(tl.float64))
    low = _image(tl.full([], float("-inf"), tl.float32))
    high = _image(distribution.top)
    while high - low > 1:
        middle = low + (high - low) // 2
        below = _number(middle, 0).to(tl.float64) - distribution.top
        kept = below * distribution.scale >= least
        low = tl.where(kept, low, middle)
        high = tl.where(kept, middle, high)
    return _number(low, 0)


@triton.jit
def truncates(limits):
    bare = (limits.floor == float("-inf")) & (limits.count == float("inf")) & (limits.share == 1)
    return not bare


@triton.jit
def nothing_listed(listing):
    tl.store(listing.plan, float("nan"))


@triton.jit
def has_list(listing):
    low = tl.load(listing.plan)
    return low == low


@triton.jit
def survey(distribution, limits, vocabulary, listing, SPARE: tl.constexpr):
    """Plans the list of an untruncated distribution."""
    low = limits.floor
    high = distribution.top
    low2 = high
    high2 = high
    if not truncates(limits):
        low = tl.full([], float("nan"), tl.float32)
    elif vocabulary.valid > ROOM:
        low, high, low2, high2 = _brackets(distribution, limits, vocabulary, listing, SPARE)
    tl.store(listing.plan, low.to(tl.float64))
    tl.store(listing.plan + 1, high.to(tl.float64))
    tl.store(listing.plan + 2, low2.to(tl.float64))
    tl.store(listing.plan + 3, high2.to(tl.float64))
    tl.store(listing.counts + tl.arange(0, 4), tl.zeros([4], tl.int32))
    tl.store(listing.plan + 6, distribution.top.to(tl.float64))


@triton.jit
def _brackets(distribution, limits, vocabulary, listing, SPARE: tl.constexpr):
    """Between which logits the cuts of top-k and of top-p probably are, so that not too many are
    listed. What the two share is in the first."""
    index = tl.arange(0, SAMPLE)
    stride = sample_stride(vocabulary)
    groups = vocabulary.valid // stride
    size = groups * GROUP + tl.minimum(vocabulary.valid - groups * stride, GROUP)
    x = tl.where(index < size, tl.load(listing.sample + index), float("-inf"))
    weight = plain_weights(distribution, x)
    gain = vocabulary.valid / size.to(tl.float64)
    doubt = tl.full([], DOUBT, tl.float64)
    low = limits.floor
    high = low
    low2 = low
    high2 = low
    tries = tl.zeros([], tl.int32)
    while tries < TRIES:
        low = limits.floor
        high = low
        if limits.count < float("inf"):
            root = tl.sqrt(limits.count)
            low, high = _bracket(
                distribution, x, weight, gain, doubt, low, root, root, False, SPARE
            )
        low2 = high
        high2 = high
        if (limits.share < 1) & (high < distribution.top):
            # below the cut is the rest of what is kept so far, and what is not kept
            rest = (1 - limits.share) * distribution.total
            root = _root(gain, x <= low, weight)
            least = tl.maximum(root - _step(distribution, gain, doubt, low), 0)
            root = _root(gain, x <= high, weight)
            most = root + _step(distribution, gain, doubt, high)
            low2, high2 = _bracket(
                distribution,
                x,
                weight,
                gain,
                doubt,
                low,
                tl.sqrt(rest + limits.share * least * least),
                tl.sqrt(rest + limits.share * most * most),
                True,
                SPARE,
            )
            low2 = tl.maximum(low2, high)
            high2 = tl.maximum(high2, high)
        listed = ((x > low) & (x < high)) | ((x > low2) & (x < high2))
        listed &= (x != _after(low, SPARE)) & (x != _after(low2, SPARE))
        expected = gain * tl.sum(listed.to(tl.float32), 0).to(tl.float64)
        tries = tl.where(expected <= FULL, TRIES, tries + 1)
        doubt *= 0.9 * FULL / tl.maximum(expected, FULL)
    return low, high, low2, high2


@triton.jit
def _root(gain, chosen, values):
    """The root of a sum, as sampled."""
    return tl.sqrt(gain * tl.sum(tl.where(chosen, values, 0.0), 0).to(tl.float64))


@triton.jit
def _step(distribution, gain, doubt, x):
    """`doubt` times the standard deviation of the root of a sampled sum of weights up to that of
    x: the root of a sum of n terms has at most that of half the root of the greatest, whatever n
    is."""
    return doubt / 2 * tl.sqrt(gain * _weight(distribution, tl.minimum(x, distribution.top)))


@triton.jit
def _bracket(
    distribution,
    x,
    weight,
    gain,
    doubt,
    floor,
    least,
    most,
    BY_MASS: tl.constexpr,
    SPARE: tl.constexpr,
):
    """(low, high], in which is the logit above which there are as many ids as the square of
    `least`, or below which there is a mass between the squares of `least` and of `most`."""
    fine: tl.constexpr = _coarse(SPARE)
    first = _image(floor) >> fine
    stop = (_image(distribution.top) >> fine) + 1
    low = first
    above_low = stop
    below_high = first
    high = stop
    while (above_low - low > 1) | (high - below_high > 1):
        a = low + (above_low - low) // 2
        b = below_high + (high - below_high) // 2
        at_a = _number(a, fine)
        at_b = _number(b, fine)
        if BY_MASS:
            beyond_a = least - _root(gain, x <= at_a, weight)
            beyond_b = _root(gain, x <= at_b, weight) - most
            a_is_low = beyond_a >= _step(distribution, gain, doubt, at_a)
            b_is_high = beyond_b >= _step(distribution, gain, doubt, at_b)
        else:
            step = OF_NUMBERS * doubt / 2 * tl.sqrt(gain)
            a_is_low = _root(gain, x > at_a, 1.0) - least >= step
            b_is_high = most - _root(gain, x > at_b, 1.0) >= step
        open_a = above_low - low > 1
        open_b = high - below_high > 1
        low = tl.where(open_a & a_is_low, a, low)
        above_low = tl.where(open_a & ~a_is_low, a, above_low)
        high = tl.where(open_b & b_is_high, b, high)
        below_high = tl.where(open_b & ~b_is_high, b, below_high)
    # if the conditions turn at sampled logits, then there exactly
    from_ = tl.where(low == first, floor, _number(low, fine))
    after = tl.min(tl.where(x > from_, x, float("inf")), 0)
    turns = after <= _number(above_low, fine)
    from_ = tl.where(turns, tl.maximum(_before(after, SPARE), from_), from_)
    upto = tl.max(tl.where(x <= _number(high, fine), x, float("-inf")), 0)
    upto = tl.where((high == stop) | (upto <= from_), distribution.top, upto)
    return from_, upto


@triton.jit
def enlist(
    scale,
    row,
    vocabulary,
    listing,
    first,
    stop,
    block,
    blocks,
    SPARE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Lists the planned logits of a vocab_block, and sums those beside them. The first and the last
    logit of a span, which may be those of many ids, get one entry each."""
    if has_list(listing):
        low, high, low2, high2 = _plan(listing)
        next_low = _after(low, SPARE)
        next_low2 = _after(low2, SPARE)
        plain = _untruncated(scale, tl.load(listing.plan + 6).to(tl.float32))
        mass_above = tl.full([], 0, tl.float64)
        mass_between = mass_above
        above = tl.zeros([], tl.int64)
        between = above
        at_low = above
        at_high = above
        at_low2 = above
        at_high2 = above
        for start in range(first, stop, TILE):
            ids = eights(start, TILE)
            x = logits(row, vocabulary, start, ids, TILE)
            weight = plain_weights(plain, x)
            mass_above += sum_eights(tl.where(x > high2, weight, 0.0))
            mass_between += sum_eights(tl.where((x > high) & (x <= low2), weight, 0.0))
            inside = ((x > next_low) & (x < high)) | ((x > next_low2) & (x < high2))
            # of eight ids, counts are four bits wide each
            packed = inside.to(tl.uint32) + _field(x > high2, 1) + _field(x > low2, 2)
            packed += _field(x > high, 3) + _field(x == next_low, 4) + _field(x == high, 5)
            packed += _field(x == next_low2, 6) + _field(x == high2, 7)
            of_eight = tl.sum(packed, 1)
            counts = _sum_fields(of_eight)
            ends = _sum_fields(of_eight >> 16)
            of_high2 = counts >> 16 & 0xFFFF
            of_low2 = counts >> 32 & 0xFFFF
            above += of_high2
            between += (counts >> 48) - of_low2
            at_low += ends & 0xFFFF
            at_high += ends >> 16 & 0xFFFF
            at_low2 += ends >> 32 & 0xFFFF
            at_high2 += ends >> 48
            listed = (counts & 0xFFFF).to(tl.int32)
            found = (of_eight & 15).to(tl.int32)
            place = tl.where(inside, tl.cumsum(inside.to(tl.int32), 1), ROOM * 2)
            place += (tl.cumsum(found, 0) - found)[:, None] - 1
            place += tl.minimum(tl.atomic_add(listing.counts, listed, sem="relaxed"), ROOM)
            entry = _entry(x, (listed * 0 + 1).to(tl.int64), block)
            tl.store(listing.entries + place, entry, mask=place < ROOM)
        _add_run(listing, next_low, tl.where(next_low < high, at_low, 0), block)
        _add_run(listing, high, tl.where(low < high, at_high, 0), block)
        _add_run(listing, next_low2, tl.where(next_low2 < high2, at_low2, 0), block)
        _add_run(listing, high2, tl.where(low2 < high2, at_high2, 0), block)
        tl.store(listing.masses + block, mass_above)
        tl.store(listing.masses + blocks + block, mass_between)
        tl.atomic_add(listing.counts + 1, above.to(tl.int32), sem="relaxed")
        tl.atomic_add(listing.counts + 2, between.to(tl.int32), sem="relaxed")


@triton.jit
def _field(chosen, PLACE: tl.constexpr):
    return chosen.to(tl.uint32) << (4 * PLACE)


@triton.jit
def _sum_fields(packed):
    """The sums of the four lowest fields of four bits, as fields of sixteen."""
    wide = (packed & 15).to(tl.int64)
    wide += (packed >> 4 & 15).to(tl.int64) << 16
    wide += (packed >> 8 & 15).to(tl.int64) << 32
    wide += (packed >> 12 & 15).to(tl.int64) << 48
    return tl.sum(wide, 0)


@triton.jit
def _sum(chosen, values):
    return tl.sum(tl.where(chosen, values, 0.0).to(tl.float64), 0)


@triton.jit
def _plan(listing):
    return (
        tl.load(listing.plan).to(tl.float32),
        tl.load(listing.plan + 1).to(tl.float32),
        tl.load(listing.plan + 2).to(tl.float32),
        tl.load(listing.plan + 3).to(tl.float32),
    )


@triton.jit
def _untruncated(scale, top):
    zero = tl.zeros([], tl.int32)
    one = tl.full([], 1, tl.float64)
    nothing = tl.full([], float("-inf"), tl.float32)
    return Distribution(scale, one, top, nothing, zero, zero + SPREAD, zero)


@triton.jit
def _entry(logit, count, block):
    code = (count << BLOCK_BITS) + block
    return logit.to(tl.uint32, bitcast=True).to(tl.int64) | (code << 32)


@triton.jit
def _add_run(listing, logit, count, block):
    if count > 0:
        place = tl.atomic_add(listing.counts, 1, sem="relaxed")
        if place < ROOM:
            tl.store(listing.entries + place, _entry(logit, count, block))


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
            each = _weight(distribution, new_cut)
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
            beside += tl.where(block == tie_block, ties_of_block * _weight(distribution, cut), 0)
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


@triton.jit
def _weight(distribution, x):
    return tl.exp2((x.to(tl.float64) - distribution.top) * distribution.scale)


@triton.jit
def _list(distribution, listing, blocks, BLOCKS: tl.constexpr):
    low, high, low2, high2 = _plan(listing)
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
    return _sum(_blocks(found) < block, values) + _sum(tl.arange(0, BLOCKS) < block, beside)


@triton.jit
def _listed_above(found, values, x, by_mass):
    """The mass, or the number, of the ids with a logit above x, which is in a bracket. `values`:
    the list's, of that kind."""
    above = tl.where(by_mass, found.mass_above, found.count_above)
    between = tl.where(by_mass, found.mass_between, found.count_between)
    return _sum(found.logits > x, values) + above + tl.where(x < found.low2, between, 0)


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
    low = (_image(lowest) >> SPARE) - 1  # on the grid, and not above `lowest`
    high = _image(highest) >> SPARE
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
        at_x = tl.where(tries_lowest, lowest, _number(x, SPARE))
        at_y = _number(y, SPARE)
        at_z = _number(z, SPARE)
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
    new_cut = tl.where(fits, lowest, _number(high, SPARE))
    before = tl.where(by_mass, mass, number)
    if listed:
        mass = _listed_above(found, _masses(found), new_cut, True)
        number = _sum(found.logits == new_cut, _counts(found))
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
        mass_x += _sum(logit > x, weight)
        mass_y += _sum(logit > y, weight)
        mass_z += _sum(logit > z, weight)
        number_x += _sum(logit > x, 1.0)
        number_y += _sum(logit > y, 1.0)
        number_z += _sum(logit > z, 1.0)
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
