"""The page with sliders, opened in headless Chromium: its numbers are those of the commands."""

import json
import re
import time

import chromium
import pytest
from click.testing import CliRunner

from blockdraft.cli import main
from blockdraft.roofline import calibration, devices, models, page
from blockdraft.roofline.calibration import Calibration, Fit
from blockdraft.roofline.output import short
from blockdraft.roofline.workload import Workload

needs_chromium = pytest.mark.skipif(chromium.EXECUTABLE is None, reason="Chromium is not installed")
VIEWS = [
    dict(device="MI300X", basis="achieved", batch=16, context=8192, mean=4.6, proposals=1),
    dict(device="MI355X", basis="peak", batch=64, context=32768, mean=7.7, proposals=4),
    dict(device="MI355X", basis="sustained", batch=1, context=131072, mean=2.0, proposals=6),
    dict(device="MI300X", basis="sustained", batch=128, context=1024, mean=10.0, proposals=0),
]

HISTOGRAM = "27," + "3," * 15 + "28"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    known = devices.load()
    work = Workload(models.find("ZAYA1-8B"), branches=())
    content = page.data("ZAYA1-8B", work, [known["MI300X"], known["MI355X"]], 0.0)
    return page.write(tmp_path_factory.mktemp("page") / "blocks.html", content)


def test_page_is_self_contained(written):
    text = written.read_text()
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", text) and "__DATA__" not in text


def rows_of(*command):
    outcome = CliRunner().invoke(main, ["roofline", *command, "--json"])
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.output)


def cells(browser, table):
    return browser.value(
        f"[...document.querySelectorAll('{table} tr')]"
        ".map(r => [...r.cells].map(c => c.textContent))"
    )


def has_the_numbers_of_the_commands(browser, view):
    for name in ("batch", "context", "mean", "proposals"):
        shown = browser.value(f"document.getElementById('{name}_value').textContent")
        assert float(shown) == view[name]
    arguments = [
        f"--{name}={view[name]}" for name in ("device", "basis", "batch", "context", "mean")
    ]
    expected = rows_of("plan", *arguments, f"--max-proposals={page.MAX_PROPOSALS}")
    rows = cells(browser, "#plans")
    assert rows == [
        [
            str(row["proposals"]),
            " ".join(map(str, row["branches"])) or "autoregressive",
            f"{row['tokens_per_pass']:.3f}",
            f"{row['pass_ms']:.3f}",
            short(row["tokens_per_s"]),
            f"{row['speed_up']:.2f}x",
            "best" * row["best"],
        ]
        for row in expected
    ]
    marked = browser.value(
        "[...document.querySelectorAll('#plans tr')].findIndex(r => r.classList.contains('chosen'))"
    )
    chosen = rows[view["proposals"]]
    best = next(row for row in rows if row[-1])
    assert marked == view["proposals"]
    assert browser.value("document.getElementById('headline').textContent") == (
        f"P = {chosen[0]}: {chosen[4]} tokens/s, {chosen[5]} autoregressive; "
        f"the best is P = {best[0]} with {best[4]} tokens/s."
    )
    bars = browser.value("[...document.querySelectorAll('#chart text')].map(t => t.textContent)")
    assert bars == [text for row in rows for text in (row[4], f"P = {row[0]}")]
    free = [
        row
        for row in rows_of("blocks", f"--device={view['device']}")
        if row["reading"] != "whole pass"
    ]
    assert cells(browser, "#free tbody") == [
        [
            row["reading"],
            *(f"{row[key]:.2f}" + " ?" * bool(row["unconfirmed"]) for key in ("t", "proposals")),
        ]
        for row in free
    ]


@needs_chromium
def test_sliders_give_the_numbers_of_the_commands(written, tmp_path):
    """The thumbs are pulled by the mouse, device and basis typed."""
    positions = dict(
        batch=page.BATCHES,
        context=page.CONTEXTS,
        mean=page.MEANS,
        proposals=range(page.MAX_PROPOSALS + 1),
    )
    with chromium.Page(tmp_path) as browser:
        browser.open(f"file://{written}")
        # where the page starts
        has_the_numbers_of_the_commands(browser, VIEWS[0] | dict(basis="peak"))
        for view in VIEWS:
            for name in ("device", "basis"):
                browser.press(name, view[name])
                assert browser.value(f"document.getElementById('{name}').value") == view[name]
            for name, values in positions.items():
                browser.drag(name, list(values).index(view[name]))
            has_the_numbers_of_the_commands(browser, view)


@needs_chromium
def test_a_link_opens_its_view(written, tmp_path):
    with chromium.Page(tmp_path) as browser:
        browser.open(
            f"file://{written}#" + "&".join(f"{name}={value}" for name, value in VIEWS[1].items())
        )
        has_the_numbers_of_the_commands(browser, VIEWS[1])


@pytest.fixture(scope="module")
def of_a_command(tmp_path_factory):
    """The page of a command with settings off the page's own grid, and its rows of `plan`."""
    folder = tmp_path_factory.mktemp("command")
    options = ["--device", "h200", "--basis", "sustained", "--batch", "12", "--context", "100000"]
    options += ["--histogram", HISTOGRAM, "--attribute", "offset"]
    rows_of("plot", "--out", str(folder), *options)
    return folder / "blocks.html", rows_of("plan", *options, "--max-proposals=6")


