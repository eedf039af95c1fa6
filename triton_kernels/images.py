"""Images of floats: integers of the same order."""

import triton
import triton.language as tl
from triton.runtime.jit import constexpr_function


@triton.jit
def image_of(x):
    """Maps floats to integers of the same order; -0 counts as 0."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True).to(tl.int64)
    return tl.where(bits >= 0x80000000, 0xFFFFFFFF - bits, bits + 0x80000000)


@triton.jit
def number_at(place, SPARE: tl.constexpr):
    """The logit of an image without its spare bits."""
    image = place << SPARE
    image = tl.where(image >= 0x80000000, image, image | ((1 << SPARE) - 1))
    bits = tl.where(image >= 0x80000000, image - 0x80000000, 0xFFFFFFFF - image)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def number_before(x, SPARE: tl.constexpr):
    """The number before x; of 0 it is not -0."""
    return number_at((image_of(x) >> SPARE) - tl.where(x == 0, 2, 1), SPARE)


@triton.jit
def number_after(x, SPARE: tl.constexpr):
    """The least number above x."""
    place = image_of(x) >> SPARE
    same = number_at(place, SPARE)
    return tl.where(same > x, same, number_at(place + 1, SPARE))


@constexpr_function
def spare(dtype, members):
    """The low bits of an image that logits of the type never set. Those of a row with more than two
    members, a blend or one with penalties, may set all."""
    if members > 2:
        return 0
    return 16 if dtype == tl.bfloat16 else 13 if dtype == tl.float16 else 0


@constexpr_function
def coarse(spare):
    """The low bits of an image that a search in a sample ignores."""
    return max(spare, 8)
