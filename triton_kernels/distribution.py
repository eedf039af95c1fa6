"""From a row of logits to the distribution that a token is drawn from, and the draw: what both
samplers share.

The vocabulary is divided into vocab_blocks (`ops._sampling` defines their size). Weights are fp32,
sums over lanes and vocab_blocks fp64. The order of sums depends on the vocabulary alone.
"""

from typing import NamedTuple

import triton
import triton.language as tl

NOT_NUMBERS, EMPTY = tl.constexpr(1), tl.constexpr(2)  # statuses of a row
# values of Distribution.point that are no id: mass by weights; no id has mass
SPREAD, NOWHERE = tl.constexpr(-2), tl.constexpr(-1)
LAST = tl.constexpr(2**31 - 1)
LOG2_E = tl.constexpr(1.4426950408889634)
FIELDS = tl.constexpr(8)  # doubles that a stored distribution takes
# A sample of a row: groups of ids, evenly spaced. It is at most a sixteenth of the row.
GROUP, SAMPLE = tl.constexpr(64), tl.constexpr(16384)


class Vocabulary(NamedTuple):
    """Ids from `valid` on and `mask` (-1: none) have no probability."""

    valid: tl.tensor
    mask: tl.tensor


class Row(NamedTuple):
    """A row of logits."""

    at: tl.tensor


class Blend(NamedTuple):
    """weight * at + (1 - weight) * other, of two rows of logits. It is a type apart from Row
    because Triton functions cannot return tuples with None."""

    at: tl.tensor
    other: tl.tensor
    weight: tl.tensor


class Masked(NamedTuple):
    """A row of logits; -inf for ids whose bit is not set in the words `allowed`."""

    at: tl.tensor
    allowed: tl.tensor


class MaskedBlend(NamedTuple):
    at: tl.tensor
    other: tl.tensor
    weight: tl.tensor
    allowed: tl.tensor


class Penalties(NamedTuple):
    """What a request changes of its logits: pointers to its part of types.Penalties' tensors, and
    to its drafts, of which there are at most `most`."""

    touched: tl.tensor
    counts: tl.tensor
    repetition: tl.tensor
    presence: tl.tensor
    frequency: tl.tensor
    bias_ids: tl.tensor
    bias: tl.tensor
    biases: tl.tensor
    drafts: tl.tensor
    most: tl.tensor


class Changed(NamedTuple):
    """A MaskedBlend after penalties, with the first `drafted` of the drafts counted as emitted;
    `masked`: whether there is a mask."""

    at: tl.tensor
    other: tl.tensor
    weight: tl.tensor
    allowed: tl.tensor
    masked: tl.tensor
    touched: tl.tensor
    counts: tl.tensor
    repetition: tl.tensor
    presence: tl.tensor
    frequency: tl.tensor
    bias_ids: tl.tensor
    bias: tl.tensor
    biases: tl.tensor
    drafts: tl.tensor
    drafted: tl.tensor


class Distribution(NamedTuple):
    """Kept ids have the weights 2^((x - top) * scale), divided by `total`; an id is kept if its
    logit is above `cut`, or at `cut` and the id is at most `tie`. Or all mass is on the id
    `point`."""

    scale: tl.tensor
    total: tl.tensor
    top: tl.tensor
    cut: tl.tensor
    tie: tl.tensor
    point: tl.tensor
    status: tl.tensor


def tile_ids(vocab_block: int, vocab: int) -> int:
    """Ids that a program handles at a time: a power of two that divides the vocab_block."""
    return min(4096, vocab_block & -vocab_block, max(16, triton.next_power_of_2(vocab)))


@triton.jit
def uniform(given, index, seed, position, row, PURPOSE: tl.constexpr):
    """given[index] or, if that is None, the number of blockdraft.rng: a multiple of 2^-53 in
    [0,1)."""
    if given is not None:
        return tl.load(given + index)
    else:
        purpose = tl.full([], PURPOSE, tl.int32)
        word0, word1, _, _ = tl.philox(seed, position, row, purpose, tl.zeros([], tl.int32))
        return ((word0 >> 5).to(tl.int64) * 67108864 + (word1 >> 6).to(tl.int64)).to(
            tl.float64
        ) * 1.1102230246251565e-16


