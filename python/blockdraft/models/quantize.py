"""Checkpoints whose experts are stored in fp8 or MXFP4, and caches of keys and values in fp8. All
else stays as it is: embedding, projections, convolutions, routers and norms.

A quantised model is a model of its own: decoding is lossless with respect to it, not to the
checkpoint that it was made of.
"""

import json
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F

from ..contract import FP8, fp8_types
from ..reference.dequantize import BLOCK, E2M1, GROUP
from .cache import CacheFormat, PagedCache
from .checkpoint import read
from .config import ZayaConfig
from .runner import Runner
from .scaled import EXPERTS, FORMATS, named
from .values import read_json
from .weights import assemble

_CONFIGS = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
    "mxfp4": {"quant_method": "mxfp4"},
}


def quantize_fp8(
    weight: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [...,N,K] in fp8, and the scale float32 of each block of 128 x 128, which takes the
    block's largest weight to the format's largest number. A block of zeros has scale 1."""
    rows, depth = weight.shape[-2:]
    most = torch.finfo(dtype).max
    whole = F.pad(weight.float(), (0, -depth % BLOCK, 0, -rows % BLOCK))
    blocks = whole.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    scale = blocks.abs().amax((-3, -1)) / most
    scale = torch.where(scale == 0, 1.0, scale)
    spread = scale.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    codes = (whole / spread).clamp(-most, most)[..., :rows, :depth]
    return codes.contiguous().to(dtype), scale


def quantize_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [...,N,K] as MXFP4 [...,N,K/2], and the power of two of each 32 (OCP MX 1.0): two's
    power of the largest weight, less that of 6. Rounds to nearest, ties to even; saturates."""
    if weight.shape[-1] % GROUP:
        raise ValueError(
            f"quantize_mxfp4: weight: expected a depth that is a multiple of {GROUP}, "
            f"got {weight.shape[-1]}"
        )
    groups = weight.float().unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1)
    power = (torch.frexp(largest).exponent - 3).clamp(-127, 127)
    power = torch.where(largest == 0, -127, power)
    magnitude = torch.ldexp(groups.abs(), -power[..., None])
    values = torch.tensor(E2M1, device=weight.device)
    middle = (values[1:] + values[:-1]) / 2
    code = torch.bucketize(magnitude, middle)  # ties go down
    tie = (code < 7) & (magnitude == middle[code.clamp(max=6)]) & (code % 2 == 1)
    code = (code + tie) | (groups.signbit().int() << 3)
    code = code.flatten(-2).to(torch.uint8)
    both = code[..., ::2] | code[..., 1::2] << 4
    scale = (power + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
    return both.view(torch.float4_e2m1fn_x2), scale


def quantized(tensors: dict[str, torch.Tensor], format: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors with its experts in "fp8" (e4m3fn) or "mxfp4", under the names that
    transformers gives them."""
    if format not in FORMATS:
        raise ValueError(f"quantized: format: expected one of {', '.join(FORMATS)}, got {format!r}")
    out = {}
    for name, tensor in tensors.items():
        if not name.endswith(EXPERTS):
            out[name] = tensor
        else:
            store = quantize_fp8 if format == "fp8" else quantize_mxfp4
            out |= named(name, format, *store(tensor))
    return out


def quantize(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], format: str = "mxfp4"
) -> Path:
    """Write the checkpoint in `folder` to the folder `out`, in bf16, its experts in `format`."""
    from safetensors.torch import save_file

    folder, out = Path(folder), Path(out)
    config = ZayaConfig.load(folder)
    tensors = read(folder, torch.bfloat16)
    assemble(config, tensors)  # checks them
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"quantize: out: expected an empty folder or none, got {out}")
    small = quantized(tensors, format)
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".jinja"):
            if path.name != "model.safetensors.index.json":
                shutil.copy(path, out)
    save_file({name: t.contiguous() for name, t in small.items()}, out / "model.safetensors")
    raw = read_json(folder / "config.json") | {"quantization_config": _CONFIGS[format]}
    (out / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    return out


def cache_format(model: Runner, tokens: list[int], dtype: torch.dtype | None = None) -> CacheFormat:
    """For `model.cache_format`: fp8 (None: the device's own) whose largest number is at least twice
    the largest key or value of each layer and head over `tokens`. What is beyond it saturates.

    Scales are powers of two: a number times its scale is then exact in bf16, and rows of a pass
    attend to each other exactly as later passes will.
    """
    if dtype is None:
        dtype = fp8_types(model.device)[0]
    if dtype not in FP8:
        raise ValueError(f"cache_format: dtype: expected one of {FP8}, got {dtype}")
    if not tokens:
        raise ValueError("cache_format: tokens: expected some, got none")
    cache = PagedCache(model.config, 1, len(tokens), model.dtype, model.device)
    cache.open(0, len(tokens))
    model.prefill([tokens], cache)

    def scale(stored: torch.Tensor) -> torch.Tensor:
        largest = stored.abs().amax((1, 2, 4)).float()
        if not largest.isfinite().all():
            raise ValueError("cache_format: tokens: expected finite keys and values, got others")
        ratio = largest.clamp(min=torch.finfo(dtype).tiny) * 2 / torch.finfo(dtype).max
        return torch.exp2(torch.log2(ratio).ceil())

    return CacheFormat(dtype, scale(cache.k), scale(cache.v))
