"""The commands as a user runs them."""

import re

import pytest
from click.testing import CliRunner

from blockdraft import BlockLayout
from blockdraft.choose import Choice
from blockdraft.cli import main
from blockdraft.decode import Completion
from blockdraft.demo import formats, mix, race
from blockdraft.demo import run as course
from blockdraft.demo.completions import Completions, speed


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


def test_demo_prints_what_it_promises(tmp_path):
    arguments = ["demo", "--tokens", "32", "--prompts", "2", "--plot", str(tmp_path)]
    out = CliRunner().invoke(main, arguments, env={"COLUMNS": "140"})
    assert out.exit_code == 0, out.output
    assert "DIFFERS" not in out.output
    for name, more in (("greedy", "equals autoregressive"), ("T = 1", "lossless")):
        line = re.search(rf"^ *block diffusion, {name} +(\d+\.\d+) .*{more}", out.output, re.M)
        assert line and 1.0 <= float(line.group(1)) <= 16.0, name
    assert re.search(r"true text \(teacher\): \d", out.output, re.I)
    assert re.search(r"[\d.]+x ± \d+%", out.output)
    assert re.search(r"of \d+ layouts K = \d+ with \d+ proposals of \d+ drafts best", out.output)
    assert "tokens committed by a forward, block diffusion, greedy" in out.output
    for op in ("fused_moe", "block_attention", "between"):
        assert re.search(rf"^ *{op} +\d+ \(\d+%\) +\d+ \(\d+%\)", out.output, re.M)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acceptance.png", "by_op.png"]


class Counted:
    """A decoder of one token a pass and request, which notes its passes."""

    order: list[str] = []

    def __init__(self, model, layout, branches=()):
        self.name = "block" if layout.P else "plain"

    def batch(self, capacity, max_tokens):
        return CountedBatch(self)


class CountedBatch:
    def __init__(self, decoder):
        self.decoder = decoder
        self.emitted = 0

    def add(self, *requests):
        self.requests = requests
        self.active = len(requests)
        return list(range(len(requests)))

    def step(self):
        self.decoder.order.append(self.decoder.name)
        self.emitted += len(self.requests)
        count = self.requests[0].max_new_tokens
        if self.emitted < count * len(self.requests):
            return {}
        self.active = 0
        return {
            i: Completion([32] * count, [r.mix - 2.0] * count, "length", [1] * count)
            for i, r in enumerate(self.requests)
        }


BLOCK = Choice(BlockLayout(1, 2, 1), (1,), 2e-3, 1.4, 700.0)
PLAIN = Choice(BlockLayout.autoregressive(), (), 1e-3, 1.0, 1000.0)


def test_the_demo_s_decoders_take_turns(monkeypatch):
    monkeypatch.setattr(Counted, "order", [])
    monkeypatch.setattr(course, "_choose", lambda *_: [PLAIN, BLOCK])
    monkeypatch.setattr(course, "BlockDecoder", Counted)
    monkeypatch.setattr(course, "teacher_forced", lambda *_: [1])
    monkeypatch.setattr(course, "race", lambda *_: None)
    course.decode(10, 1, 0)
    assert Counted.order == (["plain"] * 2 + ["block"] * 2) * 5 + ["block"] * 10


def test_the_mix_sweep_reports_each_weight_s_likelihood(monkeypatch, tmp_path):
    monkeypatch.setattr(course, "_choose", lambda *_: [PLAIN, BLOCK])
    monkeypatch.setattr(mix, "BlockDecoder", Counted)
    arguments = ["demo", "--mix-sweep", "--tokens", "8", "--prompts", "1", "--plot", str(tmp_path)]
    out = CliRunner().invoke(main, arguments, env={"COLUMNS": "140"})
    assert out.exit_code == 0, out.output
    for weight in mix.WEIGHTS:
        nats = f"{2 - weight:.3f}"
        found = re.findall(rf"^ *{weight:g}(?: \(lossless\))? +[\d.]+ +{nats} ", out.output, re.M)
        assert len(found) == 2, weight
    assert (tmp_path / "mix.png").stat().st_size > 5000


def test_formats_are_compared(monkeypatch):
    monkeypatch.setattr(formats, "BlockDecoder", Counted)
    arguments = ["demo", "--formats", "--tokens", "8", "--prompts", "1"]
    out = CliRunner().invoke(main, arguments)
    assert out.exit_code == 0, out.output
    rows = {}
    for name in formats.FORMATS:
        numbers = re.search(rf"^ *{name} +([\d.+%-]+(?: +[\d.+%-]+)*) *$", out.output, re.M)
        rows[name] = [float(number.strip("%")) for number in numbers[1].split()]
    experts, cached, perplexity, *_ = zip(*rows.values())
    assert experts[0] > 1.9 * experts[2] > 3 * experts[3] and experts[3:] == experts[3:4] * 2
    assert cached == (1024, 512, 1024, 1024, 512)
    # measured: at most 1.3 % more
    assert max(perplexity) < 1.02 * perplexity[0] and len(set(perplexity)) == 5
    wrong = CliRunner().invoke(main, [*arguments, "--mix-sweep"])
    assert wrong.exit_code == 2 and "--formats: expected alone" in wrong.output


def test_a_race_gives_each_step_to_the_one_that_has_used_less_time():
    order = []

    class Steps:
        def __init__(self, name, cost):
            self.name, self.cost = name, cost
            self.seconds, self.active, self.run = 0.0, 1, self

        def step(self):
            order.append(self.name)
            self.seconds += self.cost
            self.active = int(self.seconds < 6)

    race.take_turns([Steps("slow", 3.0), Steps("fast", 1.0)])
    assert order == ["slow"] + ["fast"] * 3 + ["slow"] + ["fast"] * 3


@pytest.mark.parametrize(
    "block, ratio, disagrees",
    [([1.0, 1.0, 1.1], "2.00x", False), ([1.0, 2.0, 4.0], "1.00x", True)],
)
def test_the_demo_says_when_its_runs_disagree(block, ratio, disagrees):
    plain, greedy = (Completions(name, Counted(0, PLAIN.layout), [[1]], 3, 0.0) for name in "ab")
    plain.pieces += [2.0, 2.0, 2.0]
    greedy.pieces += block
    shown, warning = speed(plain, greedy)
    assert shown.startswith(ratio)
    assert ("DISAGREE" in warning) == disagrees


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
