"""The ops of a model but attention and sampling: the AMD code of their HIP and Triton kernels in an
emulator of the instructions (pytest --emulator PATH)."""

import importlib

import harness
import model_ops
import pytest
import torch

from blockdraft import env
from blockdraft.ops import _triton

ARCHES = ["gfx942", "gfx950"]
TRITON = {  # the kernels that an op's launcher starts
    "cca_qkv": ["convolve"],
    "commit": ["keep", "advance"],
    "fused_moe": ["gate_up", "down", "combine"],
    "moe_dispatch": ["dispatch"],
    "residual_norm": ["norm"],
    "rope_qkv": ["rotate"],
    "zaya_router": ["project", "route"],
}


def hip_launch(arch, request):
    hip = request.getfixturevalue("hip")
    return lambda op, args, kind: hip.launch(arch, op.name, harness.recorded(op, args), kind)


def triton_launch(arch, request):
    if _triton.MISSING or env.triton_interpreter():
        pytest.skip(_triton.MISSING or "the interpreter takes the compiler's place")
    from emulated import Emulated

    emulator, folder, patch = map(request.getfixturevalue, ("emulator", "tmp_path", "monkeypatch"))
    package = "blockdraft.triton_kernels"
    modules = {name: importlib.import_module(f"{package}.{name}") for name in TRITON}
    for name, kernels in TRITON.items():
        for kernel in kernels:
            own = Emulated(getattr(modules[name], kernel), arch, emulator, folder)
            patch.setattr(modules[name], kernel, own)
    patch.setattr(importlib.import_module(f"{package}.target"), "arch", lambda: arch)
    return lambda op, args, kind: modules[op.name].launch(args)


@pytest.fixture(params=[hip_launch, triton_launch], ids=["hip", "triton"])
def launched(request, emulator):
    """Of an architecture: runs an op's kernels; see model_ops."""
    return lambda arch: request.param(arch, request)


pytestmark = pytest.mark.parametrize("arch", ARCHES)


@pytest.mark.parametrize("unit", [torch.bfloat16, torch.float32, "16 bytes"], ids=str)
def test_commit(unit, arch, launched):
    model_ops.check_commit(unit, launched(arch))


@pytest.mark.parametrize("rows, choices, experts", [(1, 1, 1), (70, 3, 17), (40, 1, 300)])
def test_moe_dispatch(rows, choices, experts, arch, launched):
    model_ops.check_dispatch(rows, choices, experts, launched(arch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows, choices", [(20, 1), (70, 1), (100, 1), (30, 3)])
def test_fused_moe(rows, choices, dtype, arch, launched):
    """Few pairs and many (whose sort is another launch), several choices."""
    model_ops.check_experts(rows, choices, 72, 24, dtype, launched(arch))


@pytest.mark.parametrize("format", ["fp8", "mxfp4"])
@pytest.mark.parametrize("rows, hidden, inner", [(20, 288, 160), (70, 96, 64), (100, 96, 64)])
def test_experts_with_scales(rows, hidden, inner, format, arch, launched):
    """Depths that end within a stage and within a block of scales; few pairs and many."""
    model_ops.check_scaled_experts(rows, hidden, inner, format, arch, launched(arch))


@pytest.mark.parametrize("rows, top_k", [(3, 1), (20, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_zaya_router(rows, top_k, dtype, arch, launched):
    """Channels that fill no tile, and more tokens than a group routes."""
    model_ops.check_router(rows, top_k, dtype, launched(arch))


@pytest.mark.parametrize(
    "dim, kernels, dtype",
    [
        (128, (2, 2), torch.bfloat16),
        (64, (3, 2), torch.float16),
        (64, (2, 2), torch.float32),
        (40, (1, 3), torch.bfloat16),
        (40, (1, 3), torch.float32),
    ],
)
def test_cca_qkv(dim, kernels, dtype, arch, launched):
    model_ops.check_cca(dim, kernels, dtype, launched(arch))


@pytest.mark.parametrize("dim, scales", [(128, "page"), (64, "head"), (64, None)])
def test_a_store_of_fp8(dim, scales, arch, launched):
    model_ops.check_cca_store(dim, scales, arch, launched(arch))


@pytest.mark.parametrize(
    "dim, rotary, dtype",
    [(128, 128, torch.bfloat16), (64, 32, torch.float32), (40, 24, torch.float16)],
)
def test_rope_qkv(dim, rotary, dtype, arch, launched):
    model_ops.check_rope(dim, rotary, dtype, arch, launched(arch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_residual_norm(dtype, arch, launched):
    """A row of more than eight elements a lane, and one of fewer lanes than a wave."""
    model_ops.check_norm(dtype, launched(arch))
