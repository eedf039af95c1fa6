"""The torch side of a ROCm build, without ROCm: it compiles, and a launch goes to its tensors'
device, also where another is the current one."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
TORCH_SIDE = [*sorted(ROOT.glob("csrc/ops/*/torch.cpp")), ROOT / "csrc/bindings.cpp"]
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def compile_for_rocm(source: Path, *options: str) -> None:
    folders = [ROOT / "csrc", sysconfig.get_path("include"), *cpp_extension.include_paths()]
    definitions = dict(
        BLOCKDRAFT_HIP="",
        BLOCKDRAFT_MODULE="_ops",
        TORCH_TARGET_VERSION="0x020a000000000000",
    )
    subprocess.run(
        [
            "g++",
            "-std=c++20",
            *(f"-D{name}={value}" for name, value in definitions.items()),
            *(f"-I{folder}" for folder in folders),
            str(source),
            *options,
        ],
        check=True,
    )


@needs_gxx
@pytest.mark.parametrize("source", TORCH_SIDE, ids=lambda path: path.parent.name)
def test_compiles(source):
    compile_for_rocm(source, "-fsyntax-only")


@needs_gxx
def test_a_launch_goes_to_the_tensors_device(tmp_path):
    program = tmp_path / "device_guard"
    paths = cpp_extension.library_paths()
    libraries = [f"-L{path}" for path in paths] + [f"-Wl,-rpath,{path}" for path in paths]
    compile_for_rocm(
        ROOT / "tests/support/device_guard.cpp",
        *("-o", str(program)),
        *libraries,
        *("-ltorch_cpu", "-lc10"),
    )
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "launched with device 1 current, on stream 101",
        "device 0 current afterwards",
    ]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_on_the_second_gpu(backend):
    from blockdraft import ops
    from blockdraft.types import Rows

    q = torch.randn(16, 8, 64, device="cuda:1")
    k, v = (torch.randn(16, 2, 64, device="cuda:1") for _ in range(2))
    rows = Rows.prefill(torch.zeros(1, dtype=torch.int32, device="cuda:1"), [16], 0)
    torch.cuda.set_device(0)
    found = ops.block_attention(q, k, v, None, None, None, rows, backend=backend)
    expected = ops.block_attention(q, k, v, None, None, None, rows, backend="reference")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
