from .. import reference
from ..contract import I32, Check
from ..registry import Op

_OP = Op(
    "moe_dispatch", "(Tensor experts, int num_experts, Tensor(a!) order, Tensor(b!) offsets) -> ()"
)


def _reference(experts, num_experts, order, offsets):
    for output, result in zip((order, offsets), reference.moe_dispatch(experts, num_experts)):
        output.copy_(result)


_OP.register("reference", _reference)


def moe_dispatch(experts, num_experts: int, *, backend: str | None = None):
    """Sort (token, choice) pairs by expert: stable and deterministic; skips (-1) are left out.

    experts      int32 [T,k], -1 .. num_experts - 1
    Returns order int32 [T*k], flat pair indices t*k + j grouped by expert, -1 after the last;
    offsets int32 [num_experts+1]: expert e owns order[offsets[e]..offsets[e+1]]. Raises ValueError
    or TypeError.
    """
    check = Check("moe_dispatch")
    check.tensor("experts", experts, "T k", I32, contiguous=True)
    check.need(num_experts > 0, "num_experts", "at least 1", num_experts)
    check.values("experts", experts, -1, num_experts - 1, f"-1 .. {num_experts - 1}")
    order, offsets = experts.new_empty(experts.numel()), experts.new_empty(num_experts + 1)
    _OP(backend, experts, num_experts, order, offsets)
    return order, offsets
