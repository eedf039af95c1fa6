"""Calibration: from times that are made up of known efficiencies, and back."""

import json
import random
from collections import Counter
from dataclasses import astuple, replace

import pytest
from click.testing import CliRunner

from blockdraft.bench import results
from blockdraft.cli import main
from blockdraft.roofline import calibration, costs, devices, models, predict, whole_pass
from blockdraft.roofline.calibration import Calibration, Fit, Sample, fit
from blockdraft.roofline.step import pass_ops, pass_seconds, time_ops
from blockdraft.roofline.workload import Workload

LIMITS = dict(
    threads=1, read_bytes_per_s=2e10, flops_per_s=5e10, bf16_flops_per_s=1e11, exps_per_s=1e9
)
WORK = Workload(models.find("ZAYA1-8B"), 4, 1024, branches=(1, 9))


def run(*arguments, status=0):
    outcome = CliRunner().invoke(main, ["roofline", *map(str, arguments)], env={"COLUMNS": "200"})
    assert outcome.exit_code == status, outcome.output
    return outcome.output


def samples(truth, shapes):
    made = [Sample(str(i), 1.0, *shape) for i, shape in enumerate(shapes)]
    return [replace(s, ms=truth.predict_ms(s)) for s in made]


SHAPES = [(1.0, 0.1), (2.0, 0.5), (0.3, 3.0), (4.0, 4.0), (0.1, 0.05), (1.0, 9.0)]


def test_one_efficiency_and_a_fixed_cost_are_found_again():
    found = fit(samples(Fit(whole=1 / 0.7, fixed_us=40.0), SHAPES))
    assert found.whole == pytest.approx(1 / 0.7) and found.fixed_us == pytest.approx(40)
    assert found.memory == found.arithmetic == 0 and found.error < 1e-9


def test_phases_are_told_apart_where_one_efficiency_cannot_fit_both():
    truth = Fit(memory=1 / 0.8, arithmetic=1 / 0.3, fixed_us=20.0)
    found = fit(samples(truth, SHAPES))
    assert found.whole == 0 and found.memory == pytest.approx(truth.memory)
    assert found.arithmetic == pytest.approx(truth.arithmetic)
    assert found.fixed_us == pytest.approx(20)
    one = calibration._least_squares(samples(truth, SHAPES), ("whole", "fixed_us"))
    worst = max(abs(one.predict_ms(s) / s.ms - 1) for s in samples(truth, SHAPES))
    assert worst > calibration.CLOSE


def test_tiles_of_rows_are_told_apart_from_arithmetic():
    """Products of few rows: each tile of three loads the weights again."""
    truth = Fit(memory=1.1, arithmetic=1.0, tiles=0.5, fixed_us=30.0)
    made = []
    for rows, outputs in ((1, 512), (3, 4096), (4, 1536), (16, 512), (64, 256), (272, 64)):
        cost = costs.linear(rows, 2048, outputs, 2)
        tiles = calibration.tiles_seconds(cost.tiled, 5e10)
        made.append(Sample("", 1.0, cost.bytes / 2e7, cost.flops / 1e8, 1e3 * tiles))
    made = [replace(s, ms=truth.predict_ms(s)) for s in made]
    found = fit(made)
    assert astuple(found)[:5] == pytest.approx(astuple(truth)[:5])
    assert costs.linear(4, 64, 64, 2).tiled == 2 * costs.linear(3, 64, 64, 2).tiled == 2 * 64 * 64


