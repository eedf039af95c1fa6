"""What `blockdraft info` prints."""

import platform

import torch
from rich.console import Console
from rich.table import Table

from . import __version__, ops, registry  # noqa: F401  (importing ops registers them)
from .native import load
from .ops import _native, _triton

RUNS = {"triton": "on a GPU", "cpp": "on the CPU", "reference": "on any device"}


def devices() -> str:
    if not torch.cuda.is_available():
        return "CPU only"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def native_code() -> str:
    try:
        return f"built; here with {load('_probe').instructions()}"
    except ImportError:
        return "not built: no C++ compiler at install time"


def state(op: registry.Op, backend: str) -> str:
    """Where a backend of an op runs, or why it does not."""
    if backend not in op.backends:
        return "no kernel in this version"
    missing = {"cpp": _native.MISSING, "triton": _triton.MISSING}.get(backend)
    return missing or f"yes, {RUNS[backend]}"


def show() -> None:
    """Print the versions, the devices and the table of ops."""
    console = Console(highlight=False)
    for name, value in (
        ("blockdraft", __version__),
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("device", devices()),
        ("CPU threads", torch.get_num_threads()),
        ("native code", native_code()),
    ):
        console.print(f"{name:<14} {value}")
    table = Table("op", *registry.ORDER)
    for name, op in sorted(registry.OPS.items()):
        table.add_row(name, *(state(op, backend) for backend in registry.ORDER))
    console.print(table)
