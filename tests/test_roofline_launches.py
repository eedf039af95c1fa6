"""The launches of each op, and what they add to a pass."""

from dataclasses import replace

import pytest
import torch

from blockdraft.ops.block_attention import chunk_keys
from blockdraft.roofline import models
from blockdraft.roofline.launches import ASSUMED, CHUNK_KEYS, FEW_PAIRS, KERNELS, launches
from blockdraft.roofline.step import pass_ops
from blockdraft.roofline.workload import Workload

WORK = Workload(models.find("ZAYA1-8B"), batch=2, context_tokens=8192)


@pytest.mark.parametrize(
    "op, options, count",
    [
        ("block_attention", {}, 1),
        ("block_attention", dict(prefix=2 * CHUNK_KEYS), 1),
        ("block_attention", dict(prefix=2 * CHUNK_KEYS + 1), 2),
        ("block_attention", dict(prefix=1 << 20), 2),
        ("commit", {}, 1),
        ("fused_moe", dict(pairs=FEW_PAIRS), 2),
        ("fused_moe", dict(pairs=FEW_PAIRS + 1), 3),
        ("fused_moe", dict(pairs=FEW_PAIRS + 1, choices=2), 4),
        ("moe_dispatch", {}, 1),
        ("plan_branches", {}, 1),
        ("accept_drafts", dict(rule="token"), 2),
        ("accept_drafts", dict(rule="greedy"), 2),
        ("accept_drafts", dict(rule="token", logprob=True), 3),
        ("accept_drafts", dict(rule="token", cut=True), 3),
        ("accept_drafts", dict(rule="block"), 3),
        ("accept_drafts", dict(rule="block", logprob=True), 4),
        ("sample_drafts", {}, 2),
        ("sample_drafts", dict(cut=True), 3),
    ],
)
def test_launches_of_an_op(op, options, count):
    assert launches(op, **options) == count


def test_every_op_with_kernels_is_counted():
    from blockdraft.registry import OPS

    assert set(KERNELS) == {name for name, op in OPS.items() if "triton" in op.backends}
    assert not set(KERNELS) & set(ASSUMED)
    assert CHUNK_KEYS == chunk_keys(torch.device("cuda"))


def test_an_unknown_op_is_named():
    with pytest.raises(
        ValueError, match="launches: op: expected one of accept_drafts, block_attention, .*'gemm'"
    ):
        launches("gemm")


def launches_of(work):
    return {op.name: op.launches for op in pass_ops(work)}


def test_launches_of_a_pass():
    """ZAYA1-8B has 40 layers. The decoder asks for log-probabilities, and uses the token rule."""
    found = launches_of(WORK)
    assert found == {
        "norms, residuals": 81,
        "qkv projection": 40,
        "cca_qkv": 40,
        "block_attention": 80,
        "output projection": 40,
        "zaya_router": 80,
        "fused_moe": 120,
        "LM head, verify": 1,
        "accept_drafts": 3,
        "LM head, drafts": 1,
        "sample_drafts": 2,
        "commit": 1,
    }
    assert sum(found.values()) == 489
    # one row a request: no drafts to sample, none to run the LM head on, no rows to sort by expert
    assert sum(launches_of(WORK.autoregressive()).values()) == 489 - 3 - 40
    # a prefix of two chunks has nothing to merge
    short = launches_of(replace(WORK, context_tokens=2 * CHUNK_KEYS))
    assert found["block_attention"] - short["block_attention"] == 40
