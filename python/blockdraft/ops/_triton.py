"""The Triton kernels: imported when one is first run."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from .. import env
from ..registry import Op

MISSING = None if importlib.util.find_spec("triton") else "triton is not installed"


def register(op: Op, unsupported: Callable[[Any], str | None]) -> None:
    """Add the Triton kernel of an op, `triton_kernels/<op>.py`'s `launch(args)`."""

    def run(args: Any) -> None:
        kernels = importlib.import_module(f"..triton_kernels.{op.name}", __package__)
        with torch.cuda.device_of(args[0]):
            kernels.launch(args)

    op.register("triton", run, unsupported)


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether kernels take this tensor on a GPU, or on what Triton's interpreter makes of a CPU."""
    return tensor.device.type != "cpu" or env.triton_interpreter()


def unsupported(tensor: torch.Tensor) -> str | None:
    """The reason why they cannot take tensors on this one's device, or None."""
    if MISSING:
        return MISSING
    kind = tensor.device.type
    if kind == "cuda" or env.triton_interpreter():
        return None
    return f"the Triton kernels run on a GPU, or with TRITON_INTERPRET=1, not on {kind}"
