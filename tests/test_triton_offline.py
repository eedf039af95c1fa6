"""The Triton kernels compiled for AMD without an AMD machine: registers, spills, LDS and the hot
loop."""

import re

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from blockdraft import env
from blockdraft.roofline import isa
from blockdraft.roofline.assembly import hot_loop, instructions, loads_16_bytes, parse
from blockdraft.triton_kernels import offline

if env.triton_interpreter():
    pytest.skip("the interpreter takes the compiler's place", allow_module_level=True)

LDS = {"gfx942": 64 << 10, "gfx950": 160 << 10}
MFMA = {
    ("gfx942", "bf16"): "16_bf16",
    ("gfx942", "fp16"): "16_f16",
    ("gfx942", "fp32"): "4_f32",
    ("gfx950", "bf16"): "32_bf16",
    ("gfx950", "fp16"): "32_f16",
    ("gfx950", "fp32"): "4_f32",
}
QUICK = (
    "attend bf16 dim=128 rows=64",
    "attend bf16 dim=128 rows=64 fp8",
    "merge bf16 dim=128",
    "convolve bf16",
    "convolve bf16 fp8",
    "dispatch experts=16",
    "plan P=3",
    "gate_up bf16 rows=16",
    "down bf16 rows=272",
    "project bf16",
    "route bf16",
    "keep bf16",
    "accept block step=0 bf16",
    "accept block step=4 bf16",
    "accept block step=5 bf16",
    "accept truncated step=1 bf16",
    "accept truncated step=2 bf16",
    "accept truncated step=3 bf16",
    "sample plain measure bf16",
    "sample plain finish bf16",
    "sample truncated finish bf16",
)
CASES = [
    pytest.param(
        arch, case, id=f"{arch} {case[0]}", marks=[] if case[0] in QUICK else [pytest.mark.slow]
    )
    for arch in LDS
    for case in isa.triton_compilations(arch)
]


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_the_compiler_understands_every_kernel(kind):
    """The interpreter runs programs whose names change their types, which no GPU does."""
    seen = 0
    for name, *source in isa.triton_compilations("gfx950"):
        found = re.search("fp16|fp32", name)
        if (found[0] if found else "bf16") == kind:
            offline.read("gfx950", *source)
            seen += 1
    assert seen >= 60


@pytest.mark.parametrize(
    "absent",
    [
        "touched counts repetition presence frequency bias_ids bias",
        "bias_ids bias",
        "allowed",
        "mix",
    ],
)
def test_the_compiler_understands_samplers_without_an_option(absent):
    seen = 0
    for name, kernel, types, constants, options in isa.triton_compilations("gfx950"):
        if " full " in name and name.endswith("bf16"):
            names = absent.replace("allowed", "allowed draft_allowed").split()
            fewer = dict.fromkeys(p.name for p in kernel.params if p.name in names)
            offline.read("gfx950", kernel, types, constants | fewer, options)
            seen += 1
    assert seen >= 12


@pytest.mark.parametrize("arch, case", CASES)
def test_code(arch, case):
    name, *source = case
    compiled = offline.build(arch, *source)
    found = parse(compiled.asm["amdgcn"], arch, compiled.metadata.shared)[0]
    print(f"{name}: {found}")
    assert found.vgpr_spill == found.scratch == found.misexecuted == 0
    scans, measures = name.startswith(("accept", "sample")), "measure" in name or "step=0" in name
    code = instructions(found.symbol, compiled.asm["amdgcn"])
    # Scalars that are parked in lanes of a vector register. Kernels that conclude park some;
    # convolve some of the descriptors of its twenty buffers; measures of fp32, and attention to
    # fp8 by windows, what is read after the loop; kernels with every option their arguments.
    parked = 96 if scans and not measures else 8 if name.startswith("convolve") else 0
    if name.startswith("accept truncated step=2"):  # code for two kinds of rows
        parked = 128
    if "fp8 window" in name:
        parked = 9
    if measures and name.endswith("fp32"):
        parked = 10
    full = " full " in name
    if full:
        parked = 384
    assert found.sgpr_spill <= parked
    if measures or full:
        # three lanes have a reduction's results; the loop of `full` is over penalties
        loop = hot_loop(code)
        moved = [op for op in loop if op.startswith(("v_readlane", "v_writelane"))]
        assert loop and len(moved) <= (12 if full else 3)
    assert found.lds <= LDS[arch]
    loads = sum(map(loads_16_bytes, code)) if full else found.loop_loads_16_bytes
    assert not measures or loads >= 2
    if name.startswith("attend"):
        kind = name.split()[1]
        # operands as they are
        assert set(re.findall(r"v_mfma_\w+", compiled.asm["amdgcn"])) == {
            f"v_mfma_f32_16x16x{MFMA[arch, kind]}"
        }
        # a tile of fp8 with head dim 64 has 8 bytes for each lane
        narrow = "dim=64" in name and "fp8" in name
        assert found.loop_mfma and (narrow or found.loop_loads_16_bytes >= 2)
        # 64 or 128 columns: each row's sums are made in the same way, in one wave
        assert set(
            re.findall(
                r"warpsPerCTA = (\[\d, \d\]), instrShape = (\[\d+, \d+)", compiled.asm["ttgir"]
            )
        ) == {("[4, 1]", "[16, 16")}