def test_touched_experts_share_their_rows_among_tiles():
    """What 16 experts' tiles of 3 rows are when rows go to them at random, against a count."""
    generator = random.Random(0)
    for rows in (1, 8, 64, 136):
        tiles = touched = 0
        for _ in range(2000):
            counts = Counter(generator.randrange(16) for _ in range(rows))
            touched += len(counts) / 2000
            tiles += sum(-(-n // costs.CPU_TILE) for n in counts.values()) / 2000
        cost = costs.fused_moe(rows, touched, 64, 32, 2)
        assert cost.tiled / (3 * 64 * 32) == pytest.approx(tiles, rel=0.05), rows


def test_a_repeated_call_finds_its_bytes_in_a_cache():
    limits = LIMITS | dict(read_again=[[2e6, 8e10], [32e6, 6e10], [128e6, 2e10]])
    for size, rate in ((1e6, 8e10), (8e6, 7e10), (32e6, 6e10), (64e6, 4e10), (1e9, 2e10)):
        found = calibration.sample(row("linear", "T=1", 1.0, bytes=size), limits)
        assert found.memory_ms == pytest.approx(1e3 * size / rate)
    # in a pass other weights come between
    assert "read_again" not in calibration.of_results(
        dict(machine={}, limits=limits, results=[row("linear", "T=1", 1.0, bytes=1e6)]),
        "cpp", "bfloat16", "",
    ).limits  # fmt: skip


def test_an_op_whose_time_does_not_depend_on_its_shape_keeps_to_its_limit():
    found = fit([Sample("", 0.033, 0.001, 0.0), Sample("", 0.033, 0.002, 0.0)])
    assert found.whole == 1 and found.fixed_us == pytest.approx(31.5, abs=0.1)
    # and does not spoil what is taken of ops that were not measured
    other = fit(samples(Fit(whole=2.0, fixed_us=10.0), SHAPES))
    made = [(found, [Sample("", 0.0325, 0.001, 0.0)]), (other, [Sample("", 2.01, 1.0, 0.0)])]
    mean = calibration.mean_fit(made)
    assert mean.whole == pytest.approx(2**0.5, rel=1e-3) and mean.fixed_us == pytest.approx(10)


def test_one_shape_gives_an_efficiency_and_no_error():
    found = fit([Sample("", 2.0, 1.0, 0.5)])
    assert found.whole == pytest.approx(2) and found.error is None and found.shapes == 1


def row(op, case, ms, **work):
    return dict(
        op=op, case=case, impl="cpp", is_peer=False, dtype="bfloat16", threads=1, ms=ms, mad=0.0,
        of_limit=None, vs_best_peer=None, checked=True,
        **(dict(flops=0.0, bytes=0.0, exps=0.0) | work),
    )  # fmt: skip


def measured(truth):
    """A result file of made-up times of a few rows of each op."""
    rows = []
    for op, known in truth.items():
        for n, (flops, size) in enumerate(((1, 9), (4, 3), (9, 1), (2, 2), (30, 8), (3, 30))):
            work = dict(flops=flops * 1e9, bytes=size * 2e8, exps=n * 1e4, vector_flops=n * 1e6)
            sample = calibration.sample(row(op, "T=1", 1.0, **work), LIMITS)
            rows.append(row(op, f"T={n}", known.predict_ms(sample), **work))
    machine = dict(device="a CPU")
    return dict(schema=results.SCHEMA, machine=machine, limits=LIMITS, results=rows)


TRUTH = {
    "fused_moe": Fit(whole=1.25, fixed_us=30.0),
    "linear": Fit(memory=1.5, arithmetic=2.5, fixed_us=5.0),
}


def test_results_of_bench_are_calibrated_and_predict_a_pass(tmp_path):
    data = measured(TRUTH)
    found = calibration.of_results(results.validate(data), "cpp", "bfloat16", "made up")
    for op, truth in TRUTH.items():
        for name in ("whole", "memory", "arithmetic", "fixed_us"):
            assert getattr(found.ops[op], name) == pytest.approx(getattr(truth, name), abs=1e-6)
    path = tmp_path / "calibration.json"
    calibration.save(path, found)
    assert calibration.load(path) == found
    cpu = devices.ceilings(devices.measured_cpu(LIMITS, "made up"), "bf16", "achieved")
    rates = replace(cpu, calibration=found)
    expected = 0.0
    for op in pass_ops(WORK):
        expected += found.fit_of(op.op).seconds(cpu.phases(op.cost, 1, op.op), op.calls)
    assert pass_seconds(WORK, rates) == pytest.approx(expected)
    hosted = replace(cpu, calibration=replace(found, host_us=700.0))
    assert pass_seconds(WORK, hosted) == pytest.approx(expected + 7e-4)
    assert time_ops(pass_ops(WORK), hosted)[-1].bound == "host"


def test_commands_print_ideal_and_calibrated_side_by_side(tmp_path):
    source, path = tmp_path / "results.json", tmp_path / "calibration.json"
    results.save(source, measured(TRUTH))
    text = run("calibrate", source, "--out", path)
    assert "fused_moe" in text and "80%" in text and "30.0" in text
    plan = run("plan", "--calibration", path)
    assert "a CPU (assumed of MI300X as well ?)" in plan
    assert "calibrated ms" in plan and "Calibrated by results.json: fused_moe, linear" in plan
    rows = json.loads(run("plan", "--calibration", path, "--json"))
    assert sum(r["calibrated_best"] for r in rows) == 1
    assert all(r["calibrated_pass_ms"] > r["pass_ms"] for r in rows)
    ops = json.loads(run("step", "--calibration", path, "--json"))
    for mode in ("autoregressive", "block"):
        own = [r for r in ops if r["mode"] == mode]
        assert own[-1]["calibrated_us"] == pytest.approx(sum(r["calibrated_us"] for r in own[:-1]))
    assert "Calibrated: autoregressive" in run("step", "--calibration", path)
    # no probe is needed where the calibration knows the machine
    own = run("step", "--device", "cpu", "--calibration", path)
    assert "ZAYA1-8B on cpu" in own and "assumed of cpu" not in own
    for command in (
        ["sweep", "--batches", "4", "--contexts", "1024"],
        ["search", "--max-drafts", 4],
    ):
        assert "calibrated" in run(*command, "--calibration", path)


def test_blocks_attention_and_budget_print_calibrated_beside_ideal(tmp_path):
    """The attention of this device takes 4 times the arithmetic and 1 / 0.8 of the memory."""
    ops = {
        "block_attention": Fit(memory=1 / 0.8, arithmetic=4.0),
        "fused_moe": Fit(whole=2.0, fixed_us=10.0),
    }
    path = tmp_path / "calibration.json"
    calibration.save(path, Calibration("MI300X", "made up", "bfloat16", ops, Fit(whole=2.0)))
    options = ("--device", "MI300X", "--calibration", path)
    rows = json.loads(run("blocks", *options, "--json"))
    readings = [r for r in rows if r["reading"] != "whole pass" and r["t"]]
    whole = [r for r in rows if r["reading"] == "whole pass"]
    assert all(r["calibrated_t"] == pytest.approx(r["t"] * 1.25 / 4) for r in readings)
    assert all(0 <= r["calibrated_proposals"] < r["proposals"] for r in whole)
    text = run("blocks", *options)
    assert "3.85 (2.85) | 1.20 (0.20)" in text and "Ideal | calibrated, in both tables." in text
    assert "Calibrated by made up: block_attention, fused_moe on MI300X; other" in text
    text = run("blocks", "--device", "MI355X", "--calibration", path)
    assert "on MI300X (assumed of MI355X as well ?)" in text
    kinds = json.loads(run("attention", *options, "--json"))
    assert all(r["calibrated_t"] == pytest.approx(r["t"] * 1.25 / 4) for r in kinds)
    assert "calibrated" in run("attention", *options)
    budgets = json.loads(run("budget", *options, "--json"))
    moe = [r for r in budgets if r["kernel"].startswith("fused_moe")]
    for r in moe:
        assert r["calibrated_us"] == pytest.approx(2e6 * r["bytes"] / r["bytes_per_s"] + 5)
    assert "calibrated" in run("budget", *options)
    for command in ("blocks", "attention", "budget"):
        assert "calibrated" not in run(command).lower()


def test_factors_are_of_the_rates_that_stand_beside_them(tmp_path):
    """A calibration of a GPU predicts the same times whatever the basis; of another device its
    efficiencies are taken over."""
    limits = LIMITS | dict(read_bytes_per_s=4e12, bf16_flops_per_s=6e14, exps_per_s=0.0)
    ops = {op.op: Fit(whole=2.0) for op in pass_ops(WORK)}
    found = Calibration("AMD Instinct MI300X", "", "bfloat16", ops, Fit(whole=2.0), limits=limits)
    known = devices.load()
    times = {
        (name, basis): pass_seconds(
            WORK, replace(devices.ceilings(known[name], "bf16", basis), calibration=found)
        )
        for name in ("MI300X", "MI355X")
        for basis in ("peak", "achieved")
    }
    assert times["MI300X", "peak"] == times["MI300X", "achieved"]
    assert times["MI355X", "peak"] < times["MI355X", "achieved"]
    cost = costs.linear(4096, 4096, 4096, 2)
    rates = replace(devices.ceilings(known["MI300X"], "bf16", "peak"), calibration=found)
    assert rates.phases(cost, 1, "linear") == (
        cost.bytes / 4e12,
        cost.flops / 6e14,
        pytest.approx(0, abs=1),
    )


def test_an_op_that_was_not_measured_has_the_rates_of_the_basis():
    limits = LIMITS | dict(read_bytes_per_s=4e12, bf16_flops_per_s=6e14)
    found = Calibration("MI300X", "", "bfloat16", {}, Fit(whole=2.0), limits=limits)
    ideal = devices.ceilings(devices.load()["MI300X"], "bf16", "achieved")
    measured = pass_seconds(WORK, replace(ideal, calibration=found))
    assert measured == pytest.approx(2 * sum(
        max(ideal.phases(op.cost, op.calls, op.op)) for op in pass_ops(WORK)
    ))  # fmt: skip


def test_predicted_times_calibrate_and_are_labelled(tmp_path):
    """`isa --predict --save` of MI300X, its whole ops made up."""
    whole = [
        dict(op="fused_moe", backend="cpp", shape=f"T={n}", flops=n * 1e8, exps=0.0,
             bytes=(4 + n) * 1e8, us=1e6 * (4 + n) * 1e8 / predict.SUSTAINED["gfx942"] / 0.5)
        for n in (1, 2, 3)
    ]  # fmt: skip
    data = predict.results(whole, devices.load()["MI300X"])
    source, path = tmp_path / "predicted.json", tmp_path / "calibration.json"
    results.save(source, data)
    label = "MI300X, predicted by the timing model, not measured"
    text = run("calibrate", source, "--out", path)
    assert label in text and "50%" in text
    assert calibration.load(path).predicted
    for command in ("step", "plan", "blocks", "attention", "deploy"):
        assert label in run(command, "--device", "MI300X", "--calibration", path)
    ops = json.loads(run("step", "--device", "MI300X", "--calibration", path, "--json"))
    moe = next(r for r in ops if r["mode"] == "block" and r["op"] == "fused_moe")
    memory_us = 1e6 * moe["bytes"] / predict.SUSTAINED["gfx942"]
    assert moe["calibrated_us"] == pytest.approx(memory_us / 0.5, rel=1e-6)


def test_two_rates_give_an_efficiency_and_a_launch_cost():
    one, many = (3e-3, 400), (6e-3, 450)
    found = calibration.of_two_rates(
        one, many, (3e-3 / 0.3 + 400 * 2e-5, 6e-3 / 0.3 + 450 * 2e-5), ""
    )
    assert 1 / found.others.whole == pytest.approx(0.3) and found.launch_us == pytest.approx(20)
    (least, launch_us), (most, efficiency) = calibration.explicable(one, many, 30e-3)
    assert launch_us == pytest.approx(27e-3 / 400 * 1e6) and least == pytest.approx(
        6e-3 + 450 * 27e-3 / 400
    )
    assert efficiency == pytest.approx(0.1) and most == pytest.approx(60e-3)


def test_zyphra_s_two_rates_are_explained():
    """658 and 803 tokens/s on MI300X at batch 16; 5407 and 8245 are the ideal ones at 1k."""
    command = ["explain", "--measured", "658,803", "--branches", "5,8,11", "--context", 1024]
    one, block = json.loads(run(*command, "--json"))
    assert one["ideal_tokens_per_s"] == pytest.approx(5407, abs=1)
    assert block["ideal_tokens_per_s"] == pytest.approx(8245, abs=1)
    assert one["launch_us"] == 0 and one["efficiency"] == pytest.approx(0.111, abs=1e-3)
    text = run(*command)
    assert "With 1.50 tokens a pass 53 us a launch" in text
    assert "with 2.57 an efficiency of 12.2%" in text
    slow = [*command, "--mean", 2]
    assert "explain" in run(*slow) and json.loads(run(*slow, "--json"))[0]["launch_us"] > 0


def test_whole_passes_of_bench_step_are_predicted(tmp_path):
    """Passes that take what the calibration says are predicted without an error; the ideal is
    far off."""
    ops = {op: Fit(whole=2.0, fixed_us=10.0) for op in TRUTH}
    found = Calibration("a CPU", "made up", "bfloat16", ops, Fit(whole=2.0), limits=LIMITS)
    each = dict(batch=1, context=64, by_op={"the rest": 0.002}, limit_ms={})
    data = dict(layers=2, vocab=1000, dtype="bfloat16", passes=[
        {**each, "proposals": None, "seconds": [1.0]},
        {**each, "proposals": 2, "seconds": [1.0, 2.0, 3.0]},
    ])  # fmt: skip
    path = tmp_path / "step.json"
    path.write_text(json.dumps(data))
    hosted, passes = whole_pass.predict(found, whole_pass.read(path))
    assert hosted.host_us == pytest.approx(2000)
    assert [p.measured_ms for p in passes] == [1000, 2000]
    assert [p.held_out for p in passes] == [False, True]
    assert [p.work.rows for p in passes] == [1, 48] and passes[1].work.branches == (1, 16)
    assert passes[1].predicted_ms > 2 * passes[1].ideal_ms
    source = tmp_path / "results.json"
    results.save(source, measured(TRUTH))
    rows = json.loads(run("calibrate", source, "--step", path, "--json"))
    predicted = [r for r in rows if r["op"] == "pass"]
    assert [r["measured_ms"] for r in predicted] == [1000, 2000]
    few = json.loads(run("calibrate", source, "--step", path, "--touched", "1:1,48:2", "--json"))
    assert few[-1]["predicted_ms"] < predicted[-1]["predicted_ms"]
    assert "its host cost was used" in run("calibrate", source, "--step", path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "expected a file of `calibrate --out`"),
        ("{}", "expected a file of `calibrate --out`, got something else"),
        ('{"calibration": 1}', "expected the fields of a calibration"),
        (
            '{"calibration": 1, "device": "", "source": "", "dtype": "", '
            '"ops": {"linear": {"whole": -1}}, "others": {}}',
            "linear: expected factors >= 0",
        ),
    ],
)
def test_a_wrong_calibration_is_refused(tmp_path, text, message):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        calibration.load(path)


def test_an_implementation_without_times_is_named(tmp_path):
    path = tmp_path / "results.json"
    results.save(path, measured(TRUTH))
    message = "--impl, --dtype: expected one of cpp bfloat16, got triton bfloat16"
    assert message in run("calibrate", path, "--impl", "triton", status=2)
    step = tmp_path / "step.json"
    step.write_text("[]")
    assert "expected a file of `bench step --json`" in run(
        "calibrate", path, "--step", step, status=2
    )
