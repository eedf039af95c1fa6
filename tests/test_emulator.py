"""The emulator itself, where one is given: what tests with it rely on."""

import struct
from pathlib import Path

import pytest
import torch

from blockdraft.testing import poisoned

SOURCE = Path(__file__).parent / "support/emulated.hip"
MACHINES = {"gfx942": 0x4C, "gfx950": 0x4F}  # EF_AMDGPU_MACH in a code object's header


@pytest.fixture
def run(hip):
    def run(kernel, arch, groups, threads, x, seen):
        arguments = struct.pack("<QQ", x.data_ptr(), seen.data_ptr())
        hip.emulator.run(hip.code(SOURCE, arch), f"{kernel}.kd", groups, threads, arguments)

    return run


def test_each_architecture_has_its_own_code(hip):
    for arch, machine in MACHINES.items():
        header = hip.code(SOURCE, arch).read_bytes()[:64]
        assert struct.unpack_from("<I", header, 48)[0] & 0xFF == machine


@pytest.mark.parametrize("arch", MACHINES)
def test_workgroups_meet(arch, run):
    """One after the other, each would find what it has stored."""
    seen = torch.full((24,), -1, dtype=torch.int32)
    run("meet", arch, 24, 128, torch.zeros(1, dtype=torch.int32), seen)
    assert (seen >= 0).all() and (seen != torch.arange(24)).any()


@pytest.mark.parametrize("arch", MACHINES)
def test_a_missing_barrier_is_noticed(arch, run):
    """In some order of the waves each half finds LDS as it was: poisoned."""
    seen = torch.zeros(12, 128, dtype=torch.int32)
    run("hasty", arch, 12, 128, seen, seen)
    found = {tuple(bool((half == -1).all()) for half in row.view(2, 64)) for row in seen}
    assert found == {(True, False), (False, True)}


@pytest.mark.parametrize("arch", MACHINES)
def test_halves_in_high_registers(arch, run):
    x = torch.randn(64, dtype=torch.float16)
    seen = torch.full((64, 2), -1, dtype=torch.int32)
    run("halves", arch, 1, 64, x.view(torch.int16).int(), seen)
    assert torch.equal(seen[:, 0].short().view(torch.float16), x + x)
    assert torch.equal(seen[:, 1], (x > 0).int())


def test_loads_to_lds_arrive_at_their_wait(run):
    x = torch.randint(0, 1 << 30, (64, 4), dtype=torch.int32)
    seen = torch.zeros(64, 2, 4, dtype=torch.int32)
    run("straight", "gfx950", 1, 64, x, seen)
    assert (seen[:, 0] == -1).all() and torch.equal(seen[:, 1], x)


def test_transposing_reads(run):
    """Sixteen lanes hold four rows of sixteen; each gets a column."""
    x = torch.arange(4 * 4 * 16, dtype=torch.int16).reshape(4, 4, 16)
    seen = poisoned(4, 16, 4, dtype=torch.float16).view(torch.int16)
    run("columns", "gfx950", 1, 64, x, seen)
    assert torch.equal(seen, x.transpose(1, 2))
