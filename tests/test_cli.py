"""The commands as a user runs them."""

import re

import pytest
from click.testing import CliRunner

from blockdraft import BlockLayout, demo
from blockdraft.choose import Choice
from blockdraft.cli import main
from blockdraft.decode import Completion


def test_info_names_every_op_and_each_backend_s_state():
    out = CliRunner().invoke(main, ["info"], env={"COLUMNS": "140"})
    assert out.exit_code == 0, out.output
    for word in (
        "block_attention",
        "accept_drafts",
        "torch",
        "reference",
        "on any device",
        "no kernel in this version",
    ):
        assert word in out.output


def test_demo_prints_what_it_promises():
    out = CliRunner().invoke(main, ["demo", "--tokens", "32", "--prompts", "2"])
    assert out.exit_code == 0, out.output
    assert "greedy block-diffusion output equals the autoregressive output" in out.output
    for name in ("greedy", r"T = 1", r"true text \(teacher\)"):
        rate = re.search(rf"^  {name} +(\d+\.\d+)", out.output, re.M)
        assert rate and 1.0 <= float(rate.group(1)) <= 16.0, name
    assert re.search(
        r"wall time for 64 bytes: autoregressive [\d.]+ s .*: [\d.]+x, the median of 5 interleaved",
        out.output,
    )
    assert re.search(r"of \d+ layouts K = \d+ with \d+ proposals of \d+ drafts best", out.output)
    assert "repetition" in out.output and "tokens committed by a forward, greedy" in out.output


def test_the_demo_decodes_each_piece_in_both_ways_before_the_next(monkeypatch):
    order = []

    class Decoder:
        def __init__(self, model, layout, branches=()):
            self.name = "block" if layout.P else "plain"

        def generate(self, work, on_step):
            order.append((self.name, work[0].max_new_tokens, len(work[0].prompt)))
            return [Completion([32] * r.max_new_tokens, [], "length", [1]) for r in work]

    block = Choice(BlockLayout(1, 2, 1), (1,), 2e-3, 1.4, 700.0)
    plain = Choice(BlockLayout.autoregressive(), (), 1e-3, 1.0, 1000.0)
    monkeypatch.setattr(demo, "_choose", lambda *_: [plain, block])
    monkeypatch.setattr(demo, "BlockDecoder", Decoder)
    monkeypatch.setattr(demo, "teacher_forced", lambda *_: [1])
    demo.run(7, 1, 0)
    assert demo.pieces(7) == [1, 1, 2, 1, 2] and demo.pieces(2) == [1, 1]
    pieces = list(zip(demo.pieces(7), (192, 193, 194, 196, 197)))
    assert order[:-1] == [(name, *piece) for piece in pieces for name in ("plain", "block")]


@pytest.mark.parametrize(
    "block, ratio, disagrees",
    [([1.0, 1.0, 1.1], "2.00x", False), ([1.0, 2.0, 4.0], "1.00x", True)],
)
def test_the_demo_says_when_its_runs_disagree(block, ratio, disagrees):
    plain, greedy = (demo.Completions(name, None, [[1]], 0.0) for name in ("plain", "greedy"))
    plain.tokens[0] += [1] * 30
    plain.seconds += [2.0, 2.0, 2.0]
    greedy.seconds += block
    line = demo.speed(plain, greedy)
    assert ratio in line and "3 interleaved runs" in line
    assert ("DISAGREE" in line) == disagrees


def test_ops_have_short_names():
    for name in ("attention", "block_attention"):
        out = CliRunner().invoke(main, ["bench", name, "--case", "L=7"])
        assert "expected what a case of block_attention has" in out.output
    listed = CliRunner().invoke(main, ["bench", "--help"]).output
    assert "block_attention" in listed and " attention " not in listed


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--tokens", "0"],
        ["demo", "--prompts", "0"],
        ["bench", "attention", "--dtype", "fp8"],
        ["bench", "cca", "--quick", "--impl", "nonesuch"],
        ["bench", "attention", "--case", "L=7"],
        ["nonesuch"],
    ],
)
def test_bad_arguments_are_usage_errors(arguments):
    assert CliRunner().invoke(main, arguments).exit_code == 2
