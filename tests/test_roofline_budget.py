"""Bytes in flight: by hand, and against the schedules of csrc."""

import json

import cca
import harness
import pytest
import torch
from click.testing import CliRunner

from blockdraft import BlockLayout, ops
from blockdraft.cli import main
from blockdraft.roofline import budget, models

MODEL = models.find("ZAYA1-8B")
UNITS, BANDWIDTH = 304, 4e12


def find(rows, kernel):
    return next(x for x in budget.launches(MODEL, rows) if x.kernel == kernel)


def test_one_row_by_hand():
    """One expert: 2 x 2048 channels in workgroups of 16, 64 KiB each, all of it at once."""
    launch = find(1, "fused_moe gate_up")
    assert launch.groups == 256 and launch.bytes == pytest.approx(2 * 2048 * 2048 * 2)
    assert launch.unit_bytes(UNITS) == 64 << 10
    seconds = budget.LATENCY_S + launch.bytes / BANDWIDTH
    assert launch.seconds(UNITS, BANDWIDTH) == pytest.approx(seconds)
    assert launch.share(UNITS, BANDWIDTH) == pytest.approx(launch.bytes / BANDWIDTH / seconds)


def test_a_stream_is_bound_by_what_is_in_flight():
    few = budget.Launch("", 10, 1e9, 1000, 1, streams=True)
    assert few.seconds(UNITS, BANDWIDTH) == pytest.approx(budget.LATENCY_S * (1 + 1e9 / 10_000))
    many = budget.Launch("", 10_000, 1e9, 1e6, 1, streams=True)
    assert many.seconds(UNITS, BANDWIDTH) == pytest.approx(budget.LATENCY_S + 1e9 / BANDWIDTH)


@pytest.mark.parametrize("rows", [1, 16, 64, 272])
def test_workgroups_are_those_of_the_schedules(rows):
    hidden, inner, classes = MODEL.hidden_size, MODEL.router_hidden_size, MODEL.num_experts + 1
    empty = torch.empty
    router = ops.zaya_router, empty(rows, hidden), None, empty(inner, hidden), empty(inner), None
    layers = [empty(inner), empty(inner, inner), empty(inner), empty(inner, inner), empty(inner)]
    found = harness.captured(*router, *layers, empty(classes, inner), empty(classes), 1e-5)
    started = harness.schedule("zaya_router", harness.recorded(*found), group_columns=32)
    expected = [find(rows, f"zaya_router {step}").groups for step in ("project", "route")]
    assert [groups for _, groups in started] == expected


@pytest.mark.parametrize("rows", [64, 2048])
def test_workgroups_of_cca_qkv(rows):
    """In fp32, as the check's schedule takes them."""
    layout = BlockLayout(rows - 1, 1, 0)
    heads = MODEL.num_attention_heads, MODEL.num_key_value_heads, MODEL.head_dim
    kernels = MODEL.cca_time0, MODEL.cca_time1
    arguments = cca.case(layout, [0], heads, kernels, 64, torch.float32)
    arguments["cos_sin"] = torch.zeros(rows + 1, 64)
    _, run = cca.prepared(arguments)
    ((_, groups),) = harness.schedule("cca_qkv", harness.recorded(*harness.captured(run)))
    launches = budget.launches(MODEL, rows, itemsize=4)
    assert launches[-1].kernel == "cca_qkv convolve" and launches[-1].groups == groups


def test_command():
    outcome = CliRunner().invoke(main, ["roofline", "budget", "--rows", "64", "--json"])
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.output)
    rows = found["rows"] if isinstance(found, dict) else found
    assert {row["device"] for row in rows} == {"MI300X", "MI355X"}
    moe = [row for row in rows if row["kernel"] == "fused_moe gate_up"]
    assert all(0.7 < row["share"] < 0.9 for row in moe)
