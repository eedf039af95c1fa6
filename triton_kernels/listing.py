"""Lists of the logits among which the cuts of a row are. A sample tells which those may be
(`survey`); many programs list them (`enlist`), in any order."""

from typing import NamedTuple

import triton
import triton.language as tl

from .distribution import (
    GROUP,
    SAMPLE,
    SPREAD,
    Distribution,
    eights,
    logits,
    plain_weights,
    sample_stride,
    sum_eights,
)
from .images import coarse, image_of, number_after, number_at, number_before
from .limits import truncates, weight_of

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


@triton.jit
def listing_at(plan, masses, entries):
    """`plan`, `masses` and `entries` point to PLAN, 2 * blocks and ROOM doubles."""
    counts = (plan + 4).to(tl.pointer_type(tl.int32))
    sample = entries.to(tl.pointer_type(tl.float32))
    return Listing(plan, counts, masses, sample, entries.to(tl.pointer_type(tl.int64)))


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
        listed &= (x != number_after(low, SPARE)) & (x != number_after(low2, SPARE))
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
    return doubt / 2 * tl.sqrt(gain * weight_of(distribution, tl.minimum(x, distribution.top)))


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
    fine: tl.constexpr = coarse(SPARE)
    first = image_of(floor) >> fine
    stop = (image_of(distribution.top) >> fine) + 1
    low = first
    above_low = stop
    below_high = first
    high = stop
    while (above_low - low > 1) | (high - below_high > 1):
        a = low + (above_low - low) // 2
        b = below_high + (high - below_high) // 2
        at_a = number_at(a, fine)
        at_b = number_at(b, fine)
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
    from_ = tl.where(low == first, floor, number_at(low, fine))
    after = tl.min(tl.where(x > from_, x, float("inf")), 0)
    turns = after <= number_at(above_low, fine)
    from_ = tl.where(turns, tl.maximum(number_before(after, SPARE), from_), from_)
    upto = tl.max(tl.where(x <= number_at(high, fine), x, float("-inf")), 0)
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
        low, high, low2, high2 = planned(listing)
        next_low = number_after(low, SPARE)
        next_low2 = number_after(low2, SPARE)
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
def sum_where(chosen, values):
    return tl.sum(tl.where(chosen, values, 0.0).to(tl.float64), 0)


@triton.jit
def planned(listing):
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
