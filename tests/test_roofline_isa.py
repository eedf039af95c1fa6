"""The reading of AMD assembly: a small listing written by hand, and kernels compiled here where the
compilers are installed."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockdraft.cli import main
from blockdraft.roofline import assembly, instructions, isa

needs_ziglang = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None,
    reason="ziglang (clang for amdgcn) is not installed",
)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

LISTING = """
	.text
toy:                                    ; @toy
; %bb.0:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
	v_exp_f32_e32 v9, v9
	s_branch .LBB0_2
.LBB0_1:                                ; an outer loop, without MFMA of its own
	v_add_f32_e32 v1, v1, v2
	v_add_f32_e32 v1, v1, v2
.LBB0_2:
	global_load_dwordx4 v[4:7], v[0:1], off
.LBB0_3:                                ; the hot loop, entered here; its latch lies below an exit
	v_mfma_f32_32x32x16_bf16 a[0:15], v[4:7], v[4:7], a[0:15]
	s_cbranch_scc1 .LBB0_5
; %bb.4:
	buffer_load_dwordx4 v[4:7], v0, s[0:3], 0 offen
	ds_read_b128 v[8:11], v3
	s_waitcnt vmcnt(0) lgkmcnt(0)
	v_mfma_f32_16x16x128_f8f6f4 v[0:3], v[4:7], v[4:7], v[0:3] cbsz:4 blgp:4
	v_exp_f32_e32 v9, v9
	s_add_i32 s6, s6, 1
	s_branch .LBB0_3
.LBB0_5:
	s_cbranch_vccnz .LBB0_1
; %bb.6:
	s_endpgm
	.section	.rodata,"a",@progbits
	.amdgpu_metadata
---
amdhsa.kernels:
  - .agpr_count:     16
    .args:
      - .name:           x
        .size:           8
    .group_segment_fixed_size: 35000
    .max_flat_workgroup_size: 256
    .name:           toy
    .private_segment_fixed_size: 8
    .sgpr_count:     20
    .sgpr_spill_count: 1
    .vgpr_count:     116
    .vgpr_spill_count: 2
amdhsa.target:   amdgcn-amd-amdhsa--gfx950
...
	.end_amdgpu_metadata
