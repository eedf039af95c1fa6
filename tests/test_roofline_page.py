"""The page with sliders, opened in headless Chromium: its numbers are those of `plan`."""

import json
import re
import shutil
import subprocess

import pytest
from click.testing import CliRunner

from blockdraft.cli import main
from blockdraft.roofline import devices, models, page
from blockdraft.roofline.step import Workload

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000", "--dump-dom"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    known = devices.load()
    content = page.data("ZAYA1-8B", Workload(models.find("ZAYA1-8B"), branches=()), [known["MI300X"], known["MI355X"]], 0.0)
    return page.write(tmp_path_factory.mktemp("page") / "blocks.html", content)


def test_page_is_self_contained(written):
    text = written.read_text()
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", text) and "__DATA__" not in text


def opened(written, folder, **view):
    """Text of the page's parts after the view moved its controls."""
    fragment = "&".join(f"{name}={value}" for name, value in view.items())
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", f"file://{written}#{fragment}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    body = re.search(r'<tbody id="plans">(.*?)</tbody>', dom, re.S).group(1)
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", body, re.S)]
    chosen = [i for i, row in enumerate(re.findall(r"<tr.*?</tr>", body, re.S)) if "chosen" in row.split(">")[0]]
    outputs = dict(re.findall(r'<output id="(\w+)_value">(.*?)</output>', dom))
    return rows, chosen, outputs, re.search(r'<p id="headline">(.*?)</p>', dom).group(1)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("view", [dict(device="MI300X", basis="achieved", batch=16, context=8192, mean=4.6, proposals=1),
                                  dict(device="MI355X", basis="peak", batch=64, context=32768, mean=7.7, proposals=4)])
def test_sliders_give_the_numbers_of_plan(written, tmp_path, view):
    rows, chosen, outputs, headline = opened(written, tmp_path, **view)
    assert outputs == {name: str(view[name]) for name in ("batch", "context", "mean", "proposals")} and chosen == [view["proposals"]]
    arguments = [f"--{name}={view[name]}" for name in ("device", "basis", "batch", "context", "mean")]
    printed = CliRunner().invoke(main, ["roofline", "plan", *arguments, "--max-proposals", str(page.MAX_PROPOSALS), "--json"])
    for row, expected in zip(rows, json.loads(printed.output), strict=True):
        assert row == [str(expected["proposals"]), " ".join(map(str, expected["branches"])) or "autoregressive",
                       f"{expected['tokens_per_pass']:.3f}", f"{expected['pass_ms']:.3f}", f"{expected['tokens_per_s']:.0f}",
                       f"{expected['speed_up']:.2f}x", "best" * expected["best"]]
    assert headline.startswith(f"P = {view['proposals']}: {rows[view['proposals']][4]} tokens/s")
