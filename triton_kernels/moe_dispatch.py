"""Pairs (row, choice) by expert: a stable counting sort by one program."""

import triton
import triton.language as tl


def launch_metadata(grid, kernel, args):
    pairs = args["pairs"]
    return {"name": f"moe_dispatch pairs={pairs}", "bytes": 8 * pairs}


@triton.jit
def expert_of(experts, pair, pairs, experts_row, CHOICES: tl.constexpr):
    """The expert of each pair; -1 beyond the last."""
    at = experts + (pair // CHOICES).to(tl.int64) * experts_row + pair % CHOICES
    return tl.load(at, mask=pair < pairs, other=-1)


@triton.jit(launch_metadata=launch_metadata, do_not_specialize=["pairs"])
def dispatch(
    experts,
    order,
    offsets,
    pairs,
    num_experts,
    experts_row,
    CHOICES: tl.constexpr,
    EXPERTS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """EXPERTS, a power of two, is more than num_experts; PAIRS are sorted at a time."""
    expert = tl.arange(0, EXPERTS)
    counts = tl.zeros((EXPERTS,), tl.int32)
    for start in range(0, pairs, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        of_pair = expert_of(experts, pair, pairs, experts_row, CHOICES)
        counts += tl.sum((of_pair[:, None] == expert[None, :]).to(tl.int32), 0)
    ends = tl.cumsum(counts, 0)
    firsts = ends - counts
    tl.store(offsets + expert, firsts, mask=expert <= num_experts)
    for start in range(0, pairs, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        of_pair = expert_of(experts, pair, pairs, experts_row, CHOICES)
        own = (of_pair[:, None] == expert[None, :]).to(tl.int32)
        place = tl.sum(own * (firsts[None, :] + tl.cumsum(own, 0) - 1), 1)
        tl.store(order + place, pair, mask=of_pair >= 0)
        firsts += tl.sum(own, 0)
    routed = tl.sum(counts, 0)
    for start in range(0, pairs, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        tl.store(order + pair, -1, mask=(pair >= routed) & (pair < pairs))


def sizes(num_experts: int) -> dict:
    """Powers of two: experts and one more, whose first is the number of routed pairs; pairs whose
    table fits into registers."""
    experts = triton.next_power_of_2(num_experts + 1)
    return dict(EXPERTS=experts, PAIRS=max(8192 // experts, 16))


def launch(args) -> None:
    experts, num_experts, order, offsets = args
    dispatch[(1,)](
        experts,
        order,
        offsets,
        experts.numel(),
        num_experts,
        experts.stride(0),
        CHOICES=experts.shape[1],
        **sizes(num_experts),
        num_warps=4,
    )


def compilations(target: str):
    """(name, kernel, types, constants, options) for ZAYA1-8B; see `offline`."""
    types = dict.fromkeys("experts order offsets".split(), "*i32")
    for num_experts, choices in ((16, 1), (128, 8)):
        yield (
            f"dispatch experts={num_experts}",
            dispatch,
            types,
            dict(CHOICES=choices, **sizes(num_experts)),
            dict(num_warps=4),
        )
