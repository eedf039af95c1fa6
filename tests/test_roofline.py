"""Figures that were worked out by hand, and devices read from files."""

import doctest
import subprocess
import sys

import pytest

from blockdraft import roofline
from blockdraft.roofline import blocks, costs, memory, models, step
from blockdraft.roofline.devices import ceilings, find, load
from blockdraft.roofline.figures import CONFIDENCE

KNOWN = load()
ZAYA = models.find("zaya1-8b")
READINGS = {reading.name: reading for reading in blocks.READINGS}


@pytest.mark.parametrize(
    "reading, mi300x, mi355x",
    [
        ("peak / peak", 3.85, 4.92),
        ("peak / peak, 17 rows", 3.63, 4.63),
        ("peak / sustained", 4.76, 6.07),
        ("achieved / achieved", 2.58, 3.77),
        ("peak / peak, fp8 KV, bf16 products", 1.93, 2.46),
    ],
)
def test_blocks_to_two_decimals(reading, mi300x, mi355x):
    for name, t in (("MI300X", mi300x), ("MI355X", mi355x)):
        found = blocks.blocks(KNOWN[name], ZAYA, READINGS[reading])
        assert round(found.t, 2) == t and round(found.proposals, 2) == round(t - 1, 2)


def test_which_reading_gives_the_published_numbers():
    text = blocks.verdict(KNOWN, ZAYA)
    assert text[1].endswith("yes: peak / sustained")
    assert text[2].endswith("peak / peak, which gives 2 and 3")
    low, high = blocks.published_share(KNOWN, ZAYA)
    assert (round(low, 3), round(high, 3)) == (0.771, 0.819)
    ridges = [
        ceilings(KNOWN[name], "bf16", "peak").ridge_flops_per_byte for name in ("MI300X", "MI355X")
    ]
    for share, counts in (
        (low - 1e-3, [4, 5]),
        (low + 1e-3, [3, 5]),
        (high - 1e-3, [3, 5]),
        (high + 1e-3, [3, 4]),
    ):
        assert [int(ridge / share / 64 - 1) for ridge in ridges] == counts


def test_hand_checked_figures():
    assert [blocks.intensity_flops_per_byte(4, n) for n in (1, 16, 64)] == [4, 64, 256]
    assert round(ceilings(KNOWN["MI300X"], "bf16", "peak").ridge_flops_per_byte, 1) == 246.7
    assert [round(costs.distinct_experts(r, [1 / 16] * 16), 1) for r in (1, 16, 64)] == [
        1.0,
        10.3,
        15.7,
    ]
    assert round(costs.linear(1, 2048, 262272, 2).bytes / 1e9, 2) == 1.07
    assert memory.kv_bytes(ZAYA, 1, 2) == 40 * 1024
    long = costs.block_attention(1 << 17, 16, [], 1, 8, 2, 128, 2)
    assert long.flops / long.bytes == pytest.approx(64, rel=1e-3)


def test_per_token_figures_of_the_8b():
    one_row = step.Workload(ZAYA, 1, 0, 1, 1, (), accepted=0)
    per_layer = {op.name: op.cost for op in step.pass_ops(one_row)}
    for name, mflop in (("cca_qkv", 0.66), ("zaya_router", 1.3), ("fused_moe", 25.2)):
        assert per_layer[name].flops / 40e6 == pytest.approx(mflop, rel=0.02)
    both = per_layer["qkv projection"].flops + per_layer["output projection"].flops
    assert both / 40e6 == pytest.approx(10.5, rel=0.01)
    assert per_layer["fused_moe"].bytes / 40 == pytest.approx(25.2e6, rel=0.01)
    assert models.weight_count(ZAYA) == pytest.approx(8.84e9, rel=0.01)
    assert models.weight_count(models.find("ZAYA1-74B")) == pytest.approx(74e9, rel=0.02)


def test_mla_at_equal_cache_has_no_free_block():
    found = {kind.name: kind for kind in blocks.kinds(ZAYA)}
    assert {kind.cached_elements for kind in found.values()} == {512}
    intensity = {
        name: kind.flops_per_row / (2 * kind.cached_elements) for name, kind in found.items()
    }
    assert intensity == {"MHA": 1, "GQA": 8, "MLA (absorbed)": 30, "CCGQA": 4}
    assert 246.7 / (16 * intensity["MLA (absorbed)"]) < 1 < 246.7 / (16 * intensity["CCGQA"])


def test_every_figure_has_source_date_and_confidence():
    for device in KNOWN.values():
        for kind, section in device.figures.items():
            for name, figures in section.items():
                for figure in figures:
                    where = f"{device.name}.{kind}.{name}"
                    assert figure.kind == kind, where
                    assert figure.source and not figure.source.endswith(".toml"), where
                    assert figure.date != "undated", where
                    assert figure.url.startswith("https://") or figure.kind == "assumed", where
                    assert figure.confidence in CONFIDENCE, where


