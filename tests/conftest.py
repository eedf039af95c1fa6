"""Options of the slower checks; the reason where tests of the Triton kernels cannot run."""

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

import harness
import pytest
import torch

from blockdraft import env, ops  # noqa: F401  (ops registers)
from blockdraft.roofline import isa, verdicts

# Whose Triton kernels multiply or round
PRODUCTS = (
    "test_block_attention.py",
    "test_cca_qkv.py",
    "test_fused_moe.py",
    "test_rope_qkv.py",
    "test_scaled_experts.py",
    "test_zaya_router.py",
)


def pytest_runtest_setup(item):
    values = item.callspec.params if hasattr(item, "callspec") else {}
    if values.get("backend") != "triton":
        return
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if env.triton_interpreter():
        if values.get("dtype") == torch.bfloat16 and item.path.name in PRODUCTS:
            pytest.skip(
                "Triton's interpreter multiplies bfloat16 wrongly; "
                "test_triton_offline.py looks at the code"
            )
    elif not torch.cuda.is_available():
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1: test_triton.py runs it so")


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker waits for them in the end."""
    items.sort(key=lambda item: "test_interpreted" not in item.name)


@pytest.fixture(autouse=True, scope="session")
def short_splits():
    """The interpreter is slow: prefixes of a few dozen keys already have several splits."""
    if env.triton_interpreter():
        sys.modules["blockdraft.ops.block_attention"].chunk_keys = lambda device: 16


def pytest_addoption(parser):
    parser.addoption(
        "--native-flags",
        default="",
        help="further compiler flags for tests/support/checks.cpp, such as -fsanitize=address",
    )
    parser.addoption(
        "--emulator",
        type=Path,
        help="a tinygrad checkout, whose CDNA emulator runs the HIP kernels",
    )

    parser.addoption(
        "--verdicts",
        type=Path,
        help="file to which to add what the emulator said of each kernel, for `roofline isa`",
    )

    for stack in ("sglang", "vllm"):
        message = f"where its wheel is unpacked, for tests/test_{stack}.py"
        parser.addoption(f"--{stack}", type=Path, help=message)
    parser.addoption("--wheel", type=Path, help="what `make wheel` built, for tests/test_wheel.py")


def pytest_configure(config):
    harness.FLAGS[:] = shlex.split(config.getoption("--native-flags"))
    path = config.getoption("--verdicts")
    if path and path.exists():
        VERDICTS.tests = verdicts.load(path).tests


VERDICTS = verdicts.Verdicts()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    emulator = getattr(item, "funcargs", {}).get("emulator")
    if call.when == "call" and emulator:
        for arch, kernel, code in emulator.ran:
            VERDICTS.add(arch, kernel, code, report.passed)
        emulator.ran.clear()
    return report


def pytest_sessionfinish(session):
    if path := session.config.getoption("--verdicts"):
        VERDICTS.save(path)


@pytest.fixture(scope="session")
def emulator(request, tmp_path_factory):
    checkout = request.config.getoption("--emulator")
    if checkout is None:
        pytest.skip("needs a tinygrad checkout: pytest --emulator PATH")
    from emulator import Emulator

    return Emulator(checkout, tmp_path_factory.mktemp("clang"))


@pytest.fixture(scope="session")
def hip(emulator, tmp_path_factory):
    from emulator import HipKernels

    if harness.hip_headers() is None:
        pytest.skip("needs triton, whose wheel has HIP's headers")
    return HipKernels(emulator, tmp_path_factory.mktemp("code"))


@pytest.fixture
def planted(hip, tmp_path, monkeypatch):
    """A function that puts a fault in one place of a copy of csrc, and gives its kernels."""
    from emulator import HipKernels

    def plant(path: str, right: str, wrong: str):
        folder = shutil.copytree(isa.CSRC, tmp_path / "csrc")
        text = (folder / path).read_text()
        assert text.count(right) == 1, f"the fault's place moved: {right}"
        (folder / path).write_text(text.replace(right, wrong))
        monkeypatch.setattr(isa, "CSRC", folder)
        monkeypatch.setattr(isa, "OPS", folder / "ops")
        return HipKernels(hip.emulator, tmp_path)

    return plant
