import torch

from .. import reference
from ..contract import FLOATS, I32, Check
from ..registry import Op

_OP = Op(
    "plan_branches",
    "(Tensor accept, Tensor offset_accept, Tensor draft_len, Tensor(a!) branch) -> ()",
)


def _reference(accept, offset_accept, draft_len, branch):
    branch.copy_(reference.plan_branches(accept, offset_accept, branch.shape[1], draft_len))


_OP.register("reference", _reference)


def plan_branches(accept, offset_accept, proposals: int, draft_len, *, backend: str | None = None):
    """Branches for `proposals` blocks that maximise the expected drafts accepted in the pass after
    the next.

    accept       float [B,K]: probability that draft i is accepted, given that the ones before it
                 were
    offset_accept  float [M]: the same for a draft that comes from mask offset m of a proposal
                   (entry 0 is never used)
    draft_len    int32 [B], D of the next pass, -1..K: branches are 1..D+1
    Returns branch int32 [B,proposals], ascending, -1 where another branch gains nothing. Raises
    ValueError or TypeError.
    """
    check = Check("plan_branches")
    check.tensor("accept", accept, "B K", FLOATS + (torch.float64,))
    check.tensor("offset_accept", offset_accept, "M", FLOATS + (torch.float64,))
    check.tensor("draft_len", draft_len, "B", I32)
    check.need(proposals >= 0, "proposals", "0 or more", proposals)
    for name, t in (("accept", accept), ("offset_accept", offset_accept)):
        check.values(name, t, 0, 1, "probabilities")
    check.values("draft_len", draft_len, -1, check.dims["K"], f"-1 .. K = {check.dims['K']}")
    branch = draft_len.new_empty(len(draft_len), proposals)
    _OP(backend, accept, offset_accept, draft_len, branch)
    return branch
