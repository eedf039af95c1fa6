"""Weights of products, which may be stored in fp8 or MXFP4 with scales."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

FORMATS = ("", "fp8", "mxfp4")  # FORMAT of the kernels is an index into these


class Stored(NamedTuple):
    """As kernels take them. strides: of the weights' experts and rows, and of the scales'."""

    weights: torch.Tensor
    scales: torch.Tensor | None
    strides: tuple[int, ...]
    format: int


def stored(weights: torch.Tensor, scales: torch.Tensor | None) -> Stored:
    if scales is None:
        return Stored(weights, None, (*weights.stride()[:2], 0, 0), 0)
    strides = (*weights.stride()[:2], *scales.stride()[:2])
    if weights.dtype == torch.float4_e2m1fn_x2:
        return Stored(weights.view(torch.uint8), scales.view(torch.uint8), strides, 2)
    return Stored(weights, scales, strides, 1)


@triton.jit
def load_weights(
    weights,
    scales,
    row,
    start,
    weights_row,
    scales_row,
    tokens,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Weights [rows,DEPTH] from depth `start` on, 0 beyond SIZE, in the type of the tokens. DEPTH
    divides 128, a block of fp8's scales."""
    dtype = tokens.dtype.element_ty
    row = row.to(tl.int64)
    k = start + tl.arange(0, DEPTH)
    if FORMAT == 2:
        byte = start // 2 + tl.arange(0, DEPTH // 2)
        at = weights + row[:, None] * weights_row + byte[None, :]
        both = tl.load(at, mask=(byte < SIZE // 2)[None, :], other=0).to(tl.int32)
        code = tl.interleave(both & 15, both >> 4)
        group = start // 32 + tl.arange(0, DEPTH // 32)
        at = scales + row[:, None] * scales_row + group[None, :]
        power = tl.load(at, mask=(group < SIZE // 32)[None, :], other=0).to(tl.int32)
        power = tl.where(power == 0, 0x400000, tl.where(power == 255, 0x7FC00000, power << 23))
        # two bits of exponent, one of mantissa; an exponent of 0 is 0 or 0.5
        half = code & 1
        bits = tl.where(
            (code & 6) != 0, ((code & 6) << 22) + 0x3F000000 | half << 22, half * 0x3F000000
        )
        value = (bits | (code & 8) << 28).to(tl.float32, bitcast=True)
        value = tl.reshape(value, (value.shape[0], DEPTH // 32, 32))
        scale = power.to(tl.float32, bitcast=True)[:, :, None]
        out = tl.reshape(value * scale, (value.shape[0], DEPTH)).to(dtype)
    else:
        at = weights + row[:, None] * weights_row + k[None, :]
        out = tl.load(at, mask=(k < SIZE)[None, :], other=0.0)
        if FORMAT == 1:
            scale = tl.load(scales + row // 128 * scales_row + start // 128)
            out = (out.to(tl.float32) * scale[:, None]).to(dtype)
    return out
