"""Threads that help with each other's rows (csrc/tile/cpu/crew.h), under ThreadSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MUTANTS = {
    "a helper's writes are not awaited": (
        "helped_.fetch_add(count, std::memory_order_release)",
        "helped_.fetch_add(count, std::memory_order_relaxed)",
    ),
    "the owner does not wait": ("< n - own;", "< 0;"),
}


def run(headers: Path, folder: Path) -> subprocess.CompletedProcess:
    program = folder / "checks"
    subprocess.run(
        [
            "g++",
            "-std=c++20",
            "-O1",
            "-g",
            "-fsanitize=thread",
            "-pthread",
            "-w",
            f"-I{headers}",
            str(ROOT / "tests/support/crew_checks.cpp"),
            "-o",
            str(program),
        ],
        check=True,
    )
    return subprocess.run(
        [str(program)],
        capture_output=True,
        text=True,
        env={"TSAN_OPTIONS": "halt_on_error=1"},
        timeout=120,
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_no_races(tmp_path):
    done = run(ROOT / "csrc", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant, tmp_path):
    headers = shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    crew = headers / "tile/cpu/crew.h"
    source = crew.read_text()
    before, after = MUTANTS[mutant]
    assert source.count(before) == 1
    crew.write_text(source.replace(before, after))
    # on a busy machine the threads may not meet in the first runs
    assert any(run(headers, tmp_path).returncode for _ in range(5))
