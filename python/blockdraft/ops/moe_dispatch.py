from typing import NamedTuple

import torch

from .. import reference
from ..contract import I32, Check
from ..registry import Op, Out, by_name
from . import _native, _triton


def moe_dispatch(
    experts: torch.Tensor,
    num_experts: int,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort (token, choice) pairs by expert, stably and deterministically, without skips (-1).

    experts      int32 [T,k], -1 .. num_experts - 1
    out          (order, offsets), made if None
    Returns order int32 [T*k], flat pair indices t*k + j grouped by expert, -1 after the last;
    offsets int32 [num_experts+1]: expert e owns order[offsets[e]..offsets[e+1]]. Raises ValueError
    or TypeError.
    """
    check = Check("moe_dispatch")
    check.tensor("experts", experts, "T k", I32, contiguous=True)
    check.need(num_experts > 0, "num_experts", "at least 1", num_experts)
    check.values("experts", experts, -1, num_experts - 1, f"-1 .. {num_experts - 1}")
    check.dims["T*k"] = experts.numel()
    check.dims["E"] = num_experts
    order, offsets = check.outputs(out, ("T*k", "E+1"), I32 * 2, dict(experts=experts))
    OP(backend, Args(experts=experts, num_experts=num_experts, order=order, offsets=offsets))
    return order, offsets


class Args(NamedTuple):
    experts: torch.Tensor
    num_experts: int
    order: Out
    offsets: Out


CPP_EXPERTS, TRITON_EXPERTS = 4096, 1024  # whose counts a workgroup of a GPU has room for


def too_many(num_experts: int, most: int) -> str | None:
    """The reason why a kernel cannot sort by so many experts, or None."""
    return None if num_experts <= most else f"at most {most} experts, not {num_experts}"


def _cpp_unsupported(args: Args) -> str | None:
    return None if args.experts.is_cpu else too_many(args.num_experts, CPP_EXPERTS)


def _triton_unsupported(args: Args) -> str | None:
    return too_many(args.num_experts, TRITON_EXPERTS)


OP = Op("moe_dispatch", Args)
_triton.register(OP, _triton_unsupported)
_native.register(OP, _cpp_unsupported)
OP.register("reference", by_name(OP, reference.moe_dispatch))
