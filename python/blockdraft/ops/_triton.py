"""The Triton kernels: imported when one is first run."""

import importlib
import importlib.util

import torch

from .. import env

MISSING = None if importlib.util.find_spec("triton") else "triton is not installed"


def launch(op: str, *args) -> None:
    """Run `triton_kernels/<op>.py` on the device of the first argument."""
    kernels = importlib.import_module(f"..triton_kernels.{op}", __package__)
    with torch.cuda.device_of(args[0]):
        kernels.launch(*args)


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether kernels take this tensor on a GPU, or on what Triton's interpreter makes of a CPU."""
    return tensor.device.type != "cpu" or env.triton_interpreter()


def unsupported(tensor: torch.Tensor) -> str | None:
    """The reason why they cannot take this tensor here, or None."""
    if MISSING:
        return MISSING
    kind = tensor.device.type
    return (
        None
        if kind == "cuda" or env.triton_interpreter()
        else f"the Triton kernels run on a GPU, or with TRITON_INTERPRET=1, not on {kind}"
    )
