"""The Triton kernels. They are imported when one first runs."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from .. import env
from ..registry import Op, everything, first_tensor

MISSING = None if importlib.util.find_spec("triton") else "triton is not installed"


def register(op: Op, unsupported: Callable[[Any], str | None] = everything) -> None:
    """Adds the Triton kernel of an op: `launch(args)` of `triton_kernels/<op>.py`; `unsupported` is
    asked where Triton runs."""

    def run(args: Any) -> None:
        kernels = importlib.import_module(f"..triton_kernels.{op.name}", __package__)
        with torch.cuda.device_of(first_tensor(args)):
            kernels.launch(args)

    op.register("triton", run, lambda args: _elsewhere(first_tensor(args)) or unsupported(args))


def cannot_compute(tensor: torch.Tensor) -> str | None:
    """Why a kernel with products, or with results that are rounded, does not support this tensor's
    type, or None."""
    if tensor.dtype == torch.bfloat16 and env.triton_interpreter():
        return "Triton's interpreter multiplies and rounds bfloat16 wrongly"
    return None


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether kernels run on a GPU for this tensor, or in Triton's interpreter instead."""
    return tensor.device.type != "cpu" or env.triton_interpreter()


def _elsewhere(tensor: torch.Tensor) -> str | None:
    """Why the Triton kernels do not support this tensor's device, or None."""
    if MISSING:
        return MISSING
    kind = tensor.device.type
    if kind == "cuda" or env.triton_interpreter():
        return None
    return f"the Triton kernels run on a GPU, or with TRITON_INTERPRET=1, not on {kind}"
