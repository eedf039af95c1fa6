"""The layout of the kernels hub, loaded by path; tests/test_wheel.py loads it with `kernels`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockdraft.integrations import hub
from blockdraft.ops import _native

SCRIPT = Path(__file__).parent / "support" / "hub.py"


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    return hub.build(tmp_path_factory.mktemp("hub"))


def test_variants(variants):
    native = [] if _native.MISSING else ["torch-stable-abi210"]
    kinds = [path.name.partition("-cpu")[0].partition("-rocm")[0] for path in variants]
    assert kinds == ["torch-universal", *native]
    assert not list(variants[0].rglob("*.so"))
    assert all((path / "triton_kernels/fused_moe.py").exists() for path in variants)


def test_they_import_torch_and_triton_only(variants):
    """Anywhere, functions included; what is their own by relative imports."""
    files = [path for variant in variants for path in variant.rglob("*.py")]
    assert len(files) > 50
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    assert found - sys.stdlib_module_names == {"torch", "triton"}


def test_the_ops_work(variants, tmp_path):
    """In an interpreter that has torch, but not this package."""
    environment = {"PYTHONPATH": str(Path(torch.__file__).parents[1])}
    for variant in variants:
        command = [sys.executable, "-S", str(SCRIPT), str(variant)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        print(done.stdout)
