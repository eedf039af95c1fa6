"""What a request keeps of a row: by min-p, by top-k and by top-p."""

from typing import NamedTuple

import triton
import triton.language as tl

from .distribution import SPREAD
from .images import image_of, number_at


class Limits(NamedTuple):
    """What a request keeps: logits above `floor`, `count` ids, a `share` of the mass; -inf, inf and
    1 where all are kept."""

    floor: tl.tensor
    count: tl.tensor
    share: tl.tensor


@triton.jit
def limits(distribution, vocabulary, top_k, top_p, min_p, request):
    """What a request keeps of a distribution. Only one by weights is truncated."""
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
    low = image_of(tl.full([], float("-inf"), tl.float32))
    high = image_of(distribution.top)
    while high - low > 1:
        middle = low + (high - low) // 2
        below = number_at(middle, 0).to(tl.float64) - distribution.top
        kept = below * distribution.scale >= least
        low = tl.where(kept, low, middle)
        high = tl.where(kept, middle, high)
    return number_at(low, 0)


@triton.jit
def truncates(limits):
    bare = (limits.floor == float("-inf")) & (limits.count == float("inf")) & (limits.share == 1)
    return not bare


@triton.jit
def weight_of(distribution, x):
    return tl.exp2((x.to(tl.float64) - distribution.top) * distribution.scale)
