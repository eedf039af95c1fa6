from typing import NamedTuple

import torch

from .. import reference
from ..contract import I32, Check
from ..registry import Op, Out, by_name
from ..types import Rows
from . import _native, _triton


def commit(
    qk: torch.Tensor,
    v_late: torch.Tensor,
    accepted: torch.Tensor,
    rows: Rows,
    conv_state: torch.Tensor,
    late_state: torch.Tensor,
    slots: torch.Tensor,
    *,
    backend: str | None = None,
) -> None:
    """Commit verify rows 0..a of the last pass, for all layers: update convolution state, delayed
    value and prefix length.

    qk           [L,T,C] and v_late [L,T,Hk*Dh/2]: the inputs of cca_qkv in every layer (only verify
                 rows are read)
    accepted     int32 [B], a in 0..draft_len, or -1: nothing of the request changes
    rows         the pass's rows; rows.prefix_lens grows by a + 1, in place
    conv_state   [L,S,taps-1,C], oldest first; late_state [L,S,Hk*Dh/2]; both in place. At prefix 0
                 the old state counts as zeros, whatever the slot holds, as in cca_qkv. slots int32
                 [B], -1: the request has no stored state
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
    last = check.dims["S"] - 1
    check.values("slots", slots, -1, last, f"-1 or 0 .. {last}")
    args = Args(
        qk=qk,
        v_late=v_late,
        accepted=accepted,
        cu_rows=rows.cu_rows,
        prefix_lens=rows.prefix_lens,
        conv_state=conv_state,
        late_state=late_state,
        slots=slots,
    )
    OP(backend, args)


class Args(NamedTuple):
    qk: torch.Tensor
    v_late: torch.Tensor
    accepted: torch.Tensor
    cu_rows: torch.Tensor
    prefix_lens: Out
    conv_state: Out
    late_state: Out
    slots: torch.Tensor


def _cpp_unsupported(args: Args) -> str | None:
    dtypes = args.conv_state.dtype, args.late_state.dtype
    if dtypes != (args.qk.dtype, args.qk.dtype):
        return f"the states have qk's dtype, {args.qk.dtype}, not {dtypes[0]}, {dtypes[1]}"
    return None


OP = Op("commit", Args)
_triton.register(OP)
_native.register(OP, _cpp_unsupported)
OP.register("reference", by_name(OP, reference.commit))
