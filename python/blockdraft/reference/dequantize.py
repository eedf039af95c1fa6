"""Weights in lower precision, with their scales."""

import torch

BLOCK = 128  # channels by depth that share a scale of fp8
GROUP = 32  # values along the depth that share a scale of fp4
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # what the three low bits of an fp4 mean


def encode(x, dtype):
    """The nearest numbers of an fp8, ties to even; what is beyond its largest becomes that."""
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)


def dequantize(weight, scale):
    """fp32 [..., N, K]. fp8 [..., N, K] has a scale float32 for each block of 128 x 128; fp4
    [..., N, K/2], the lower half byte first, one float8_e8m0fnu for 32 values (MXFP4)."""
    if scale is None:
        return weight.float()
    if weight.dtype == torch.float4_e2m1fn_x2:
        both = weight.view(torch.uint8)
        nibbles = torch.stack([both & 15, both >> 4], -1).flatten(-2).int()
        values = torch.tensor(E2M1, device=weight.device)[nibbles & 7]
        values = torch.where(nibbles >= 8, -values, values)
        return values * scale.float().repeat_interleave(GROUP, -1)
    spread = scale.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    return weight.float() * spread[..., : weight.shape[-2], : weight.shape[-1]]
