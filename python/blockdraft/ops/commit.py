from .. import reference
from ..contract import I32, Check
from ..registry import Op
from ..types import Rows
from . import _native, _rows, _triton

_OP = Op(
    "commit",
    f"(Tensor qk, Tensor v_late, Tensor accepted, Tensor cu_rows, Tensor(a!) prefix_lens, "
    f"{_rows.SCHEMA.split(', ', 2)[2]}, Tensor(b!) conv_state, Tensor(c!) late_state, Tensor slots) -> ()",
)


def _reference(qk, v_late, accepted, *rest):
    rows, (conv_state, late_state, slots) = Rows(*rest[:8]), rest[8:]
    states = reference.commit(qk, v_late, accepted, rows, conv_state, late_state, slots)
    for old, new in zip((conv_state, late_state, rows.prefix_lens), states):
        old.copy_(new)


def _cpp_unsupported(qk, v_late, *rest):
    states = rest[-3:-1]
    if any(state.dtype != qk.dtype for state in states):
        return f"the states have qk's dtype, {qk.dtype}, not {', '.join(str(state.dtype) for state in states)}"
    return _native.unsupported(qk)


_OP.register(
    "triton",
    lambda *args: _triton.launch("commit", *args[:5], *args[-3:]),
    lambda qk, *rest: _triton.unsupported(qk),
)
_OP.register("cpp", None, _cpp_unsupported)
_OP.register("reference", _reference)


def commit(
    qk, v_late, accepted, rows: Rows, conv_state, late_state, slots, *, backend: str | None = None
) -> None:
    """Keep verify rows 0..a of the last pass, for all layers: new convolution state, delayed value
    and prefix length.

    qk           [L,T,C] and v_late [L,T,Hk*Dh/2]: what cca_qkv was given in every layer (only
                 verify rows are read)
    accepted     int32 [B], a in 0..draft_len, or -1: nothing of the request changes
    rows         the pass's rows; rows.prefix_lens grows by a + 1, in place
    conv_state   [L,S,taps-1,C], oldest first; late_state [L,S,Hk*Dh/2]; slots int32 [B] (-1: no
                 state to keep). In place
    Raises ValueError or TypeError, before anything is written.
    """
    check = Check("commit")
    check.tensor("qk", qk, "L T C")
    check.tensor("v_late", v_late, "L T half", (qk.dtype,))
    check.rows(rows, qk.shape[1])
    check.tensor("accepted", accepted, "B", I32)
    check.tensor("conv_state", conv_state, "L S depth C")
    check.tensor("late_state", late_state, "L S half")
    check.tensor("slots", slots, "B", I32)
    if check.readable:
        for a, drafts in zip(accepted.tolist(), rows.draft_len.tolist()):
            check.need(-1 <= a <= drafts, "accepted", "-1 .. draft_len", a)
    check.values("slots", slots, -1, check.dims["S"] - 1, f"-1 or 0 .. {check.dims['S'] - 1}")
    _OP(backend, qk, v_late, accepted, *_rows.flatten(rows), conv_state, late_state, slots)
