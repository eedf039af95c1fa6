import shlex
from pathlib import Path

import harness
import pytest


def pytest_addoption(parser):
    parser.addoption("--native-flags", default="", help="further compiler flags for tests/support/checks.cpp, such as -fsanitize=address")
    parser.addoption("--emulator", type=Path, help="a tinygrad checkout, whose CDNA emulator runs the HIP kernels")


def pytest_configure(config):
    harness.FLAGS[:] = shlex.split(config.getoption("--native-flags"))


@pytest.fixture(scope="session")
def emulator(request, tmp_path_factory):
    checkout = request.config.getoption("--emulator")
    if checkout is None:
        pytest.skip("needs a tinygrad checkout: pytest --emulator PATH")
    from emulator import Emulator

    return Emulator(checkout, tmp_path_factory.mktemp("clang"))