@triton.jit
def has(vocabulary, token):
    return (token >= 0) & (token < vocabulary.valid) & (token != vocabulary.mask)


@triton.jit
def mixed(x, y, weight):
    return tl.where(weight == 1, x, tl.where(weight == 0, y, tl.fma(weight, x, (1 - weight) * y)))


@triton.jit
def _read(at, vocabulary, start, ids, TILE: tl.constexpr):
    if (start + TILE <= vocabulary.valid) & (
        (vocabulary.mask < start) | (vocabulary.mask >= start + TILE)
    ):
        x = tl.load(at + ids).to(tl.float32)
    else:
        x = tl.load(
            at + ids, mask=(ids < vocabulary.valid) & (ids != vocabulary.mask), other=float("-inf")
        ).to(tl.float32)
    return x


@triton.jit
def logits(row, vocabulary, start, ids, TILE: tl.constexpr):
    """The logits of a tile of ids from `start` on, in fp32; -inf for ids that are excluded,
    whatever is stored there."""
    x = _read(row.at, vocabulary, start, ids, TILE)
    if len(row) > 2:
        if row.weight != 1:
            x = mixed(x, _read(row.other, vocabulary, start, ids, TILE), row.weight)
    if len(row) > 4:
        used = ids < vocabulary.valid
        x = penalised(row, x, ids, used, row.drafted, row.drafted)
        if row.masked:
            x = tl.where(is_set(row.allowed, ids, used), x, float("-inf"))
    elif len(row) % 2 == 0:
        x = tl.where(is_set(row.allowed, ids, ids < vocabulary.valid), x, float("-inf"))
    return x


@triton.jit
def penalised(penalties, x, ids, used, drafted, most):
    """The logits x of ids after vLLM's formulas, in its order. The first `drafted` of the drafts,
    at most `most`, count as emitted."""
    touched = is_set(penalties.touched, ids, used)
    count = tl.load(penalties.counts + ids, mask=used & touched, other=-1)
    for i in range(penalties.biases):
        own = touched & (ids == tl.load(penalties.bias_ids + i))
        x = tl.where(own, x + tl.load(penalties.bias + i), x)
    for i in range(most):
        own = (ids == tl.load(penalties.drafts + i)) & (i < drafted)
        count = tl.where(own, tl.maximum(count, 0) + 1, count)
    emitted = tl.maximum(count, 0).to(tl.float32)
    repetition = tl.full(emitted.shape, 0, tl.float32) + penalties.repetition
    repeated = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    lowered = tl.fma(-(emitted * 0 + penalties.frequency), emitted, repeated)
    lowered = tl.where(count > 0, lowered - penalties.presence, lowered)
    return tl.where(count < 0, x, lowered)


@triton.jit
def is_set(words, ids, used):
    """Whether the ids' bits are set."""
    return ((tl.load(words + (ids >> 5), mask=used, other=0) >> (ids & 31)) & 1) != 0


@triton.jit
def exponent(temperature):
    """The factor from logits to exponents of 2."""
    return tl.minimum(
        tl.maximum(LOG2_E / tl.where(temperature > 0, temperature, 1).to(tl.float64), 1e-30), 1e30
    )


@triton.jit
def eights(start, TILE: tl.constexpr):
    """The ids of a tile, eight consecutive ones for each lane, which sums them without shuffles."""
    return start + tl.arange(0, TILE // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def sum_eights(x):
    return tl.sum(tl.sum(x, 1).to(tl.float64), 0)


@triton.jit
def measure(row, vocabulary, scale, first, stop, sample, sampled, TILE: tl.constexpr):
    """The sum of 2^((x - greatest) * scale) over a span, NaN if any logit is NaN or +inf; and the
    greatest logit. If `sampled`, the row's sampled logits are stored in `sample` (None: never)."""
    greatest = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0, tl.float64)
    for start in range(first, stop, TILE):
        ids = eights(start, TILE)
        x = logits(row, vocabulary, start, ids, TILE)
        if sample is not None:
            if sampled:
                place, used = in_sample(vocabulary, start, TILE)
                place = place[:, None] + tl.arange(0, 8)[None, :]
                tl.store(sample + place, x, mask=used[:, None] & (ids < vocabulary.valid))
        after = tl.maximum(greatest, tl.max(tl.max(x, 1), 0))
        anchor = tl.where(after == float("-inf"), 0.0, after)
        total = total * tl.exp2((greatest.to(tl.float64) - anchor) * scale) + sum_eights(
            tl.exp2((x - anchor) * scale.to(tl.float32))
        )
        greatest = after
    return total, greatest


