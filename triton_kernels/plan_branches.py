"""The best branches of the next pass: dynamic programming over the levels on which a pass may end,
one program a request."""

import triton
import triton.language as tl


def launch_metadata(grid, kernel, args):
    accept, mask_accept = args["accept"], args["mask_accept"]
    read = accept.numel() * accept.element_size() + mask_accept.numel() * mask_accept.element_size()
    return {
        "name": f"plan_branches requests={grid[0]}",
        "bytes": read + 4 * len(accept) * (1 + args["PROPOSALS"]),
    }


@triton.jit(launch_metadata=launch_metadata)
def plan(
    accept,
    mask_accept,
    draft_len,
    branch,
    accept_row,
    mask_row,
    branch_row,
    K: tl.constexpr,
    MASKS: tl.constexpr,
    PROPOSALS: tl.constexpr,
    ROUNDS: tl.constexpr,
    LEVELS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """LEVELS: a power of two, at least K + 1; WIDTH: one, at least PROPOSALS. A level counts from
    0, and branch c + 1 begins on level c. Branches that are chosen are bits."""
    request = tl.program_id(0)
    drafts = tl.load(draft_len + request)
    accept += request.to(tl.int64) * accept_row
    level = tl.arange(0, LEVELS)
    reached = tl.full((LEVELS,), 1, tl.float64)
    for draft in range(0, K):
        alive = tl.load(accept + draft).to(tl.float64) * (draft < drafts)
        reached = tl.where(level > draft, reached * alive, reached)
    alive = tl.load(accept + level, mask=level < drafts, other=0).to(tl.float64)
    weight = tl.where(level <= K, reached * (1 - alive), 0)

    # [first level, last level] of a branch: the expected drafts of the next pass, if this one ends
    # on the last; then, if it ends on any of them.
    below = level[None, :] - level[:, None]
    run = tl.full((LEVELS, LEVELS), 1, tl.float64)
    gain = tl.zeros((LEVELS, LEVELS), tl.float64)
    for draft in range(0, K):
        mask = below + 1 + draft
        exists = (below >= 0) & (mask < MASKS)
        rate = tl.load(mask_accept + draft * mask_row + mask, mask=exists, other=0)
        run *= rate.to(tl.float64)
        gain += run
    served = tl.cumsum(tl.where(below >= 0, gain * weight[None, :], 0), 1)
    possible = (below >= 0) & (level[:, None] <= drafts) & (level[None, :] <= K)

    # By the last level of a branch: what the levels behind it are worth, and their branches.
    following = (level[:, None] == level[None, :] + 1) & (level[:, None] <= K)
    behind = tl.where(level == K, 0, float("-inf")).to(tl.float64)
    chosen_behind = tl.zeros((LEVELS,), tl.int64)
    value = tl.full((LEVELS,), float("-inf"), tl.float64)
    chosen = tl.zeros((LEVELS,), tl.int64)
    own = tl.full((LEVELS,), 1, tl.int64) << level
    for _ in range(0, ROUNDS):
        candidate = tl.where(possible, served + behind[None, :], float("-inf"))
        value = tl.max(candidate, 1)
        greatest = candidate == value[:, None]  # of equal ones the last, with the fewest branches
        last = tl.max(tl.where(greatest, level[None, :], -1), 1)
        taken = last[:, None] == level[None, :]
        chosen = own | tl.sum(tl.where(taken, chosen_behind[None, :], 0), 1)
        behind = tl.max(tl.where(following, value[:, None], float("-inf")), 0)
        behind = tl.where(level == K, 0, behind)
        chosen_behind = tl.sum(tl.where(following, chosen[:, None], 0), 0)

    best = tl.max(value, 0)
    first = tl.max(tl.where(value == best, level, -1), 0)
    bits = tl.sum(tl.where(level == first, chosen, 0), 0)
    bits = tl.where(best > 0, bits, 0)
    used = ((bits >> level) & 1).to(tl.int32)
    place = tl.cumsum(used, 0) - 1
    branch += request.to(tl.int64) * branch_row
    tl.store(branch + place, level + 1, mask=(used > 0) & (place < PROPOSALS))
    i = tl.arange(0, WIDTH)
    tl.store(branch + i, -1, mask=(i >= tl.sum(used, 0)) & (i < PROPOSALS))


def _sizes(K: int, masks: int, proposals: int) -> dict:
    return dict(
        K=K,
        MASKS=masks,
        PROPOSALS=proposals,
        ROUNDS=min(proposals, K + 1),
        LEVELS=max(triton.next_power_of_2(K + 1), 2),
        WIDTH=triton.next_power_of_2(proposals),
    )


def _warps(K: int) -> int:
    return 1 if K < 32 else 4


def launch(args) -> None:
    accept, mask_accept, draft_len, branch = args
    K, masks = mask_accept.shape
    if branch.numel() == 0:
        return
    plan[(len(accept),)](
        accept,
        mask_accept,
        draft_len,
        branch,
        accept.stride(0),
        mask_accept.stride(0),
        branch.stride(0),
        **_sizes(K, masks, branch.shape[1]),
        num_warps=_warps(K),
    )


def compilations(target: str):
    """(name, kernel, types, constants, options); see `offline`."""
    types = dict(accept="*fp64", mask_accept="*fp64", draft_len="*i32", branch="*i32")
    for K, proposals in ((15, 3), (15, 16)):
        yield (
            f"plan P={proposals}",
            plan,
            types,
            _sizes(K, K + 1, proposals),
            dict(num_warps=_warps(K)),
        )
