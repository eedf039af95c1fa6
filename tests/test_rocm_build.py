"""The torch side of a ROCm build, without ROCm: it compiles, and a launch goes to its tensors'
device, also where another is the current one."""

import importlib.util
import runpy
import shutil
import subprocess
import sysconfig
from pathlib import Path

import harness
import pytest
import samples
import setuptools
import torch
from torch.utils import cpp_extension

from blockdraft.roofline.launches import launches

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


@pytest.fixture
def rocm(monkeypatch):
    """The extensions that setup.py would build with a ROCm torch whose SDK lies in `home`."""

    def extensions(home):
        monkeypatch.setattr(torch.version, "hip", "7.1")
        monkeypatch.setattr(cpp_extension, "ROCM_HOME", home)
        monkeypatch.setenv("PYTORCH_ROCM_ARCH", "gfx942")
        monkeypatch.chdir(ROOT)
        built = {}
        monkeypatch.setattr(setuptools, "setup", lambda **options: built.update(options))
        runpy.run_path("setup.py", run_name="__main__")
        return built["ext_modules"]

    return extensions


def test_the_rocm_build_needs_an_sdk(rocm):
    with pytest.raises(SystemExit, match="expected ROCm's headers .*set ROCM_HOME"):
        rocm(None)


def test_the_rocm_build_has_the_hip_sources(rocm):
    (ops,) = (e for e in rocm("/opt/rocm") if "_ops" in e.name)
    assert "/opt/rocm/include" in ops.include_dirs and "/opt/rocm/lib" in ops.library_dirs
    assert {Path(s).parent.name for s in ops.sources if s.endswith(".hip")} == {
        path.parent.name for path in ROOT.glob("csrc/ops/*/hip.hip")
    }


@pytest.mark.skipif(
    harness.hip_headers() is None or importlib.util.find_spec("ziglang") is None,
    reason="needs triton, whose wheel has HIP's headers, and ziglang, a clang for HIP",
)
@pytest.mark.parametrize("op", sorted(path.parent.name for path in ROOT.glob("csrc/ops/*/hip.hip")))
def test_an_op_s_launcher_starts_its_kernels(op):
    """The host's part of its .hip file, on a HIP that reports launches."""
    made = []
    params = harness.recorded(*harness.captured(samples.calls()[op]))
    kind = 4 if op in ("commit", "plan_branches") else harness.TYPES[torch.float32]
    harness.launched(op, params, kind, made.append)
    options = dict(rule="token", logprob=True) if op == "accept_drafts" else {}
    assert len(made) == launches(op, **options)
    for launch in made:
        assert launch.op == op and launch.groups > 0 and launch.threads % 64 == 0
