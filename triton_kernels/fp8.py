"""Numbers of fp8, e4m3fn or (FNUZ) e4m3fnuz. Kernels take a cache of them as its bits."""

import torch
import triton
import triton.language as tl

from ..env import triton_interpreter

INTERPRETED = tl.constexpr(triton_interpreter())


def codes(cache: torch.Tensor | None) -> torch.Tensor | None:
    return cache.view(torch.uint8) if cache is not None and cache.itemsize == 1 else cache


def is_fnuz(cache: torch.Tensor | None) -> bool:
    return cache is not None and cache.dtype == torch.float8_e4m3fnuz


@triton.jit
def decoded(codes, dtype: tl.constexpr, FNUZ: tl.constexpr):
    """Exactly."""
    if INTERPRETED:  # which has no e4m3fnuz, and takes NaN for a number
        x = codes.to(tl.int32)
        # in the place of fp32's fields: the number times 2^(bias - 127)
        bits = (x & 0x7F) << 20
        value = bits.to(tl.float32, bitcast=True) * (2.0**119 if FNUZ else 2.0**120)
        value = tl.where(x >= 128, -value, value)
        nan = x == 128 if FNUZ else (x & 0x7F) == 0x7F
        out = tl.where(nan, float("nan"), value).to(dtype)
    elif FNUZ:
        out = codes.to(tl.float8e4b8, bitcast=True).to(dtype)
    else:  # for gfx950 only its conversion to fp32 is right: that to bf16 loses subnormals and NaN
        out = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32).to(dtype)
    return out


@triton.jit
def rounded(x, FNUZ: tl.constexpr):
    """The nearest numbers to those of fp32, ties to even, and their codes. NaN stays NaN, what is
    beyond the largest number becomes that. By integers: what compilers make of these differs by
    target."""
    BIAS: tl.constexpr = 8 if FNUZ else 7
    MOST: tl.constexpr = 0x43700000 if FNUZ else 0x43E00000  # 240, 448
    SHIFT: tl.constexpr = 8192.0 if FNUZ else 16384.0  # whose last place is a subnormal number's
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    number = tl.minimum(magnitude, MOST)
    normal = number + 0x7FFFF + ((number >> 20) & 1)
    shifted = number.to(tl.float32, bitcast=True) + SHIFT
    small = number < (128 - BIAS) << 23
    places = shifted.to(tl.int32, bitcast=True) - ((140 if FNUZ else 141) << 23)
    code = tl.where(small, places, (normal >> 20) - ((127 - BIAS) << 3))
    value = tl.where(small, (shifted - SHIFT).to(tl.int32, bitcast=True), normal & 0x7FF00000)
    negative = (bits < 0) & (code > 0) if FNUZ else bits < 0  # fnuz has no -0
    nan = magnitude > 0x7F800000
    code = tl.where(nan, 0x80 if FNUZ else 0x7F, tl.where(negative, code | 0x80, code))
    value = tl.where(nan, 0x7FC00000, tl.where(negative, value | -0x80000000, value))
    return code.to(tl.uint8), value.to(tl.float32, bitcast=True)