"""


def test_a_listing_is_read():
    (r,) = assembly.parse(LISTING, "gfx950")
    assert asdict(r) == {
        "kernel": "toy",
        "symbol": "toy",
        "arch": "gfx950",
        "vgpr": 100,
        "agpr": 16,
        "sgpr": 20,
        "lds": 35000,
        "scratch": 8,
        "vgpr_spill": 2,
        "sgpr_spill": 1,
        "threads": 256,
        "waves_per_simd": 4,
        "limited_by": "registers",
        "misexecuted": 0,
        "loop_instructions": 9,
        "loop_mfma": 2,
        "loop_valu": 0,
        "loop_trans": 1,
        "loop_salu": 1,
        "loop_lds": 1,
        "loop_vmem": 1,
        "loop_branch": 2,
        "loop_wait": 1,
        "loop_loads_16_bytes": 1,
        "instructions_per_mfma": 4.5,
        "loop_mfma_cycles": 32 + 16,
        "mfma_cycles_unconfirmed": False,
        "loop_issue_cycles": 36,
        "bound": "mfma",
    }
    # 64 KiB hold one workgroup: one wave a SIMD. gfx942 has neither shape
    (older,) = assembly.parse(LISTING, "gfx942")
    assert older.limited_by == "LDS"
    assert older.loop_mfma_cycles is None and older.bound == "unknown"
    assert assembly.parse(LISTING, "gfx950", dynamic_lds_bytes=60000)[0].waves_per_simd == 1


@pytest.mark.parametrize(
    "registers, lds, threads, arch, waves",
    [
        (128, 0, 256, "gfx942", 4),
        (129, 0, 256, "gfx942", 3),
        (512, 0, 256, "gfx942", 1),
        (64, 0, 64, "gfx942", 8),
        (32, 32768, 256, "gfx942", 2),
        (32, 32768, 256, "gfx950", 5),
        (32, 32768, 512, "gfx942", 4),
    ],
)
def test_occupancy(registers, lds, threads, arch, waves):
    assert assembly.occupancy(registers, lds, threads, arch)[0] == waves


@pytest.mark.parametrize(
    "arch, instruction, cycles",
    [
        ("gfx942", "v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[0:1], a[0:3]", 16),
        ("gfx942", "v_mfma_f32_32x32x8_bf16 a, v, v, a", 32),
        ("gfx942", "v_mfma_f32_32x32x8_f16 a, v, v, a", 32),
        ("gfx942", "v_mfma_f32_32x32x16_fp8_fp8 a, v, v, a", 32),
        ("gfx950", "v_mfma_f32_16x16x32_bf16 a, v, v, a", 16),
        ("gfx950", "v_mfma_f32_32x32x64_f8f6f4 a, v, v, a", 64),
        ("gfx950", "v_mfma_f32_32x32x2_f32 a, v, v, a", 64),
        ("gfx942", "v_mfma_f32_16x16x4_f32 a, v, v, a", 32),
        ("gfx950", "v_mfma_f64_16x16x4_f64 a, v, v, a", None),
    ],
)
def test_mfma_cycles(arch, instruction, cycles):
    assert instructions.mfma_cycles(instruction, arch) == cycles


WRONG = "v_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[6:7] op_sel:[0,1,0] op_sel_hi:[1,0,1]"


def test_what_gfx950_executes_wrongly_is_found():
    listing = LISTING.replace("v_exp_f32_e32 v9, v9\n\ts_branch", f"{WRONG}\n\ts_branch")
    assert WRONG in listing
    assert assembly.parse(listing, "gfx950")[0].misexecuted == 1
    assert assembly.parse(listing, "gfx942")[0].misexecuted == 0
    other = listing.replace("[0,1,0]", "[0,1,1]")
    assert assembly.parse(other, "gfx950")[0].misexecuted == 0


def test_a_kernel_without_a_loop_has_no_bound():
    listing = LISTING
    for branch in ("s_branch .LBB0_3", "s_cbranch_vccnz .LBB0_1"):
        listing = listing.replace(branch, "s_nop 0")
    (r,) = assembly.parse(listing, "gfx950")
    assert (r.loop_instructions, r.loop_mfma_cycles, r.bound) == (0, 0, "none")


def test_names_are_readable():
    symbol = (
        "_ZN10blockdraft22block_attention_kernelINS_4bf16ELi128EEEv"
        "NS_15AttentionParamsIT_EENS_13AttentionGridIS3_EE"
    )
    # without libstdc++ the symbol stays as it is
    assert assembly.short_name(symbol) in ("block_attention_kernel<bf16, 128>", symbol)
    assert assembly.short_name("attn") == "attn"


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="arch: expected one of gfx942, gfx950, got 'gfx90a'"):
        assembly.parse(LISTING, "gfx90a")
    with pytest.raises(ValueError, match="expected .amdgpu_metadata"):
        assembly.parse("s_endpgm", "gfx950")


KERNEL = """
typedef float f4 __attribute__((ext_vector_type(4)));
typedef __bf16 b4 __attribute__((ext_vector_type(4)));
typedef short s4 __attribute__((ext_vector_type(4)));
extern "C" __attribute__((global)) __attribute__((amdgpu_flat_work_group_size(64, 64)))
void product(const f4* a, f4* out, int n) {
  __attribute__((shared)) static f4 tile[64];
  int lane = __builtin_amdgcn_workitem_id_x();
  f4 acc = 0.f;
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    tile[lane] = a[i * 64 + lane];
    __builtin_amdgcn_s_barrier();
    s4 x = __builtin_bit_cast(s4, *(double*)&tile[63 - lane]);
    acc = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(x, x, acc, 0, 0, 0);
    __builtin_amdgcn_s_barrier();
  }
  out[lane] = acc;
}
"""


@needs_ziglang
def test_a_hip_kernel_is_compiled_and_reported(tmp_path):
    path = tmp_path / "product.hip"
    path.write_text(KERNEL)
    outcome = CliRunner().invoke(main, ["roofline", "isa", str(path), "--json"])
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads(outcome.output)
    assert [(r["kernel"], r["arch"]) for r in rows] == [
        ("product", "gfx942"),
        ("product", "gfx950"),
    ]
    for r in rows:
        assert (r["source"], r["lds"], r["threads"]) == ("product.hip", 1024, 64)
        assert r["vgpr_spill"] == r["sgpr_spill"] == 0
        assert 0 < r["vgpr"] + r["agpr"] < 64
        assert (r["loop_mfma"], r["loop_mfma_cycles"], r["loop_lds"]) == (1, 16, 2)
        assert r["loop_loads_16_bytes"] == 1
    command = ["roofline", "isa", str(path), "--arch", "gfx950"]
    assert "product" in CliRunner().invoke(main, command, env={"COLUMNS": "160"}).output

    path.write_text("int main( {")
    broken = CliRunner().invoke(main, command)
    assert broken.exit_code == 2
    assert "expected a source that compiles" in broken.output
    assert "error:" in broken.output


@pytest.fixture
def broken_headers(tmp_path):
    """A folder with HIP's headers as this clang sees them: it cannot compile them."""
    folder = tmp_path / "include"
    (folder / "hip").mkdir(parents=True)
    (folder / "hip/hip_runtime_api.h").write_text("#error HIP's headers were included\n")
    return folder


