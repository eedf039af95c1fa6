from typing import NamedTuple

import torch

from .. import reference
from ..contract import Check
from ..registry import Op, Out, by_name
from . import _native


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """x weight^T + bias, for the projections and the LM head.

    x            bf16 | fp16 | fp32 [T,I]; weight [O,I], bias [O] or None: x's dtype
    out          [T,O], x's dtype, made if None
    Sums are fp32. `backend=None` takes the C++ kernel where it was faster than torch, which is for
    16 bits on a CPU without AVX-512; anywhere else torch (`"reference"`). A row's bits do not
    depend on the other rows in C++. Raises ValueError or TypeError.
    """
    check = Check("linear")
    check.tensor("x", x, "T I")
    check.tensor("weight", weight, "O I", (x.dtype,))
    check.tensor("bias", bias, "O", (x.dtype,), optional=True)
    inputs = dict(x=x, weight=weight, bias=bias)
    (out,) = check.outputs(None if out is None else (out,), ("T O",), (x.dtype,), inputs)
    args = Args(x=x, weight=weight, bias=bias, out=out)
    if backend is None and not _torch_is_slow(x):
        backend = "reference"
    OP(backend, args)
    return out


class Args(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    out: Out


# torch.compile cannot ask for it
_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()


def _torch_is_slow(x: torch.Tensor) -> bool:
    """Its library has no products of 16 bits for CPUs of AVX2: about 10 Gflop/s a core."""
    return x.is_cpu and x.dtype != torch.float32 and not _AVX512


def _cpp_unsupported(args: Args) -> str | None:
    if not args.x.is_cpu:
        return "on a GPU torch's library multiplies"
    return _native.unsupported(args.x)


OP = Op("linear", Args)
_native.register(OP, _cpp_unsupported)
OP.register("reference", by_name(OP, reference.linear))
