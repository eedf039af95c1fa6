"""Experts that a checkpoint stores in fp8 or MXFP4, under the names that transformers uses."""

import torch

from ..contract import fp8_types
from ..reference.dequantize import BLOCK, GROUP

EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
FORMATS = ("fp8", "mxfp4")


def named(name: str, format: str, codes: torch.Tensor, scale: torch.Tensor) -> dict:
    """A tensor's parts, by name: fp8 as it is; of MXFP4 bytes, a group of 32 together."""
    if format == "fp8":
        return {name: codes, f"{name}_scale_inv": scale}
    blocks = codes.view(torch.uint8).unflatten(-1, (-1, GROUP // 2))
    return {f"{name}_blocks": blocks, f"{name}_scales": scale.view(torch.uint8)}


def stored(
    tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Names and shapes of a checkpoint's tensors, some of which may have scales, and the dtypes of
    those that have their own."""
    expected, own = {}, {}
    for name, shape in shapes.items():
        *experts, rows, depth = shape if len(shape) > 1 else (1, *shape)
        if f"{name}_scale_inv" in tensors:
            expected[name] = shape
            expected[f"{name}_scale_inv"] = (*experts, -(-rows // BLOCK), -(-depth // BLOCK))
            own |= {name: torch.float8_e4m3fn, f"{name}_scale_inv": torch.float32}
        elif f"{name}_blocks" in tensors:
            groups = (*experts, rows, depth // GROUP)
            expected |= {f"{name}_blocks": (*groups, GROUP // 2), f"{name}_scales": groups}
            own |= {f"{name}_blocks": torch.uint8, f"{name}_scales": torch.uint8}
        else:
            expected[name] = shape
    return expected, own


def experts(
    tensors: dict[str, torch.Tensor], name: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights and scales as ops.fused_moe takes them: fp8 in the dtype of the device."""
    if f"{name}_scale_inv" in tensors:
        codes, scale = tensors[name], tensors[f"{name}_scale_inv"]
        own = codes.dtype in fp8_types(codes.device)
        return (codes, scale) if own else to_fnuz(codes, scale)
    if f"{name}_blocks" in tensors:
        codes = tensors[f"{name}_blocks"].flatten(-2).view(torch.float4_e2m1fn_x2)
        return codes, tensors[f"{name}_scales"].view(torch.float8_e8m0fnu)
    return tensors[name], None


def to_fnuz(codes: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same weights in gfx942's fp8. The bits of e4m3fn mean half as much there, so that the
    scale doubles; only NaN and -0 have other bits."""
    bits = codes.view(torch.uint8)
    nan = (bits & 0x7F) == 0x7F
    bits = torch.where(nan, 0x80, torch.where(bits == 0x80, 0, bits))
    return bits.view(torch.float8_e4m3fnuz), 2 * scale
