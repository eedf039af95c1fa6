"""The Triton kernels under Triton's interpreter, which needs its variable before they are defined:
in another process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockdraft import env

pytest.importorskip("triton", reason="triton is not installed")
TESTS = Path(__file__).parent


def test_a_launch_states_its_costs():
    """As roofline/costs.py counts bytes, for one request."""
    from blockdraft.roofline import costs
    from blockdraft.triton_kernels import attend

    args = dict(
        q=torch.empty(64, 8, 128, dtype=torch.bfloat16),
        total_rows=64,
        max_rows=64,
        max_prefix=1000,
        batch=1,
        DIM=128,
        GROUP=4,
        KV_HEADS=2,
    )
    stated, counted = (
        attend.launch_metadata(None, None, args),
        costs.block_attention(1000, 16, [16] * 3, 16, 8, 2, 128, 2),
    )
    assert stated["bytes"] == counted.bytes and abs(stated["flops16"] / counted.flops - 1) < 0.03


def test_the_interpreter_runs_outside_pytest():
    """Triton's own crashes with newer numpy: the package mends it."""
    program = """
import torch
from blockdraft import ops
from blockdraft.types import Sampling
tokens, _ = ops.sample_drafts(
    torch.eye(4)[None, :3],
    torch.tensor([2], dtype=torch.int32),
    seed=torch.tensor([1]),
    position=torch.tensor([0], dtype=torch.int32),
    drafter_sampling=Sampling(torch.zeros(1)),
    backend="triton",
)
assert tokens.tolist() == [[0, 1, -1]], tokens
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.skipif(env.triton_interpreter(), reason="already under the interpreter")
@pytest.mark.parametrize(
    "name",
    [
        "test_block_attention.py",
        "test_cache_fp8.py",
        "test_cca_qkv.py",
        "test_commit.py",
        "test_fused_moe.py",
        "test_plan_branches.py",
        "test_residual_norm.py",
        "test_rope_qkv.py",
        "test_scaled_experts.py",
        "test_zaya_router.py",
        "test_sampling_backends.py",
        "test_accept_laws.py",
        "test_triton_readings.py",
    ],
)
def test_interpreted(name, tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(TESTS / name),
            "-k",
            "triton",
            "-q",
            "-p",
            "no:cacheprovider",
        ],
        cwd=tmp_path,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and re.search(r"\d+ passed", run.stdout), (
        run.stdout[-5000:] + run.stderr[-2000:]
    )
    print(run.stdout.splitlines()[-1])
