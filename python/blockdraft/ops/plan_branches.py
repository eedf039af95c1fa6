from typing import NamedTuple

import torch

from .. import reference
from ..contract import F64, FLOATS, I32, Check
from ..registry import Op, Out, by_name
from . import _native, _triton

MOST_DRAFTS = 63  # of the kernels, in which a set of branches is the bits of a number


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
    check.need(check.dims["M"] >= 1, "mask_accept", "at least one mask", list(mask_accept.shape))
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


def _too_long(args: Args) -> str | None:
    drafts = args.accept.shape[1]
    return None if drafts <= MOST_DRAFTS else f"at most {MOST_DRAFTS} drafts, not {drafts}"


def _cpp_unsupported(args: Args) -> str | None:
    if args.accept.dtype not in (torch.float32, torch.float64):
        return f"accept is float32 or float64, not {args.accept.dtype}"
    return _too_long(args) or _native.mixed(accept=args.accept, mask_accept=args.mask_accept)


def _triton_unsupported(args: Args) -> str | None:
    return (
        _too_long(args)
        or _triton.cannot_compute(args.accept)
        or _triton.cannot_compute(args.mask_accept)
    )


OP = Op("plan_branches", Args)
_triton.register(OP, _triton_unsupported)
_native.register(OP, _cpp_unsupported)
if _native.EXTENSION is not None:
    _native.agree(
        "plan_branches' levels", getattr(_native.EXTENSION, "plan_levels", None), MOST_DRAFTS + 1
    )
OP.register(
    "reference",
    by_name(OP, reference.plan_branches, proposals=lambda args: args.branch.shape[1]),
)