def test_exponentials_are_derived_from_units_and_clock():
    """16 a clock and unit, the derivation that their source states."""
    for device in KNOWN.values():
        units, clock = (device.figure(n, "quoted").value for n in ("compute_units", "clock_ghz"))
        derived = 16 * units * clock / 1e3
        assert device.figure("exp_tera_per_s", "assumed").value == pytest.approx(derived, rel=0.01)


def test_assumed_rates_are_the_shares_that_their_sources_state():
    share = {"MI350X": 1565 / 2516.6, "H200": 794 / 989.4}
    for device in KNOWN.values():
        bf16 = device.figure("bf16_tflops", "achieved")
        own = bf16.value / device.figure("bf16_tflops", "quoted").value if bf16 else None
        for name, (figure,) in device.figures["assumed"].items():
            if name.endswith("_tflops"):
                quoted = device.figure(name, "quoted").value
                expected = (own or share[device.name]) * quoted
                assert figure.value == pytest.approx(expected, rel=2e-3), (device.name, name)


def test_a_file_extends_and_overrides(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[mi300x.achieved]\nbf16_tflops = 700\n"
        '[Mine]\narch = "gfx950"\n'
        "[Mine.quoted]\nbf16_tflops = 1000\n"
        "memory_tb_per_s = { value = 4, confidence = 'unconfirmed' }\n"
    )
    known = load(path)
    assert find("MI300X", known).figure("bf16_tflops", "achieved").value == 700
    assert find("MI300X", known).figure("bf16_tflops", "quoted").value == 1307.4
    assert find("MI300X", known).figure("bf16_tflops", "achieved").source == str(path)
    mine = ceilings(find("mine", known), "bf16", "peak")
    assert mine.ridge_flops_per_byte == 250 and mine.unconfirmed == ["memory_tb_per_s"]
    assert find("MI300X", load()).figure("bf16_tflops", "achieved").value == 708


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "[X.quoted]\nmemory_tb_per_s = -1\nbf16_tflops = 1",
            "X.quoted.memory_tb_per_s: expected a positive number, got -1",
        ),
        (
            "[X.quoted]\nmemory_tb_per_s = inf\nbf16_tflops = 1",
            "expected a number in 0.001 .. 100, got inf",
        ),
        (
            "[X.quoted]\nmemory_tb_per_s = 5.3e12\nbf16_tflops = 1",
            "X.quoted.memory_tb_per_s: expected a number in",
        ),
        ("[X.quoted]\nmemory_tb_per_s = []\nbf16_tflops = 1", "expected at least one figure"),
        (
            "[X.quoted]\nmemory_tb_per_s = { value = 1, source = [1] }\nbf16_tflops = 1",
            "expected source, confidence and note as text",
        ),
        (
            "[X.quoted]\nmemory_tb_per_s = 5300\nbf16_tflops = 1",
            "X.quoted.memory_tb_per_s: expected a number in 0.001 .. 100, got 5300",
        ),
        (
            "[X.quoted]\nmemory_tb_per_s = 5\nbf16_tflops = 1\n[X.achieved]\nmemory_tb_per_s = 6",
            "X.achieved.memory_tb_per_s: expected at most the quoted 5, got 6",
        ),
        (
            "[mi300x.achieved]\nbf16_tflops = 1400",
            "MI300X.achieved.bf16_tflops: expected at most the quoted 1307.4, got 1400",
        ),
        ("sources = 1", "sources: expected NAME = { title, date }"),
        ("[sources]\na = { title = 'x' }", "sources: expected NAME"),
        ("[X]\narch = 3", "X.arch: expected a name, got 3"),
        ("[X.quoted]\nbf16 = 1", "expected one of fp32_tflops, bf16_tflops"),
        ("[X.quoted]\nbf16_tflops = 1", "expected a memory_tb_per_s"),
        ("[X.quoted]\nmemory_tb_per_s = 1", "expected one of fp32_tflops"),
        ("[X.best]\na = 1", "expected arch, quoted, achieved"),
        (
            "[X.quoted]\nbf16_tflops = { value = 1, confidence = 'sure' }",
            "expected a confidence of read, derived, unconfirmed",
        ),
        (
            "[X.quoted]\nbf16_tflops = { value = 1, source = 'hearsay' }",
            "expected a source of amd-specs",
        ),
        ("[X", "expected a TOML file"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        load(path)


def test_the_example_of_the_package_runs():
    found = {}
    for example in doctest.DocTestParser().get_examples(roofline.__doc__):
        exec(example.source, found)
    assert found["rates"].device == "MI355X" and found["seconds"] > 0
    assert found["best"].branches == (1, 7) and 1 < found["best"].tokens_per_pass < 4.6


def test_import_is_light():
    code = """
import sys
import blockdraft.roofline, blockdraft.cli
print(*{"torch", "numpy", "matplotlib", "rich"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
