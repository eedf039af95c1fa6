"""README's examples run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import readme
from click.testing import CliRunner

from blockdraft.cli import main

ROOT = Path(__file__).parents[1]
COMMANDS = readme.commands()
LONG = [
    "blockdraft bench all --quick",  # also pytest tests/bench_quick.py, which CI runs
    "blockdraft bench block_attention --threads 2 --json head.json",
    "blockdraft bench step --batch 1 --batch 8 --context 8192",
    "blockdraft roofline measure",
    "blockdraft roofline isa",
    "blockdraft roofline isa --predict",
    "blockdraft roofline check --whole-pass --dtype bfloat16 --save results.json",
]


def test_python(capsys):
    pytest.importorskip("transformers", reason="one of the examples decodes with it")
    exec(compile(readme.program(), "README.md", "exec"), {})
    assert capsys.readouterr().out


def run(line: str) -> None:
    result = CliRunner().invoke(main, shlex.split(line)[1:])
    assert result.exit_code == 0, f"{line}: {result.output[-2000:]}"
    assert result.output


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The files that some commands take."""
    folder = tmp_path_factory.mktemp("readme")
    run(f"blockdraft bench commit --quick --dtype bfloat16 --json {folder / 'head.json'}")
    for name in ("base.json", "results.json"):
        shutil.copy(folder / "head.json", folder / name)
    return folder


OWN = [line for line in COMMANDS if line.startswith("blockdraft ")]


@pytest.mark.parametrize("line", [line for line in OWN if line not in LONG])
def test_command(line, results, monkeypatch):
    monkeypatch.chdir(results)
    run(line)


@pytest.mark.slow
@pytest.mark.parametrize("line", LONG)
def test_long_command(line, tmp_path, monkeypatch):
    assert line in OWN
    monkeypatch.chdir(tmp_path)
    run(line)


def test_other_commands_name_what_exists():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    others = [line for line in COMMANDS if line not in OWN]
    assert len(others) > 5
    for program, *arguments in map(shlex.split, others):
        if program == "make":
            assert set(arguments) <= targets
        for pattern in arguments if program == "pytest" else ():
            assert not pattern.startswith("tests/") or list(ROOT.glob(pattern)), pattern
