"""The notebook's way in: the rows of the commands, by the commands' options."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from blockdraft.cli import main
from blockdraft.roofline import Study, search


def of_command(*arguments):
    outcome = CliRunner().invoke(main, ["roofline", *arguments, "--json"])
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.output)


def test_a_study_has_the_rows_of_the_commands():
    study = Study(device="mi355x", batch=4, attribute="offset")
    options = ["--device", "mi355x", "--batch", "4", "--attribute", "offset"]
    assert list(study.plan(3)) == of_command("plan", *options, "--max-proposals", "3")
    assert list(study.step()) == of_command("step", *options)
    limits = search.Limits(4, 6, 2)
    few = ["--max-drafts", "4", "--max-mask-rows", "6", "--max-proposals", "2"]
    assert list(study.search(limits)) == of_command("search", *options, *few)
    kept = of_command("memory", "--device", "mi355x", "--contexts", "8192")
    assert list(study.memory()) == kept and len(kept) == 1


def test_rows_are_plain_for_pandas():
    rows = Study(histogram=[27, *[3] * 15, 28]).plan(2).to_rows()
    assert [row["branches"] for row in rows] == ["", "1", "1 12"]
    plain = (str, float, int, bool, type(None))
    assert all(isinstance(value, plain) for row in rows for value in row.values())
    assert len({tuple(row) for row in rows}) == 1


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError, match="Study: expected options of device, batch.*got devise"):
        Study(devise="mi355x")


def test_no_torch_is_needed_for_an_answer():
    """As where torch is not installed."""
    code = """
import sys
sys.modules["torch"] = None
from blockdraft.cli import main
main(["roofline", "plan"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "best" in done.stdout