@needs_ziglang
def test_code_that_gfx950_executes_wrongly_fails(tmp_path):
    path = tmp_path / "product.hip"
    wrong = WRONG.replace("v[0:1], v[2:3], v[4:5], v[6:7]", "%0, %0, %0, %0")
    wrong = f'f2 y = {{acc[0], acc[1]}};\n  asm volatile("{wrong}" : "+v"(y));\n  acc[0] = y[0];'
    text = KERNEL.replace("  out[lane] = acc;", f"  {wrong}\n  out[lane] = acc;")
    path.write_text("typedef float f2 __attribute__((ext_vector_type(2)));\n" + text)
    for arch, status in (("gfx942", 0), ("gfx950", 1)):
        done = CliRunner().invoke(main, ["roofline", "isa", str(path), "--arch", arch])
        assert done.exit_code == status, done.output
        assert ("product: 1 instruction that gfx950 executes wrongly" in done.output) == status


@needs_ziglang
def test_a_source_knows_that_it_is_compiled_without_hip_s_headers(tmp_path, broken_headers):
    path = tmp_path / "product.hip"
    include = "#ifndef BLOCKDRAFT_FREESTANDING\n#include <hip/hip_runtime_api.h>\n#endif\n"
    path.write_text(include + KERNEL)
    (report,) = isa.compile_hip(path, "gfx942", [f"-I{broken_headers}"])
    assert report.kernel == "product"


@needs_ziglang
def test_hip_s_headers_do_not_disturb_the_project_s_kernels(broken_headers):
    """All kernels are launched by the same header; that of commit compiles fastest."""
    source = isa.OPS / "commit/hip.hip"
    assert isa.compile_hip(source, "gfx942", [f"-I{broken_headers}"])


def test_isa_knows_every_hip_source_of_the_ops():
    from blockdraft import ops  # noqa: F401  (registers)
    from blockdraft.registry import OPS

    assert [isa.source_name(source) for source in isa.hip_sources()] == sorted(
        name for name, op in OPS.items() if {"cpp", "triton"} <= op.backends.keys()
    )


def test_a_source_is_named_by_its_op():
    assert isa.source_name(Path("csrc/ops/commit/hip.hip")) == "commit"
    assert isa.source_name("tests/support/gemm.hip") == "gemm.hip"


@needs_ziglang
@pytest.mark.slow
def test_the_project_s_hip_kernels_do_not_spill_to_memory():
    """SGPRs may move to lanes of VGPRs: test_cdna and test_cdna_sampling bound that."""
    outcome = CliRunner().invoke(main, ["roofline", "isa", "--kind", "hip", "--json"])
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads(outcome.output)
    assert {(r["source"], r["arch"]) for r in rows} == {
        (isa.source_name(source), arch) for source in isa.hip_sources() for arch in assembly.ARCHES
    }
    for r in rows:
        assert r["vgpr_spill"] == r["scratch"] == 0, r
        assert r["bound"] in ("mfma", "issue") and r["loop_instructions"], r


TRITON_KERNEL = """
import triton
import triton.language as tl


@triton.jit
def product(a, out, n, B: tl.constexpr):
    at = tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None]
    acc = tl.zeros((B, B), tl.float32)
    for i in range(n):
        acc = tl.dot(tl.load(a + at + i * B * B), tl.load(a + at), acc)
    tl.store(out + at, acc)
"""


@needs_triton
def test_a_triton_kernel_is_compiled_and_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if importlib.util.find_spec("triton.backends.amd") is None:
        pytest.skip("this triton has no AMD backend")
    path = tmp_path / "triton_product.py"
    path.write_text(TRITON_KERNEL)
    spec = importlib.util.spec_from_file_location("triton_product", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    signature = {"a": "*bf16", "out": "*fp32", "n": "i32", "B": "constexpr"}
    report = isa.compile_triton(module.product, signature, {"B": 64}, "gfx950", {"num_warps": 4})
    monkeypatch.setattr(
        isa,
        "triton_compilations",
        lambda arch: [("product bf16", module.product, signature, {"B": 64}, {"num_warps": 4})],
    )
    listed = CliRunner().invoke(
        main, ["roofline", "isa", "--kind", "triton", "--arch", "gfx950", "--json"]
    )
    assert [(r["kernel"], r["source"], r["loop_mfma"]) for r in json.loads(listed.output)] == [
        ("product bf16", "triton_product.py", report.loop_mfma)
    ]
    assert (report.kernel, report.threads) == ("product", 256)
    assert report.loop_mfma >= 4 and report.lds > 0
    assert report.loop_mfma_cycles in (16 * report.loop_mfma, 32 * report.loop_mfma)
