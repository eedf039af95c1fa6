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


OP = Op("moe_dispatch", Args)
_triton.register(OP, lambda args: _triton.unsupported(args.experts))
_native.register(OP, lambda args: _native.unsupported(args.experts))
OP.register("reference", by_name(OP, reference.moe_dispatch))
