"""Reads the tensors of a Hugging Face checkpoint folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..contract import FLOATS
from .values import brief, read_json

# fp8 is not here: without its scales the numbers mean nothing.
_CONVERTIBLE = (*FLOATS, torch.float64)
# Experts in fp8 or MXFP4, which stay as they are; `weights.assemble` checks them.
_LOW = (torch.float8_e4m3fn, torch.uint8)
_KEPT = ("balancing_biases", "_scale_inv")


def read(
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors file or shards.

    `dtype` converts every tensor but the router's fp32 balancing biases, and experts that are
    stored with scales; None keeps what is stored.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(
            f"checkpoint: dtype: expected None, bfloat16, float16 or float32, got {brief(dtype)}"
        )
    tensors: dict[str, torch.Tensor] = {}
    for path in _files(Path(folder)):
        for name, tensor in _stored(path, device):
            if name in tensors:
                raise ValueError(
                    f"checkpoint: {path}: expected each tensor in one file only, got {name!r} again"
                )
            tensors[name] = tensor if dtype is None else _converted(name, tensor, dtype)
    return tensors


def _stored(path: Path, device: torch.device | str) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of one safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"checkpoint: {path}: expected a whole safetensors file, got {error}"
        ) from error


def _converted(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if "experts." in name and tensor.dtype in _LOW:
        return tensor
    if tensor.dtype not in _CONVERTIBLE:
        raise ValueError(
            f"checkpoint: {name}: expected floats to convert to {dtype}, got {tensor.dtype}"
        )
    return tensor if name.endswith(_KEPT) else tensor.to(dtype)


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those that its index names, or all of them."""
    index = folder / "model.safetensors.index.json"
    paths = _shards(index) if index.is_file() else sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        pickles = sorted(path.name for end in ("bin", "pt") for path in folder.glob(f"*.{end}"))
        hint = f"; {pickles[0]} is a pickle, which is never loaded" if pickles else ""
        expected = missing[0] if missing else "*.safetensors"
        raise ValueError(f"checkpoint: {folder}: expected {expected}, got none{hint}")
    return paths


def _shards(index: Path) -> list[Path]:
    """The files that an index names. A shard lies beside its index and nowhere else, so that a
    checkpoint cannot name other files of the machine."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"checkpoint: {index}: expected a weight_map, got {brief(shards)}")
    for tensor, shard in shards.items():
        plain = isinstance(shard, str) and Path(shard).name == shard
        if not plain or not shard.endswith(".safetensors"):
            raise ValueError(
                f"checkpoint: {index}: weight_map: {tensor}: expected the name of a .safetensors "
                f"file in the same folder, got {brief(shard)}"
            )
    return sorted({index.parent / shard for shard in shards.values()})
