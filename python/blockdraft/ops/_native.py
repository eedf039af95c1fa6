"""The C++ kernels, registered with torch under the schemas of `blockdraft.registry`."""

from collections.abc import Callable
from typing import Any

import torch

from ..namespace import NAMESPACE
from ..native import load
from ..registry import Op, everything, first_tensor

try:
    EXTENSION, MISSING = load("_ops"), None
    EXTENSION.register(NAMESPACE)
    DEVICES = EXTENSION.devices.split()
except ImportError as error:
    EXTENSION, DEVICES, MISSING = None, [], f"the C++ extension is not built ({error})"


def register(op: Op, unsupported: Callable[[Any], str | None] = everything) -> None:
    """Adds the extension's kernel of an op; `unsupported` is asked on devices that it was built
    for. Compares the kernel's arguments with the schema, since torch does not."""
    if EXTENSION is not None:
        if op.name not in EXTENSION.signatures:
            raise ImportError(
                f"blockdraft: the C++ extension has no {op.name}: install again; a new op is also "
                "registered in csrc/bindings.cpp"
            )
        agree(f"{op.name}'s arguments", EXTENSION.signatures[op.name], signature(op))
    op.register("cpp", None, lambda args: _elsewhere(first_tensor(args)) or unsupported(args))


def signature(op: Op) -> str:
    """The types of an op's arguments, in the form in which csrc/ops/torch.h writes those of a C++
    function."""
    return ", ".join(argument.kind for argument in op.arguments)


def agree(what: str, built: Any, expected: Any) -> None:
    """Raises ImportError if the extension was built from other sources, since it would read
    arguments wrongly."""
    if built != expected:
        raise ImportError(
            f"blockdraft: the C++ extension was built from other sources (install again): {what}: "
            f"expected {expected}, got {built}"
        )


def _elsewhere(tensor: torch.Tensor) -> str | None:
    """Why the extension does not support this tensor's device, or None."""
    if MISSING:
        return MISSING
    kind = tensor.device.type
    if kind in DEVICES:
        return None
    return f"the C++ kernels were built for {' and '.join(DEVICES)}, not for {kind}"


def mixed(**tensors: torch.Tensor | None) -> str | None:
    """Why tensors cannot be read as those of one type, the first one's, or None. Tensors that are
    None are skipped."""
    (first, like), *others = tensors.items()
    for name, t in others:
        if t is not None and t.dtype != like.dtype:
            return f"{name} is {like.dtype}, as {first} is, not {t.dtype}"
    return None


def beside_fp8(scale: torch.Tensor | None, **rows: torch.Tensor) -> str | None:
    """Why a GPU's kernels cannot take rows beside a cache of fp8, which has a scale, or None."""
    for name, t in rows.items():
        if scale is not None and not t.is_cpu and t.dtype != torch.bfloat16:
            return f"{name} is bfloat16 beside a cache of fp8 on a GPU, not {t.dtype}"
    return None


def unaligned(**tensors: torch.Tensor | None) -> str | None:
    """Why rows cannot be read 16 bytes at a time, or None. Tensors that are None are skipped."""
    for name, t in tensors.items():
        if t is None:
            continue
        starts = (t.storage_offset(), *t.stride()[:-1])
        if any(start * t.element_size() % 16 for start in starts):
            return f"{name}: rows begin at multiples of 16 bytes"
    return None
