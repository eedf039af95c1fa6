"""The commands as a user runs them: tables, JSON, CSV, errors that name the valid choices,
plots."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from click.testing import CliRunner

from blockdraft.bench.names import stem
from blockdraft.cli import main
from blockdraft.data import TINY
from blockdraft.roofline import check
from blockdraft.roofline.acceptance import solve_alpha


def run(*arguments, status=0):
    outcome = CliRunner().invoke(main, ["roofline", *map(str, arguments)], env={"COLUMNS": "160"})
    assert outcome.exit_code == status, outcome.output
    return outcome.output


COMMANDS = [
    ["devices"],
    ["blocks"],
    ["attention"],
    ["step", "--batch", 4],
    ["plan", "--alpha", 0.8, "--max-proposals", 3],
    ["sweep", "--batches", "1,16", "--contexts", "1024,8192", "--max-proposals", 2],
]


def as_csv(value):
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_table_json_and_csv_hold_the_same(command):
    rows = json.loads(run(*command, "--json"))
    lines = list(csv.DictReader(io.StringIO(run(*command, "--csv"))))
    assert len(rows) == len(lines) > 3
    for row, line in zip(rows, lines, strict=True):
        for key, value in row.items():
            assert line[key] == as_csv(value)
    table = run(*command)
    assert "devices --sources" in table or command[0] == "attention"
    assert any(word in table for word in ("achieved", "quoted"))


WIDE = ["plan", "--max-proposals", 17]


@pytest.mark.parametrize("width", [60, 76, 80, 100, 120])
@pytest.mark.parametrize(
    "command",
    [*COMMANDS, WIDE, ["plan", "--simulate", 1000], ["devices", "--sources"]],
    ids=lambda command: " ".join(map(str, command)),
)
def test_tables_fit_the_terminal_and_break_no_cell(command, width):
    """A table that is too wide comes in parts, each with its key columns."""
    terminal = CliRunner().invoke(
        main, ["roofline", *map(str, command)], env={"FORCE_COLOR": "1", "COLUMNS": str(width)}
    )
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.stdout)
    assert terminal.exit_code == 0 and max(map(len, text.splitlines())) <= width
    cell = re.compile(r"[\w.]+(?: \([\d.x]+\))?\??")
    if width >= 80:  # below, a cell of several words is folded
        assert not Counter(cell.findall(run(*command))) - Counter(cell.findall(text))
    assert ("6/7" in terminal.stderr) == (command[0] == "sweep")  # its progress bar


WIDER = [
    ["search", "--max-drafts", 6],
    ["memory", "--model", "zaya1-74b"],
    ["deploy", "--price", "mi300x=2", "--limit-ms", 5, "--max-proposals", 2],
    ["explain", "--measured", "658,803", "--branches", "5,8,11"],
]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", WIDER, ids=lambda command: command[0])
def test_tables_of_a_deployment_fit_the_terminal(command, width):
    terminal = CliRunner().invoke(
        main, ["roofline", *map(str, command)], env={"FORCE_COLOR": "1", "COLUMNS": str(width)}
    )
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.stdout)
    assert terminal.exit_code == 0 and max(map(len, text.splitlines())) <= width
    assert json.loads(run(*command, "--json"))


def test_blocks_table_says_which_reading_is_the_published_one():
    table = run("blocks")
    for word in (
        "3.85 (2.85)",
        "4.92 (3.92)",
        "2.58 (1.58)",
        "3.77 (2.77)?",
        "yes: peak / sustained",
        "yes: peak / sustained, 17 rows (3.48, 4.71)",
        "Three counts, one after the other",
        "no:  peak / peak",
        "0.771",
        "0.819",
    ):
        assert word in table, word


def test_sources_are_named():
    table = run("devices", "--sources")
    for word in ("arXiv 2510.27583", "AMD blog", "unconfirmed", "2026-11"):
        assert word in table


def test_step_totals_and_speed_up():
    rows = json.loads(
        run("step", "--device", "mi355x", "--batch", 16, "--branches", "1,7,17", "--json")
    )
    totals = {r["mode"]: r for r in rows if r["op"] == "total"}
    for mode, total in totals.items():
        ops = [r for r in rows if r["mode"] == mode and r is not total]
        assert total["us"] == pytest.approx(sum(r["us"] for r in ops))
        assert sum(r["share"] for r in ops) == pytest.approx(1)
        seconds = total["us"] / 1e6
        assert total["tokens_per_s"] == pytest.approx(16 * total["tokens_per_pass"] / seconds)
    ratio = totals["block"]["tokens_per_s"] / totals["autoregressive"]["tokens_per_s"]
    assert totals["block"]["speed_up"] == pytest.approx(ratio)


def test_plan_simulates_and_takes_histograms(tmp_path):
    path = tmp_path / "counts.txt"
    path.write_text("27 " + "3 " * 15 + "28")
    rows = json.loads(
        run(
            "plan",
            "--histogram",
            f"@{path}",
            "--max-proposals",
            3,
            "--simulate",
            1_000_000,
            "--json",
        )
    )
    for row in rows:
        assert row["simulated_tokens_per_pass"] == pytest.approx(row["tokens_per_pass"], rel=5e-3)
    assert sum(row["best"] for row in rows) == 1
    assert rows[3]["tokens_per_pass"] == pytest.approx(8.603, abs=1e-3)


def test_short_drafts_need_no_further_option():
    """The greatest P is no more than the branches, and the default acceptance is the same for
    every K."""
    rows = json.loads(run("plan", "--drafts", 4, "--json"))
    assert [row["proposals"] for row in rows] == [0, 1, 2, 3, 4, 5]
    alpha = solve_alpha(4.6, 16)
    full = sum(alpha**i for i in range(5))
    assert rows[-1]["tokens_per_pass"] == pytest.approx(full, rel=1e-6)
    assert "0.786 a draft, independent (mean 4.6 with 16 drafts" in run("plan", "--drafts", 4)
    assert len(json.loads(run("sweep", "--drafts", 2, "--batches", "1", "--json"))) == 4 * 4


@pytest.mark.parametrize("command", ["plan", "sweep", "step"])
def test_what_does_not_fit_is_said(command):
    large = ["--batches", "512"] if command == "sweep" else ["--batch", 512]
    far = ["--contexts", "131072"] if command == "sweep" else ["--context", 131072]
    assert (
        "too large"
        if command == "plan"
        else "does not fit"
        if command == "sweep"
        else "TOO LARGE: batch 512"
    ) in run(command, *large, *far)
    if command != "step":
        assert not any(row["fits"] for row in json.loads(run(command, *large, *far, "--json")))
    if command != "sweep":
        assert "TOO LARGE" in run(command, *large, *far)
        assert "TOO LARGE" not in run(command)


@pytest.mark.parametrize("device", ["h200", "mi350x"])
def test_a_figure_that_nobody_achieved_is_stood_in_for(device):
    text = run("step", "--device", device)
    assert "bf16_tflops" in text and "(assumed, unconfirmed ?)" in text


def test_devices_says_which_figures_nobody_measured():
    text = run("devices")
    assert "assumed: nobody measured it" in " ".join(text.split())
    kinds = {
        (r["device"], r["figure"]): r["kind"]
        for r in json.loads(run("devices", "--json"))
        if r["used"] and r["figure"] == "memory_tb_per_s" and r["kind"] != "quoted"
    }
    assert kinds["MI300X", "memory_tb_per_s"] == "achieved"
    assert kinds["MI355X", "memory_tb_per_s"] == kinds["H200", "memory_tb_per_s"] == "assumed"


def test_check_takes_every_name_that_it_offers():
    """Short names as `bench` has them; an op is refused only where its kernel is not built."""
    option = next(
        p for p in main.commands["roofline"].commands["check"].params if p.name == "modules"
    )
    assert {"moe", "fused_moe", "zaya_router", "linear", "cca"} <= set(option.type.choices)
    assert {stem(name) for name in option.type.choices} == set(check.SHAPES)
    if check.available():
        assert check.available() == list(check.SHAPES)


def test_any_zaya_config_and_a_device_of_one_s_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[Mine.quoted]\nbf16_tflops = 1\nmemory_tb_per_s = 0.01\n")
    rows = json.loads(
        run(
            "step",
            "--model",
            TINY,
            "--device",
            "mine",
            "--devices",
            path,
            "--basis",
            "peak",
            "--context",
            128,
            "--json",
        )
    )
    assert {r["device"] for r in rows} == {"Mine"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["blocks", "--device", "mi300"],
            "expected one of MI300X, MI325X, MI350X, MI355X, H100, H200, B200, cpu, got 'mi300'",
        ),
        (["step", "--model", "zaya9"], "expected one of ZAYA1-8B, ZAYA1-74B, or a folder"),
        (["step", "--dtype", "int3"], "expected one of fp32, bf16"),
        (["step", "--dtype", "fp4"], "on MI300X, got 'fp4'"),
        (["step", "--basis", "best"], "'peak', 'sustained', 'achieved'"),
        (["step", "--batch", 0], "batch: expected 1 .. 65536"),
        (["step", "--context", 10**9], "context: expected 0 .. 131072"),
        (["step", "--branches", "1,99"], "expected integers in 1..17"),
        (["step", "--proposals", 0], "proposals: expected 1 .. 17"),
        (["step", "--branches", ""], "proposals: expected 1 .. 17"),
        (["plot", "--proposals", 0], "proposals: expected 1 .. 17"),
        (["step", "--branches", "1.5"], "branches: expected integers"),
        (["step", "--branches", "3,3,3"], "branches: expected different ones"),
        (["step", "--drafts", 10**6], "--drafts: expected 0 .. 256"),
        (["step", "--launch-us", -1], "launch_us: expected 0 .. 1000"),
        (["plan", "--mean", 40], "mean: expected 1 .. 17"),
        (["plan", "--histogram", "1,2"], "expected 17 frequencies"),
        (["plan", "--alpha", 0.5, "--mean", 3], "expected one of mean, alpha, histogram, mixture"),
        (["plan", "--mixture", "0.5"], "expected pairs such as 0.3:0.5,0.7:0.9"),
        (["plan", "--mixture", "0.5:0.9"], "mixture: expected shares above 0 that sum to 1"),
        (["plan", "--attribute", "row"], "'position', 'offset'"),
        (["plan", "--calibration", "setup.py"], "expected a file of `calibrate --out`"),
        (["plan", "--max-proposals", 99], "expected 0 .. 17"),
        (["sweep", "--batches", "1.5"], "batches: expected integers"),
        (["sweep", "--contexts", "inf"], "expected numbers separated by commas"),
        (["check", "--op", "moe", "--whole-pass"], "--whole-pass: expected every op"),
        (["step", "--json", "--csv"], "expected one of them, got both"),
        (["check", "--op", "nothing"], ", ".join(map(repr, check.SHAPES))),
    ],
)
def test_errors_name_the_valid_choices(arguments, message):
    assert message in " ".join(run(*arguments, status=2).split())


def test_plots_are_written(tmp_path):
    rows = json.loads(
        run(
            "plot",
            "--device",
            "MI355X",
            "--batch",
            1,
            "--launch-us",
            3,
            "--out",
            tmp_path,
            "--json",
        )
    )
    names = {row["file"].rsplit("/", 1)[-1] for row in rows}
    plots = {
        f"{name}.{kind}" for name in ("roofline", "blocks", "heatmap") for kind in ("png", "svg")
    }
    assert names == plots | {"blocks.html"}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
    words = {
        "roofline": ("block_attention", "TFLOP/s"),
        "blocks": ("MI300X", "cached tokens"),
        "heatmap": ("P = 1", "requests"),
    }
    for name, expected in words.items():
        ElementTree.parse(tmp_path / f"{name}.svg")
        # matplotlib keeps the words of a drawn text as comments
        text = (tmp_path / f"{name}.svg").read_text()
        assert all(word in text for word in expected), name
        assert name == "blocks" or "unconfirmed: memory_tb_per_s, exp_tera_per_s" in text
    # a point outside the axes would lose its name
    drawn = (tmp_path / "roofline.svg").read_text()
    for op in (
        "norms, residuals",
        "accept_drafts",
        "cca_qkv",
        "fused_moe",
        "zaya_router",
        "qkv projection",
        "output projection",
        "commit",
    ):
        assert drawn.count(f"{op} (") + drawn.count(f": {op} -->") == 2, op


def test_fit_is_the_mean_ratio():
    assert check.fit([(1, 2), (1, 2)]) == pytest.approx(0.5)
    assert check.fit([(1, 1), (1, 4)]) == pytest.approx(0.5)
    one = check.Checked("op", "B=1", True, limit_ms=3.0, measured_ms=5.0, efficiency=0.5)
    assert one.predicted_ms == 6.0 and one.error == pytest.approx(0.2)
    for fitted, held in check.SHAPES.values():
        assert len(held) >= 8
        assert not [case for case in held if case in fitted]


def test_check_fits_each_format_by_itself():
    """What reads memory at a share of its rate that differs by format is predicted exactly; others
    than `dtype` do not change a calibration."""
    shares = {"": 0.8, "cache=fp8": 0.4, "experts=fp8": 0.5, "experts=mxfp4": 0.2}
    limits = dict(flops_per_s=1e12, bf16_flops_per_s=1e12, exps_per_s=1e12, read_bytes_per_s=1e10)
    rows = []
    for op in ("block_attention", "fused_moe"):
        fitted, held = check.SHAPES[op]
        for i, case in enumerate(fitted + held):
            kind = next((f"{k}={v}" for k, v in case.items() if k in ("cache", "experts")), "")
            name = " ".join(f"{k}={v}" for k, v in case.items())
            size = 1e7 * (1 + i)
            row = dict(op=op, case=name, impl="cpp", dtype="bfloat16", flops=0, exps=0, bytes=size)
            rows.append(row | dict(ms=1e3 * size / 1e10 / shares[kind]))
    data = dict(limits=limits, results=rows, machine={})
    found = check.predictions(data)
    assert len(found) == len(rows)
    assert all(abs(c.error) < 1e-6 for c in found)
    held = [(c.op, c.case) for c in found if c.held_out]
    assert len(held) == sum(len(check.SHAPES[op][1]) for op in ("block_attention", "fused_moe"))
    plain = [row for row in rows if "cache=" not in row["case"] and "experts=" not in row["case"]]
    alone = check.calibrated(data | dict(results=plain), "bfloat16")
    assert check.calibrated(data, "bfloat16") == alone


@pytest.mark.slow
def test_the_model_predicts_this_cpu():
    """Fails on a machine that is busy with something else."""
    assert check.available(), "no C++ kernel is built"
    run("check", "--dtype", "bfloat16", "--whole-pass")
