"""The Triton kernels under Triton's interpreter, which needs its variable before they are defined: in another process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blockdraft import env

pytest.importorskip("triton", reason="triton is not installed")
TESTS = Path(__file__).parent


@pytest.mark.skipif(env.triton_interpreter(), reason="already under the interpreter")
@pytest.mark.parametrize("name", ["test_block_attention.py", "test_commit.py"])
def test_interpreted(name, tmp_path):
    run = subprocess.run([sys.executable, "-m", "pytest", str(TESTS / name), "-k", "triton", "-q", "-p", "no:cacheprovider"], cwd=tmp_path,
                         env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert run.returncode == 0 and re.search(r"\d+ passed", run.stdout), run.stdout[-5000:] + run.stderr[-2000:]
    print(run.stdout.splitlines()[-1])
