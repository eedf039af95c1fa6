from typing import NamedTuple

import torch

from .. import reference
from ..contract import F64, FLOATS, I32, Check
from ..registry import Op, Out, by_name


def plan_branches(
    accept: torch.Tensor,
    mask_accept: torch.Tensor,
    proposals: int,
    draft_len: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Branches for `proposals` proposals of the next pass, which maximise the expected number of
    drafts accepted in the pass after that.

    accept       float [B,K]: probability that draft i of the next pass is accepted, given that
                 those before it are
    mask_accept  float [K,M]: the same for draft i of the pass after that, if it comes from mask m
                 of its proposal (m > i; the others are not used)
    draft_len    int32 [B], D of the next pass, -1..K: branches are 1..D+1
    Returns branch int32 [B,proposals], ascending, -1 where another branch gains nothing. Raises
    ValueError or TypeError.
    """
    check = Check("plan_branches")
    check.tensor("accept", accept, "B K", FLOATS + F64)
    check.tensor("mask_accept", mask_accept, "K M", FLOATS + F64)
    check.tensor("draft_len", draft_len, "B", I32)
    check.need(proposals >= 0, "proposals", "0 or more", proposals)
    for name, t in (("accept", accept), ("mask_accept", mask_accept)):
        check.values(name, t, 0, 1, "probabilities")
    check.values("draft_len", draft_len, -1, check.dims["K"], f"-1 .. K = {check.dims['K']}")
    check.dims["P"] = proposals
    inputs = dict(accept=accept, mask_accept=mask_accept, draft_len=draft_len)
    (branch,) = check.outputs(None if out is None else (out,), ("B P",), I32, inputs)
    args = Args(accept=accept, mask_accept=mask_accept, draft_len=draft_len, branch=branch)
    OP(backend, args)
    return branch


class Args(NamedTuple):
    accept: torch.Tensor
    mask_accept: torch.Tensor
    draft_len: torch.Tensor
    branch: Out


OP = Op("plan_branches", Args)
OP.register(
    "reference",
    by_name(OP, reference.plan_branches, proposals=lambda args: args.branch.shape[1]),
)