@triton.jit
def sample_stride(vocabulary):
    """How far the groups of a sample are apart."""
    return tl.maximum(16 * GROUP, tl.cdiv(vocabulary.valid, SAMPLE) * GROUP)


@triton.jit
def in_sample(vocabulary, start, TILE: tl.constexpr):
    """The place in a sample of each eight ids of a tile, and whether they are in it."""
    first = start + tl.arange(0, TILE // 8) * 8
    stride = sample_stride(vocabulary)
    group = first // stride
    inside = first - group * stride
    return group * GROUP + inside, inside < GROUP


@triton.jit
def conclude(sums, greatest, temperature, row, vocabulary, vocab_block, TILE: tl.constexpr):
    """The untruncated distribution of a row whose vocab_blocks were measured. row: None where the
    temperature is not 0."""
    top = tl.max(greatest, 0)
    spoilt = tl.max((sums != sums).to(tl.int32), 0) > 0
    status = tl.where(spoilt, NOT_NUMBERS, tl.where(top == float("-inf"), EMPTY, 0))
    scale = exponent(temperature)
    total = tl.sum(
        tl.where(sums > 0, sums * tl.exp2((greatest.to(tl.float64) - top) * scale), 0), 0
    )
    point = tl.full([], SPREAD, tl.int32)
    nothing = tl.full([], float("-inf"), tl.float32)
    if row is not None:
        if (temperature <= 0) & (status == 0):
            point = lowest(sums, greatest, top, row, vocabulary, vocab_block, TILE)
    return Distribution(scale, total, top, nothing, tl.full([], LAST, tl.int32), point, status)


@triton.jit
def lowest(sums, greatest, top, row, vocabulary, vocab_block, TILE: tl.constexpr):
    """The lowest id whose logit is `top`, the greatest of the measured vocab_blocks."""
    index = tl.arange(0, sums.shape[0])
    first = tl.min(tl.where(greatest == top, index, LAST), 0) * vocab_block
    zero = tl.zeros([], tl.float64)
    at_top = Distribution(zero, zero, top, top, tl.full([], LAST, tl.int32), zero, zero)
    return walk(
        at_top, row, None, None, zero, vocabulary, first, first + vocab_block, zero, True, TILE
    )


@triton.jit
def is_kept(distribution, x, ids):
    return (x > distribution.cut) | ((x == distribution.cut) & (ids <= distribution.tie))


@triton.jit
def weights(distribution, x, ids):
    """The weights of what is kept, in fp32; NaN for NaN."""
    kept = is_kept(distribution, x, ids) | (x != x)
    return tl.where(kept, plain_weights(distribution, x), 0.0)


@triton.jit
def plain_weights(distribution, x):
    """Weights in fp32, from exponents of higher precision, of kept ids or not."""
    factor = distribution.scale.to(tl.float32)
    below = x - distribution.top
    floor = (-1e4 / distribution.scale).to(tl.float32)  # far below what 2^x can hold
    below = tl.where(below < floor, floor, below)
    product = below * factor
    power = tl.exp2(product)
    rest = tl.fma(
        below, (distribution.scale - factor).to(tl.float32), tl.fma(below, factor, -product)
    )
    return tl.fma(power, rest * 0.6931471805599453, power)


@triton.jit
def probability(distribution, x, token, vocabulary):
    """The probability of tokens with the logits x, in fp64."""
    spread = tl.where(
        is_kept(distribution, x, token),
        tl.exp2((x.to(tl.float64) - distribution.top) * distribution.scale) / distribution.total,
        0,
    )
    return tl.where(
        has(vocabulary, token),
        tl.where(
            distribution.point == SPREAD, spread, (token == distribution.point).to(tl.float64)
        ),
        0,
    )


@triton.jit
def log_probability(distribution, x, token):
    """Of a token with the logit x, in a distribution that is not a point."""
    below = (x.to(tl.float64) - distribution.top) * distribution.scale
    value = tl.minimum((below - tl.log2(distribution.total)) / LOG2_E, 0)
    return tl.where(is_kept(distribution, x, token), value, float("-inf")).to(tl.float32)


@triton.jit
def residual(mass, q, q_row, ratio, vocabulary, start, ids, TILE: tl.constexpr):
    """From weights of a distribution p, those of the residual (p - ratio * q)+; if q is a point,
    those of p without that id. If q is None, those of p. NaN stays NaN."""
    if q is not None:
        if q_row is not None:
            if q.point == SPREAD:
                of_q = weights(q, logits(q_row, vocabulary, start, ids, TILE), ids)
                # where of_q is 0 an infinite ratio must not count
                rest = mass - of_q * ratio.to(tl.float32)
                mass = tl.where(of_q == 0, mass, tl.where(rest <= 0, 0.0, rest))
        mass = tl.where(ids == q.point, 0.0, mass)
    return mass


@triton.jit
def masses_of(distribution, row, q, q_row, ratio, vocabulary, first, stop, TILE: tl.constexpr):
    """The sums of the weights of p and of the `residual` over a span."""
    own = tl.full([], 0, tl.float64)
    rest = own
    for start in range(first, stop, TILE):
        ids = eights(start, TILE)
        mass = weights(distribution, logits(row, vocabulary, start, ids, TILE), ids)
        own += sum_eights(mass)
        rest += sum_eights(residual(mass, q, q_row, ratio, vocabulary, start, ids, TILE))
    return own, rest


@triton.jit
def walk(
    distribution,
    row,
    q,
    q_row,
    ratio,
    vocabulary,
    first,
    stop,
    r,
    AT_CUT: tl.constexpr,
    TILE: tl.constexpr,
):
    """The first id of a span at which the running sum of `residual` weights exceeds r. If rounding
    keeps it below r, the last id with mass (-1: none). AT_CUT: the mass is 1 for logits at the cut,
    up to the id `tie`, else 0."""
    found = tl.full([], -1, tl.int32)
    last = found
    start = first
    while (start < stop) & (found < 0):
        ids = start + tl.arange(0, TILE)
        if AT_CUT:
            mass = (
                (logits(row, vocabulary, start, ids, TILE) == distribution.cut)
                & (ids <= distribution.tie)
            ).to(tl.float32)
        else:
            mass = weights(distribution, logits(row, vocabulary, start, ids, TILE), ids)
            mass = residual(mass, q, q_row, ratio, vocabulary, start, ids, TILE)
        upto = tl.cumsum(mass.to(tl.float64), 0)
        first_over = tl.min(tl.where((mass > 0) & (upto > r), ids, LAST), 0)
        found = tl.where(first_over == LAST, -1, first_over)
        last = tl.maximum(last, tl.max(tl.where(mass > 0, ids, -1), 0))
        r -= tl.sum(mass.to(tl.float64), 0)
        start += TILE
    return tl.where(found < 0, last, found)


@triton.jit
def find(sums, r):
    """(vocab_block in which the running sum exceeds r, r minus the sums before it). If rounding
    keeps the sum below r: the last vocab_block with mass, and infinity."""
    index = tl.arange(0, sums.shape[0])
    upto = tl.cumsum(sums, 0)
    over = tl.min(tl.where((sums > 0) & (upto > r), index, LAST), 0)
    block = tl.where(over == LAST, tl.max(tl.where(sums > 0, index, 0), 0), over)
    before = tl.sum(tl.where(index < block, sums, 0), 0)
    return block, tl.where(over == LAST, float("inf"), r - before)
