"""One process of a group that shares experts: `python expert_parallel.py RANK SIZE STORE WHAT`."""

import datetime
import itertools
import os
import sys
import time

import torch
import torch.distributed as dist

from blockdraft import Plan, ops

HIDDEN, INNER, EXPERTS = 48, 24, 6
SHARDS = {2: [None, [6, 0], [1, 5]], 4: [[3, 0, 2, 1], [0, 0, 6, 0], [2, 2, 1, 1]]}
ROWS = {2: [(5, 9), (0, 3), (0, 0)], 4: [(70, 1, 0, 33), (0, 0, 0, 4)]}


def case(rank, dtype, choices, rows, seed):
    """Weights are the same for all; rows are the rank's own."""
    shared = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=shared).to(dtype) / 7
    down = torch.randn(EXPERTS, HIDDEN, INNER, generator=shared).to(dtype) / 5
    own = torch.Generator().manual_seed(1000 * seed + rank)
    x = torch.randn(rows, HIDDEN, generator=own).to(dtype)
    ranked = torch.rand(rows, EXPERTS, generator=own).argsort(1)[:, :choices]
    experts = ranked.int().masked_fill(torch.rand(rows, choices, generator=own) < 0.2, -1)
    weights = torch.rand(rows, choices, generator=own)
    skip_prob = torch.where((experts < 0).any(1), 0.3, 0.0)
    return x, experts, weights, gate_up, down, skip_prob


def compare(rank, size):
    grid = itertools.product(
        SHARDS[size], ROWS[size], (torch.float32, torch.bfloat16), (1, 3), ("zero", "identity")
    )
    for seed, (shards, rows, dtype, choices, skip) in enumerate(grid):
        x, experts, weights, gate_up, down, skip_prob = case(rank, dtype, choices, rows[rank], seed)
        counts = shards or [EXPERTS // size] * size
        first = sum(counts[:rank])
        own = slice(first, first + counts[rank])
        out = torch.full_like(x, torch.nan)
        got = ops.fused_moe(
            x, experts, weights, gate_up[own], down[own], skip_prob,
            skip=skip, group=dist.group.WORLD, shards=shards, out=out,
        )  # fmt: skip
        assert got is out
        if len(x) == 0:
            continue
        whole = ops.fused_moe(x, experts, weights, gate_up, down, skip_prob, skip=skip)
        if choices == 1:
            assert torch.equal(out, whole), (shards, rows, dtype, skip)
            continue
        bound = torch.zeros(x.shape)  # a rounding for each rank's sum, and those of fp32 sums
        unit = torch.finfo(dtype).eps
        for e in range(EXPERTS):
            only = experts.masked_fill(experts != e, -1)
            bound += unit * ops.fused_moe(x, only, weights, gate_up, down).abs().float()
        bound += unit * whole.abs().float()
        assert ((out.float() - whole.float()).abs() <= bound).all(), (shards, rows, dtype, skip)


def refuse(rank, size):
    """What is refused before anything is sent, and what shows in the counts."""
    x, experts, weights, gate_up, down, _ = case(rank, torch.float32, 1, 4, 0)
    half = slice(3 * rank, 3 * rank + 3)
    share = dict(group=dist.group.WORLD, shards=[3, 3])

    def refused(message, *args, call=ops.fused_moe, **kwargs):
        try:
            call(*args, **kwargs)
        except ValueError as error:
            assert message in str(error), error
        else:
            raise AssertionError(message)

    refused("shards", x, experts, weights, gate_up, down, **share)
    refused("experts", x, experts + 3, weights, gate_up[half], down[half], **share)
    refused("Plan", x, experts, weights, gate_up[half], down[half],
            call=Plan().ops.fused_moe, **share)  # fmt: skip
    other = [3, 3] if rank == 0 else [2, 3]
    peer = 1 - rank
    refused(
        f"process {peer}", x, experts.clamp(max=4), weights, gate_up[half], down[half],
        group=dist.group.WORLD, shards=other,
    )  # fmt: skip


def lose(rank, size, silent):
    """The last process ends, or falls silent; the others must say so soon."""
    x, experts, weights, gate_up, down, _ = case(rank, torch.float32, 1, 8, 0)
    ends = [(r + 1) * EXPERTS // size for r in range(size)]
    shards = [end - start for start, end in zip([0, *ends], ends)]
    own = slice(ends[rank] - shards[rank], ends[rank])
    share = dict(group=dist.group.WORLD, shards=shards)
    ops.fused_moe(x, experts, weights, gate_up[own], down[own], **share)
    if rank == size - 1:
        if silent:
            time.sleep(20)
        os._exit(0)
    began = time.monotonic()
    try:
        ops.fused_moe(x, experts, weights, gate_up[own], down[own], **share)
    except RuntimeError as error:
        assert "fused_moe: group" in str(error), error
        print(f"rank {rank} of {size}: error after {time.monotonic() - began:.1f} s")
        os._exit(0)  # nobody is left to say goodbye to
    raise AssertionError("no error")


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, size, store, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=4 if what in ("dead", "silent") else 60),
    )
    if what == "compare":
        compare(rank, size)
    elif what == "refuse":
        refuse(rank, size)
    else:
        lose(rank, size, what == "silent")
    dist.destroy_process_group()
