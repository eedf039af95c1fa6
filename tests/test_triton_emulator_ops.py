"""The AMD code of the other Triton kernels of a model in the emulator: pytest --emulator PATH."""

import importlib

import model_ops
import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from emulated import Emulated

from blockdraft import env
from blockdraft.triton_kernels import target

if env.triton_interpreter():
    pytest.skip("the interpreter takes the compiler's place", allow_module_level=True)

ARCHES = ["gfx942", "gfx950"]
STARTED = {
    "cca_qkv": ["convolve"],
    "commit": ["keep", "advance"],
    "fused_moe": ["gate_up", "down", "combine"],
    "moe_dispatch": ["dispatch"],
    "residual_norm": ["norm"],
    "rope_qkv": ["rotate"],
    "zaya_router": ["project", "route"],
}


@pytest.fixture
def launched(emulator, tmp_path, monkeypatch):
    """Of an architecture: runs an op's kernels; see model_ops."""

    def of_arch(arch):
        modules = {}
        for name, kernels in STARTED.items():
            modules[name] = importlib.import_module(f"blockdraft.triton_kernels.{name}")
            for kernel in kernels:
                own = Emulated(getattr(modules[name], kernel), arch, emulator, tmp_path)
                monkeypatch.setattr(modules[name], kernel, own)
        monkeypatch.setattr(target, "arch", lambda: arch)
        return lambda op, args, kind: modules[op.name].launch(args)

    return of_arch


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("unit", [torch.bfloat16, torch.float32], ids=str)
def test_commit(unit, arch, launched):
    model_ops.check_commit(unit, launched(arch))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("rows, choices, experts", [(1, 1, 1), (70, 3, 17)])
def test_moe_dispatch(rows, choices, experts, arch, launched):
    model_ops.check_dispatch(rows, choices, experts, launched(arch))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows, choices", [(20, 1), (100, 1), (30, 3)])
def test_fused_moe(rows, choices, dtype, arch, launched):
    model_ops.check_experts(rows, choices, 72, 24, dtype, launched(arch))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("format", ["fp8", "mxfp4"])
@pytest.mark.parametrize("rows, hidden, inner", [(20, 288, 160), (100, 96, 64)])
def test_experts_with_scales(rows, hidden, inner, format, arch, launched):
    model_ops.check_scaled_experts(rows, hidden, inner, format, arch, launched(arch))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("rows, top_k", [(3, 1), (20, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zaya_router(rows, top_k, dtype, arch, launched):
    model_ops.check_router(rows, top_k, dtype, launched(arch))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "dim, kernels, dtype",
    [(128, (2, 2), torch.bfloat16), (64, (3, 2), torch.float16), (40, (1, 3), torch.float32)],
)
def test_cca_qkv(dim, kernels, dtype, arch, launched):
    model_ops.check_cca(dim, kernels, dtype, launched(arch))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dim, scales", [(128, "page"), (64, None)])
def test_a_store_of_fp8(dim, scales, arch, launched):
    model_ops.check_cca_store(dim, scales, arch, launched(arch))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "dim, rotary, dtype",
    [(128, 128, torch.bfloat16), (64, 32, torch.float32), (40, 24, torch.float16)],
)
def test_rope_qkv(dim, rotary, dtype, arch, launched):
    model_ops.check_rope(dim, rotary, dtype, arch, launched(arch))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_residual_norm(dtype, arch, launched):
    model_ops.check_norm(dtype, launched(arch))
