"""fused_moe over processes, against one process with all experts."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "support" / "expert_parallel.py"


@pytest.mark.parametrize(
    "what, size",
    [("compare", 2), ("compare", 4), ("refuse", 2), ("dead", 2), ("dead", 4), ("silent", 2)],
)
def test_processes(tmp_path, what, size):
    """compare: bits where a row has one expert, else within the roundings of the partial sums;
    uneven and empty shards, processes without rows. dead, silent: an error, in seconds."""
    command = [sys.executable, WORKER]
    arguments = [str(size), str(tmp_path / "store"), what]
    processes = [
        subprocess.Popen(
            [*command, str(rank), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(size)
    ]
    try:
        for process in processes:
            output = process.communicate(timeout=100)[0].decode()
            print(output)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
