"""Experts, dtypes, several GPUs and prefill in a pass, against counts by hand or by chance."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from blockdraft.cli import main
from blockdraft.roofline import costs, devices, experts, memory, models, step
from blockdraft.roofline.setting import linked
from blockdraft.roofline.workload import Workload

MI300X = devices.ceilings(devices.load()["MI300X"], "bf16", "peak")
WORK = Workload(models.find("ZAYA1-8B"), 2, 8192, branches=(1, 9))
LARGE = Workload(models.find("ZAYA1-74B"), 4, 8192, branches=(1, 9))


def costs_of(work):
    return {op.name: op.cost for op in step.pass_ops(work)}


@pytest.mark.parametrize("batch", [1, 8])
def test_the_spread_of_rows_over_experts_is_that_of_random_draws(batch):
    work = replace(WORK, batch=batch)
    drawn = np.random.default_rng(0).multinomial(work.pass_rows, [1 / 16] * 16, size=20_000)
    found = experts.spread(work)
    assert found.touched == pytest.approx((drawn > 0).sum(1).mean(), rel=5e-3)
    # the experts' numbers are taken as independent, which they nearly are
    assert found.longest_rows == pytest.approx(drawn.max(1).mean(), rel=0.03)
    padded = (16 * np.ceil(drawn / 16)).sum(1).mean() / work.pass_rows
    assert found.padded == pytest.approx(padded, rel=5e-3)
    assert "of 16 touched" in found.text


def test_correlated_rows_touch_fewer_experts_and_a_measured_table_counts():
    independent = step.expected_experts(WORK)
    assert step.expected_experts(replace(WORK, correlation=1.0)) == pytest.approx(
        costs.distinct_experts(2, [1 / 16] * 16)
    )
    assert step.expected_experts(replace(WORK, correlation=0.9)) < independent
    measured = replace(WORK, touched=((51.0, 8.0), (153.0, 12.0)))
    assert measured.pass_rows == 102 and step.expected_experts(measured) == pytest.approx(10)
    assert step.expected_experts(replace(measured, batch=100)) == 12


def test_weights_of_other_dtypes_are_read_as_such():
    plain = costs_of(WORK)
    small = costs_of(replace(WORK, weight_dtype="mxfp4", head_dtype="fp8"))
    expert = 40 * step.expected_experts(WORK) * 3 * 2048 * 2048
    saved = plain["fused_moe"].bytes - small["fused_moe"].bytes
    assert saved == pytest.approx(expert * (2 - 0.53125))
    head = plain["LM head, verify"].bytes - small["LM head, verify"].bytes
    assert head == pytest.approx(2048 * 262272)
    assert plain["fused_moe"].flops == small["fused_moe"].flops
    assert plain["cca_qkv"] == small["cca_qkv"] and plain["zaya_router"] == small["zaya_router"]
    parts = models.weight_parts(WORK.model)
    assert sum(parts) == models.weight_count(WORK.model)
    weights = memory.of(replace(WORK, weight_dtype="fp8")).weights
    assert weights == 2 * (parts[0] + parts[3]) + parts[1] + parts[2]


def test_gpus_share_every_layer():
    one, four = costs_of(LARGE), costs_of(replace(LARGE, tp=4))
    for name in ("LM head, verify", "output projection", "block_attention", "fused_moe"):
        assert four[name].flops == pytest.approx(one[name].flops / 4)
    # two KV heads are not enough for four GPUs: each keeps one
    assert four["block_attention"].bytes > one["block_attention"].bytes / 4
    moved = 2 * 60 * 2 * 3 / 4 * LARGE.pass_rows * 4096 * 2
    assert four["sums over GPUs"].link_bytes == pytest.approx(moved)
    rates = linked(MI300X, 4, (400, 10))
    seconds, bound = rates.seconds(four["sums over GPUs"], 120)
    assert bound == "link" and seconds == pytest.approx(moved / 400e9 + 120 * 10e-6)
    whole, shared = memory.of(LARGE), memory.of(replace(LARGE, tp=4))
    assert shared.weights == pytest.approx(whole.weights / 4, rel=0.01)
    assert shared.cache == pytest.approx(whole.cache / 2)


def test_whole_experts_on_each_gpu_wait_for_the_busiest():
    spread = costs_of(replace(LARGE, tp=4, ep=4))["fused_moe"]
    shared = costs_of(replace(LARGE, tp=4))["fused_moe"]
    assert shared.flops < spread.flops < 2 * shared.flops
    assert step.busiest(1, 1.0, 24, 4) == (pytest.approx(1.0), 1.0)
    rows, touched = step.busiest(10_000, 24.0, 24, 4)
    assert touched == 6 and rows == pytest.approx(2500 + 2 * (10_000 * 3 / 16) ** 0.5)


def test_rows_of_a_prompt_ride_along():
    mixed = replace(WORK, prefill_rows=512)
    plain, found = costs_of(WORK), costs_of(mixed)
    assert mixed.pass_rows == WORK.pass_rows + 512
    assert found["qkv projection"].flops == pytest.approx(
        plain["qkv projection"].flops * mixed.pass_rows / WORK.pass_rows
    )
    prompt = costs.block_attention(4096, 512, (), 1, 8, 2, 128, 2)
    assert found["block_attention"].flops - plain["block_attention"].flops == 40 * prompt.flops
    assert found["LM head, verify"] == plain["LM head, verify"]
    # decoding alone has the prompt's rows too
    assert mixed.autoregressive().pass_rows == 2 + 512


def test_activations_may_stay_in_the_last_level_cache():
    cached = replace(
        devices.ceilings(devices.load()["MI300X"], "bf16", "achieved"), activations="cache"
    )
    ops = {op.name: op for op in step.pass_ops(WORK)}
    norms = ops["norms, residuals"]
    assert norms.cost.activations == norms.cost.bytes
    assert cached.seconds(norms.cost, norms.calls) == (
        pytest.approx(norms.cost.bytes / 6.4e12),
        "cache",
    )
    # more than the cache holds comes from memory
    assert cached.seconds(norms.cost * 1e6, norms.calls)[1] == "memory"
    weights = ops["fused_moe"].cost
    assert weights.activations < weights.bytes / 10


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(correlation=2), "correlation: expected 0 .. 1, got 2"),
        (dict(touched=((5, 99),)), "touched: expected rows:experts"),
        (dict(touched=((5, 3), (4, 3))), "touched: expected rows:experts"),
        (dict(tp=3), "tp: expected a divisor of 8 query heads, got 3"),
        (dict(tp=4, ep=2), "ep: expected 1 or tp = 4, got 2"),
        (dict(weight_dtype="int3"), "weight_dtype: expected one of fp32, .*mxfp4, got 'int3'"),
        (dict(prefill_rows=-1), "prefill: expected 0 .. 131072 rows of a prompt"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(WORK, **change)


def test_a_pass_says_how_gpus_share_it():
    command = ["roofline", "step", "--tp", "4", "--ep", "4", "--link", "400,10"]
    text = CliRunner().invoke(main, command, env={"COLUMNS": "200"}).output
    assert "Times of each of 4 GPUs, tokens of all" in text
    assert "400 GB/s and 10 us each" in text and "two standard deviations" in text


def test_several_gpus_need_a_link():
    with pytest.raises(ValueError, match="--link: expected GB/s and microseconds"):
        linked(MI300X, 2, None)
