"""The tile layer's tests (kernels on the host and on sim, fuzzed) in other builds: under
AddressSanitizer and UndefinedBehaviorSanitizer, and for the CPUs that the extension has variants
for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blockdraft import native

TESTS = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("tile", "sampling_kernels")]
SANITIZED = "-g -fsanitize=address,undefined -fno-sanitize-recover=all"
BUILDS = {
    "sanitizers": SANITIZED,
    "sanitizers, AVX-512": f"{SANITIZED} -march=x86-64-v4",
    "AVX2": "-O3 -march=x86-64-v3",
    "AVX-512": "-O3 -march=x86-64-v4",
}


def runs(build: str) -> bool:
    return "v4" not in BUILDS[build] or native.load("_probe").has_avx512()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("build", BUILDS)
def test_passes(build):
    if not runs(build):
        pytest.skip("this CPU has no AVX-512")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if SANITIZED in BUILDS[build]:
        asked = subprocess.run(
            ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        )
        environment |= dict(LD_PRELOAD=asked.stdout.strip(), ASAN_OPTIONS="detect_leaks=0")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *TESTS,
            f"--native-flags={BUILDS[build]}",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, (
        done.stdout[-3000:] + done.stderr[-3000:]
    )
    print(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(
    native.load("_probe").__name__ == "blockdraft._probe",
    reason="it is the variant that all tests run",
)
def test_the_extension_for_avx2():
    """Tests of the C++ ops, with the variant that this CPU would not choose."""
    ops = (
        "block_attention",
        "cca_qkv",
        "commit",
        "fused_moe",
        "linear",
        "sampling_backends",
        "scaled_experts",
        "zaya_router",
    )
    tests = [str(Path(__file__).with_name(f"test_{op}.py")) for op in ops]
    script = (
        "import sys, pytest; from blockdraft import _probe; _probe.has_avx512 = lambda: False; "
        "import blockdraft.ops; "
        "assert 'blockdraft._ops' in sys.modules; sys.exit(pytest.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "-q", "-p", "no:cacheprovider", "-k", "cpp", *tests],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, (
        done.stdout[-3000:] + done.stderr[-3000:]
    )
