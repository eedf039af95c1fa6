"""Small calls of the public ops."""

from functools import partial

import torch

from blockdraft import BlockLayout, Sampling, ops
from blockdraft.testing import random_rows

LAYOUT = BlockLayout(2, 3, 2)


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


def calls():
    """A small call of each op, by name."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    rows = random_rows(LAYOUT, [5, 9], generator)
    total = 2 * LAYOUT.rows
    table = i32(0, 1, 2, 3).view(2, 2)
    ones = torch.ones(2)
    step = dict(seed=torch.zeros(2, dtype=torch.int64), position=i32(5, 9))
    router = [
        randn(3, 6),
        randn(3),
        randn(3),
        randn(3),
        randn(3, 3),
        randn(3),
        randn(3, 3),
        randn(3),
        randn(5, 3),
        randn(5),
    ]
    return {
        "block_attention": partial(
            ops.block_attention,
            randn(total, 4, 8),
            randn(total, 2, 8),
            randn(total, 2, 8),
            randn(4, 8, 2, 8),
            randn(4, 8, 2, 8),
            table,
            rows,
            lse=torch.empty(total, 4),
        ),
        "cca_qkv": partial(
            ops.cca_qkv,
            randn(total, 48),
            randn(total, 8),
            randn(total, 8),
            randn(48, 1, 2),
            randn(48),
            randn(48, 8, 2),
            randn(48),
            randn(2),
            randn(64, 4),
            rows,
            randn(2, 2, 48),
            randn(2, 8),
            i32(0, 1),
            randn(4, 8, 2, 8),
            randn(4, 8, 2, 8),
            table,
        ),
        "commit": partial(
            ops.commit,
            randn(2, total, 48),
            randn(2, total, 8),
            i32(0, -1),
            rows,
            randn(2, 2, 2, 48),
            randn(2, 2, 8),
            i32(0, 1),
        ),
        "rope_qkv": partial(
            ops.rope_qkv,
            randn(total, 4, 8),
            randn(total, 2, 8),
            randn(total, 2, 8),
            randn(64, 8),
            rows,
            randn(4, 8, 2, 8),
            randn(4, 8, 2, 8),
            table,
            query_scale=randn(64),
        ),
        "zaya_router": partial(ops.zaya_router, randn(7, 6), randn(7, 3), *router, 1e-5),
        "linear": partial(ops.linear, randn(3, 4), randn(5, 4), randn(5)),
        "residual_norm": partial(
            ops.residual_norm,
            randn(6, 8),
            randn(8),
            1e-5,
            scale=randn(8),
            bias=randn(8),
            residual=randn(6, 8),
            residual_scale=randn(8),
            residual_bias=randn(8),
            index=i32(3, 0),
        ),
        "moe_dispatch": partial(ops.moe_dispatch, i32(1, -1, 0).view(3, 1), 2),
        "fused_moe": partial(
            ops.fused_moe,
            randn(3, 4),
            i32(1, -1, 0).view(3, 1),
            torch.ones(3, 1),
            randn(2, 6, 4),
            randn(2, 4, 3),
        ),
        "accept_drafts": partial(
            ops.accept_drafts,
            randn(2, 3, 7),
            i32(1, 2, 3, 4).view(2, 2),
            i32(2, 1),
            i32(1, 2).view(2, 1),
            3,
            target_sampling=Sampling(ones),
            draft_logits=randn(2, 2, 7),
            with_logprob=True,
            **step,
        ),
        "sample_drafts": partial(
            ops.sample_drafts, randn(2, 2, 7), i32(2, 1), drafter_sampling=Sampling(ones), **step
        ),
        "plan_branches": partial(
            ops.plan_branches, torch.rand(2, 3), torch.rand(3, 4), 2, i32(3, 1)
        ),
    }
