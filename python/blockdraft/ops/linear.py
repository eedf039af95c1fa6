from typing import NamedTuple

import torch

from .. import reference
from ..contract import Check
from ..native import load
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
    Sums are fp32. On a CPU `backend=None` takes the C++ kernel, in which a row's bits do not depend
    on the other rows, but not for 16 bits with AVX-512, where torch is much faster: there only for
    up to 48 rows of bf16 if the CPU has a matrix unit (AMX). On a GPU it takes torch
    (`"reference"`). Raises ValueError or TypeError.
    """
    check = Check("linear")
    check.tensor("x", x, "T I")
    check.tensor("weight", weight, "O I", (x.dtype,))
    check.tensor("bias", bias, "O", (x.dtype,), optional=True)
    inputs = dict(x=x, weight=weight, bias=bias)
    (out,) = check.outputs(None if out is None else (out,), ("T O",), (x.dtype,), inputs)
    args = Args(x=x, weight=weight, bias=bias, out=out)
    if backend is None and _torch_is_faster(x):
        backend = "reference"
    OP(backend, args)
    return out


class Args(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    out: Out


# torch.compile cannot ask for these
_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
_MATRIX_UNIT = _native.MISSING is None and "AMX" in load("_probe").instructions()


def _torch_is_faster(x: torch.Tensor) -> bool:
    """Its library has no products of 16 bits for CPUs of AVX2, where it takes ten times as long. In
    fp32 it is slower for up to about 64 rows, up to 1.4 times as fast for more; in bf16 by a matrix
    unit likewise, 0.7 to 0.85 and up to 1.8 times."""
    if not x.is_cpu:
        return True
    if x.dtype == torch.bfloat16 and _MATRIX_UNIT:
        return x.shape[0] > 48
    return x.dtype != torch.float32 and _AVX512


def _cpp_unsupported(args: Args) -> str | None:
    return None if args.x.is_cpu else "on a GPU torch's library multiplies"


OP = Op("linear", Args)
_native.register(OP, _cpp_unsupported)
OP.register("reference", by_name(OP, reference.linear))
