"""Devices, batches, limits and prices side by side."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from blockdraft.cli import main
from blockdraft.roofline import deploy, devices, memory, models, plan
from blockdraft.roofline.acceptance import from_options
from blockdraft.roofline.workload import Workload

MI300X = devices.ceilings(devices.load()["MI300X"], "bf16", "achieved")
WORK = Workload(models.find("ZAYA1-8B"), 1, 32768, branches=())
CHOICES = plan.candidates(from_options(16, 17), range(4))


def run(*arguments, status=0):
    outcome = CliRunner().invoke(main, ["roofline", *map(str, arguments)], env={"COLUMNS": "200"})
    assert outcome.exit_code == status, outcome.output
    return outcome.output


def test_every_batch_fits_and_the_front_is_not_beaten():
    found = deploy.servings(WORK, CHOICES, MI300X)
    assert found[0].batch == 1
    for s in found:
        layout = replace(WORK, batch=s.batch, branches=s.option.steady.branches)
        assert memory.fits(layout if layout.branches else layout.autoregressive(), MI300X)
        seconds = s.option.pass_seconds / s.option.steady.tokens_per_pass
        assert s.ms_per_token == pytest.approx(1e3 * seconds)
        assert s.option.tokens_per_s == pytest.approx(s.batch * s.user_tokens_per_s)
        better = [
            o
            for o in found
            if o.user_tokens_per_s >= s.user_tokens_per_s
            and o.option.tokens_per_s > s.option.tokens_per_s
        ]
        assert s.on_front == (not better)


def test_a_limit_of_time_per_token_chooses_the_batch():
    free = deploy.chosen(deploy.servings(WORK, CHOICES, MI300X))
    tight = deploy.servings(WORK, CHOICES, MI300X, limit_ms=1.5)
    best = deploy.chosen(tight)
    assert best.ms_per_token <= 1.5 and best.batch < free.batch
    assert deploy.binding(tight) == "time per token is the limit"
    assert deploy.chosen(deploy.servings(WORK, CHOICES, MI300X, limit_ms=1e-6)) is None
    small = replace(MI300X, memory_gb=40)
    assert deploy.binding(deploy.servings(WORK, CHOICES, small)) == "memory is the limit"
    assert deploy.servings(WORK, CHOICES, replace(MI300X, memory_gb=10)) == []


def test_a_million_tokens_cost_the_time_of_the_gpu():
    found = deploy.servings(WORK, CHOICES, MI300X, price=3.6)
    for s in found:
        assert s.dollars_per_million == pytest.approx(1e3 / s.option.tokens_per_s)


def test_command_and_plot(tmp_path):
    command = ["deploy", "--device", "mi300x", "--device", "h200", "--limit-ms", 5]
    text = run(*command, "--price", "h200=3", "--out", tmp_path)
    assert "H200 ?" in text and "MI300X ?" not in text and "$/million tokens" in text
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
    assert "5 ms a token" in (tmp_path / "pareto.svg").read_text()
    rows = json.loads(run(*command, "--json"))
    assert {r["device"] for r in rows} == {"MI300X", "H200"}
    assert all(r["under_limit"] == (r["ms_per_token"] <= 5) for r in rows)
    large = run("deploy", "--model", "zaya1-74b", "--device", "h100", "--device", "mi300x")
    assert "does not fit" in large


def test_memory_command_has_the_largest_batch():
    rows = json.loads(run("memory", "--model", "zaya1-74b", "--json"))
    assert [r["context_tokens"] for r in rows] == [1024, 8192, 32768, 131072]
    assert rows[-1]["cache_mb"] < 0.6 * rows[-1]["cache_mb_without_windows"]
    assert rows[-1]["max_batch"] == 8
    assert "all kept" in run("memory", "--model", "zaya1-74b") and "all kept" not in run("memory")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["deploy", "--price", "TPU=3"], "--price: expected NAME=DOLLARS_AN_HOUR with a name of"),
        (["deploy", "--price", "MI300X=free"], "--price: expected NAME=DOLLARS_AN_HOUR"),
        (["deploy", "--limit-ms", 0], "limit_ms: expected more than 0 ms a token, got 0"),
        (["memory", "--reserve", 1], "reserve: expected a share in 0 .. 1"),
        (["memory", "--contexts", "1.5"], "contexts: expected integers"),
        (["explain", "--measured", "3"], "--measured: expected two rates above 0"),
    ],
)
def test_errors(arguments, message):
    assert message in " ".join(run(*arguments, status=2).split())
