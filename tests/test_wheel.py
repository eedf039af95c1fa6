"""The wheel in environments of its own, without this repository and without a compiler:
`make wheel wheel-check`. pip fills them from where it finds packages."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import readme

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
COMPILERS = ["cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "hipcc"]


class Environment:
    """A new one, in which there are `packages`, of the versions that CI has."""

    def __init__(self, *packages: str) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="blockdraft-")
        self.folder = Path(self._kept.name)
        self.bin = self.folder / "venv/bin"
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        pip = [self.bin / "python", "-m", "pip", "install", "-q"]
        constraints = ROOT / ".ci/requirements.txt"
        subprocess.run([*pip, "-c", constraints, *packages], check=True, cwd=self.folder)

    def run(self, *command: str | Path, **variables: str) -> str:
        """What a command prints. Nothing but the environment's own programs is on its path."""
        home = {"HOME": str(self.folder), "PATH": str(self.bin), "NO_COLOR": "1"}
        program = self.bin / command[0]
        done = subprocess.run(
            [program, *command[1:]],
            cwd=self.folder,
            env=home | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        print(f"$ {' '.join(map(str, command))}\n{done.stdout[-1500:]}")
        return done.stdout


@pytest.fixture(scope="module")
def wheel(request) -> Path:
    path = request.config.getoption("--wheel")
    if path is None:
        pytest.skip("needs the wheel: make wheel wheel-check")
    return path.resolve()


@pytest.fixture(scope="module")
def installed(wheel) -> Environment:
    return Environment(f"blockdraft[bench] @ file://{wheel}")


def test_contents(wheel):
    """One folder; the kernels for AVX2 and for AVX-512."""
    assert wheel.name.endswith("-cp310-abi3-manylinux_2_28_x86_64.whl")
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.partition("/")[0] for name in names}
    assert len(folders) == 2 and all(folder.startswith("blockdraft") for folder in folders)
    modules = {name for name in names if name.endswith(".so")}
    names = "_ops", "_ops_avx512", "_probe", "_probe_avx512"
    assert modules == {f"blockdraft/{name}.abi3.so" for name in names}


def test_symbols(wheel):
    """auditwheel finds nothing newer than glibc 2.28, but for torch's libraries."""
    command = [sys.executable, "-m", "auditwheel", "show", wheel]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(shown)
    limit = shown.replace("\n", " ").partition('platform tag to "manylinux_2_')[2].partition("_")[0]
    assert int(limit) <= 28


def test_without_torch(wheel):
    planner = Environment(str(wheel))
    assert "MI355X" in planner.run("blockdraft", "roofline", "blocks")
    planner.run("blockdraft", "roofline", "plan", "--mean", "4.6", "--batch", "16")
    planner.run("python", "-c", "from blockdraft.roofline import Study; Study().plan().to_rows()")
    planner.run("python", "-c", "import importlib.util as i; assert i.find_spec('torch') is None")


def test_the_environment_is_clean(installed):
    """Nor are there packages of ours beside blockdraft."""
    for name in COMPILERS:
        assert not (installed.bin / name).exists()
    code = "import blockdraft, os; print(os.path.dirname(blockdraft.__file__))"
    folder = Path(installed.run("python", "-c", code).strip())
    assert folder.is_relative_to(installed.folder)
    own = {"triton_kernels", "bench", "tests", "roofline", "train", "csrc"}
    assert not own & set(os.listdir(folder.parent))


def test_readme(installed):
    (installed.folder / "program.py").write_text(readme.program())
    installed.run("python", "program.py")


@pytest.mark.parametrize(
    "command",
    ["info", "demo --prompts 2 --tokens 100", "bench all --quick", "roofline blocks"],
)
def test_command(installed, command):
    shown = installed.run("blockdraft", *command.split(), COLUMNS="200")
    if command == "info":
        assert "yes, on the CPU" in shown and "not built" not in shown


def test_hub(installed, tmp_path):
    """The layout that it writes, in an environment with `kernels`, which has no blockdraft."""
    out = tmp_path / "hub"
    installed.run("python", "-m", "blockdraft.integrations.hub", out)
    other = Environment("torch", "kernels==0.17.2")
    script, repository = ROOT / "tests/support/hub.py", "someone/blockdraft"
    for folder in (out, _universal(out, tmp_path / "universal")):
        local = f"{repository}={folder / 'build'}"
        other.run("python", script, folder, repository, LOCAL_KERNELS=local)


def _universal(layout: Path, out: Path) -> Path:
    """Of a layout, the variant without compiled code alone."""
    (out / "build").mkdir(parents=True)
    (layout / "build/torch-universal").rename(out / "build/torch-universal")
    return out