@needs_chromium
def test_the_page_opens_on_the_settings_of_its_command(of_a_command, tmp_path):
    path, expected = of_a_command
    with chromium.Page(tmp_path) as browser:
        browser.open(f"file://{path}")
        shown = {
            name: browser.value(f"document.getElementById('{name}_value').textContent")
            for name in ("batch", "context", "mean", "proposals")
        }
        assert shown == dict(batch="12", context="100000", mean=page.GIVEN, proposals="3")
        assert browser.value("document.getElementById('device').value") == "H200"
        assert browser.value("document.getElementById('basis').value") == "sustained"
        assert "by mask offset" in browser.value("document.getElementById('given').textContent")
        rows = cells(browser, "#plans")
        assert [row[2] for row in rows] == [f"{r['tokens_per_pass']:.3f}" for r in expected]
        assert [row[3] for row in rows] == [f"{r['pass_ms']:.3f}" for r in expected]


@needs_chromium
def test_calibrated_times_stand_beside_the_ideal_ones(tmp_path):
    """Of `plot --calibration`; as `plan --calibration` prints them, wherever the sliders stand."""
    found = tmp_path / "calibration.json"
    ops = {"fused_moe": Fit(whole=2.0, fixed_us=30.0), "block_attention": Fit(whole=1.2)}
    made = Calibration("MI300X", "made up", "bfloat16", ops, Fit(whole=3.0), launch_us=4.0)
    calibration.save(found, made)
    rows_of("plot", "--out", str(tmp_path), "--calibration", str(found))
    with chromium.Page(tmp_path / "profile") as browser:
        browser.resize(420, 900)
        browser.open(f"file://{tmp_path}/blocks.html")
        for batch in (16, 128, 1):
            browser.drag("batch", page.BATCHES.index(batch))
            expected = rows_of(
                "plan", "--calibration", str(found), f"--batch={batch}", "--max-proposals=6"
            )
            assert [row[3:] for row in cells(browser, "#plans")] == [
                [
                    f"{r['pass_ms']:.3f}",
                    short(r["tokens_per_s"]),
                    f"{r['speed_up']:.2f}x",
                    f"{r['calibrated_pass_ms']:.3f}",
                    short(r["calibrated_tokens_per_s"]),
                    f"{r['calibrated_speed_up']:.2f}x",
                    "best" * r["calibrated_best"],
                ]
                for r in expected
            ]
            best = next(r for r in expected if r["calibrated_best"])
            headline = browser.value("document.getElementById('headline').textContent")
            assert f"with {short(best['calibrated_tokens_per_s'])} tokens/s" in headline
            assert "As calibrated; ideal: " in headline
        assert browser.value("document.documentElement.scrollWidth") <= 420
        note = browser.value("document.getElementById('calibration').textContent")
        assert "Calibrated by made up: fused_moe, block_attention on MI300X (assumed of " in note


@needs_chromium
def test_a_link_to_what_the_page_lacks_is_said(written, tmp_path):
    link = "device=TPU&basis=best&batch=13&context=none&mean=4.6&proposals=2"
    with chromium.Page(tmp_path) as browser:
        browser.open(f"file://{written}#{link}")
        notice = browser.value("document.getElementById('notice').textContent")
        for word in (
            "device TPU is not on this page: MI300X",
            "basis best is not on this page: peak",
            "batch 13 is not on this page: 16",
            "context none is not on this page",
        ):
            assert word in notice, notice
        assert browser.value("document.getElementById('batch_value').textContent") == "16"
        assert browser.value("document.getElementById('mean_value').textContent") == "4.6"
        assert len(cells(browser, "#plans")) == page.MAX_PROPOSALS + 1


@needs_chromium
def test_what_does_not_fit_is_grey_and_said(written, tmp_path):
    with chromium.Page(tmp_path) as browser:
        browser.open(f"file://{written}#device=MI300X&batch=128&context=131072&proposals=2")
        expected = rows_of("plan", "--device=MI300X", "--batch=128", "--context=131072")
        assert not any(row["fits"] for row in expected)
        large = (
            "[...document.querySelectorAll('#plans tr')].map(r => r.classList.contains('large'))"
        )
        assert browser.value(large) == [True] * (page.MAX_PROPOSALS + 1)
        assert "It does not fit" in browser.value("document.getElementById('headline').textContent")
        browser.drag("batch", 0)
        assert browser.value(large) == [False] * (page.MAX_PROPOSALS + 1)


@needs_chromium
def test_a_narrow_window_has_nothing_beyond_its_edge(written, tmp_path):
    with chromium.Page(tmp_path) as browser:
        browser.resize(420, 900)
        browser.open(f"file://{written}")
        assert browser.value("document.documentElement.scrollWidth") <= 420
        browser.drag("batch", 7)
        assert browser.value("document.getElementById('batch_value').textContent") == "128"


@needs_chromium
def test_a_device_without_the_basis_does_not_make_it_forgotten(tmp_path):
    """A CPU has achieved figures only."""
    rates = dict.fromkeys(("flops_per_s", "bf16_flops_per_s", "exps_per_s"), 1e11)
    cpu = devices.measured_cpu({**rates, "read_bytes_per_s": 2e10}, "a test")
    work = Workload(models.find("ZAYA1-8B"), branches=())
    content = page.data("ZAYA1-8B", work, [devices.load()["MI300X"], cpu], 0.0)
    path = page.write(tmp_path / "blocks.html", content)
    basis = "document.getElementById('basis').value"
    with chromium.Page(tmp_path / "profile") as browser:
        browser.open(f"file://{path}#basis=sustained")
        assert browser.value(basis) == "sustained"
        browser.press("device", "cpu")
        assert browser.value(basis) == "achieved"
        time.sleep(1.5)  # what is typed sooner continues the name before
        browser.press("device", "MI300X")
        assert browser.value(basis) == "sustained"
