"""The commands as a user runs them."""

import re

import pytest
from click.testing import CliRunner

from blockdraft.cli import main


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
    assert re.search(r"wall time for 64 bytes: autoregressive [\d.]+ s", out.output)
    assert "repetition" in out.output and "tokens committed by a forward, greedy" in out.output


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
