"""The costs of a pass against a count made apart: tensors of the model, row by row, mask by
mask."""

from dataclasses import replace

import pytest

from blockdraft.layout import BlockLayout
from blockdraft.roofline import costs, devices, models, step
from blockdraft.roofline.step import pass_ops, pass_seconds, time_ops
from blockdraft.roofline.workload import Workload

MI300X = devices.ceilings(devices.load()["MI300X"], "bf16", "peak")
WORK = Workload(
    models.find("ZAYA1-8B"),
    batch=2,
    context_tokens=300,
    verify_rows=17,
    mask_rows=17,
    branches=(1, 9, 17),
)


def attention_cost(work):
    return next(op.cost for op in pass_ops(work) if op.name == "block_attention")


@pytest.mark.parametrize("window", [0, 5, 40, 4097])
@pytest.mark.parametrize("prefix", [0, 7, 300])
def test_attention_pairs_are_those_of_the_mask(prefix, window):
    layout, branches = BlockLayout(K=7, M=6, P=3), [1, 4, 8]
    pairs = int(layout.dense_mask(prefix, branches, window=window).sum())
    cost = costs.block_attention(prefix, layout.V, branches, layout.M, 8, 2, 128, 2, window=window)
    assert cost.flops == 4 * 128 * 8 * pairs and cost.exps == 8 * pairs
    keys = int(layout.dense_mask(prefix, branches, window=window)[:, :prefix].any(0).sum())
    assert cost.bytes == 2 * (2 * keys * 2 * 128 + layout.rows * (2 * 8 + 2 * 2) * 128)


def test_the_sums_of_a_step():
    """ZAYA1-8B written out: 40 layers, hidden 2048, 8 + 2 heads of 128, 16 experts, 2 x 68 rows of
    300 cached tokens."""
    rows = 2 * 68
    layers = 40
    matrices = (
        2048 * 1536
        + 1024 * 2048
        + 1280 * (2 + 2 * 128)
        + 256 * (2048 + 256 + 256 + 17)
        + 3 * 2048 * 2048
    )
    pairs = 2 * (sum(300 + i + 1 for i in range(17)) + sum(17 * (300 + c + 17) for c in (1, 9, 17)))
    head = 2 * 2048 * 262272 * 2 * (17 + 16)
    vocabulary = 2 * 2 * 262272 * (3.6 + 2) + 2 * 2 * 16 * 262272
    ops = pass_ops(WORK)
    whole = sum((op.cost for op in ops), costs.Cost(0, 0, 0))
    products = layers * (2 * rows * matrices + 4 * 128 * 8 * pairs) + head
    assert whole.flops == pytest.approx(products, rel=1e-12)
    sampling = sum(op.cost.vector_flops for op in ops if op.name.endswith("_drafts"))
    assert sampling == pytest.approx(vocabulary, rel=1e-12)

    touched = 16 * (1 - (15 / 16) ** rows)
    weights = layers * (
        2048 * 1536 + 1024 * 2048 + 1280 * 260 + 256 * 2577 + touched * 3 * 2048 * 2048
    )
    activations = (
        layers * rows * ((2048 + 1536) + (1024 + 2048) + 2 * (1280 + 256) + (2048 + 512) + 2 * 2048)
    )
    attention = layers * 2 * (2 * 300 * 256 + 68 * 20 * 128)
    vocabulary_and_commit = (
        2 * 2048 * 262272
        + 2 * (17 + 16) * (2048 + 262272)
        + 2 * 262272 * (3.6 + 2 + 16)
        + 2 * 2 * layers * (2 * 1280 + 128)
    )
    norms = 81 * rows * 2048 * 12
    halves = weights + activations + attention + vocabulary_and_commit
    assert whole.bytes == pytest.approx(2 * halves + norms, rel=1e-12)


def test_time_is_the_sum_of_each_op_s_largest_bound():
    assert MI300X.seconds(costs.Cost(1307.4e12, 0, 1)) == (1.0, "matrix")
    assert MI300X.seconds(costs.Cost(1, 0, 10.6e12)) == (2.0, "memory")
    assert MI300X.seconds(costs.Cost(1, 10.2e12, 0, 163.4e12)) == (2.0, "vector")
    sustained = devices.ceilings(devices.load()["MI300X"], "bf16", "sustained")
    assert sustained.seconds(costs.Cost(1, 0, 0, 0, 35e12)) == (2.0, "L2")
    assert MI300X.l2_bytes_per_s is None
    ops = pass_ops(WORK)
    ideal = pass_seconds(WORK, MI300X)
    assert ideal == pytest.approx(sum(MI300X.seconds(op.cost)[0] for op in ops))
    launches = sum(op.launches for op in ops)
    assert pass_seconds(WORK, MI300X, 3.0) == pytest.approx(ideal + 3e-6 * launches)
    assert {t.bound for t in time_ops(ops, MI300X, 1000.0)} == {"launch"}


def test_lm_head_once_reads_its_weights_once():
    def lm_heads(work):
        return {op.name: op.cost for op in pass_ops(work) if op.name.startswith("LM head")}

    weights = 2 * 2048 * 262272
    twice = lm_heads(WORK)
    assert list(twice) == ["LM head, verify", "LM head, drafts"]
    assert sum(cost.bytes for cost in twice.values()) > 2 * weights
    once = lm_heads(replace(WORK, lm_head="once"))
    assert list(once) == ["LM head, all rows"]
    assert weights + 2 * 136 * 262272 < once["LM head, all rows"].bytes < 2 * weights
    assert list(lm_heads(WORK.autoregressive())) == ["LM head, verify"]


def test_routing_histogram_and_fp8_cache():
    one = replace(WORK, routing=(1.0, *[0.0] * 15))
    assert step.expected_experts(one) == 1
    assert step.expected_experts(WORK) == pytest.approx(15.9975, abs=1e-3)
    attention = {kv: attention_cost(replace(WORK, kv_dtype=kv)) for kv in ("bf16", "fp8")}
    assert attention["bf16"].bytes - attention["fp8"].bytes == 40 * 2 * 2 * 300 * 256
    assert attention["bf16"].flops == attention["fp8"].flops


def test_sliding_windows_of_the_74b():
    model = models.find("ZAYA1-74B")
    attention = attention_cost(Workload(model, 1, 100_000, 17, 17, (1,)))
    full, slid = (
        costs.block_attention(100_000, 17, [1], 17, 16, 2, 128, 2, window=w) for w in (0, 4097)
    )
    assert attention.bytes == 30 * (full.bytes + slid.bytes) and slid.bytes < full.bytes / 20


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(batch=0), "batch: expected 1 .. 65536"),
        (dict(context_tokens=10**7), "context: expected 0 .. 131072"),
        (dict(dtype="int3"), "dtype: expected one of fp32, bf16"),
        (dict(branches=(18,)), "branches: expected branches in 1..17"),
        (dict(routing=(1.0,)), "routing: expected 16 shares"),
        (dict(lm_head="thrice"), "lm_head: expected twice or once"),
        (dict(accepted=99), "accepted: expected 0 .. 16"),
    ],
)
def test_impossible_workloads(change, message):
    with pytest.raises(ValueError, match=message):
        replace(WORK, **change)
