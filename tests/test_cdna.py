"""The HIP kernels without an AMD machine: compiled offline for gfx942 and gfx950, and run in an
emulator where one is given."""

import importlib.util
import struct
from functools import cache

import harness
import pytest
import torch

from blockdraft import BlockLayout, ops
from blockdraft.roofline import isa
from blockdraft.testing import assert_close, poisoned, random_pages, random_rows

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs ziglang (a clang for amdgcn)"
)
ARCHES = {"gfx942": 64 << 10, "gfx950": 160 << 10}  # bytes of LDS
SOURCES = [
    harness.ROOT / "csrc/block_attention.hip",
    harness.ROOT / "csrc/commit.hip",
    harness.ROOT / "tests/support/gemm.hip",
]
MANGLED = {torch.float32: "f", torch.bfloat16: "NS_4bf16E", torch.float16: "NS_4fp16E"}
THREADS, COLUMNS = 512, 256  # of a workgroup, csrc/tile/cdna.h


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source, arch):
    for r in isa.compile_hip(source, arch, [f"-I{harness.ROOT}/tests/support"]):
        print(
            f"{arch} {r.kernel}: {r.vgpr} VGPR, {r.agpr} AGPR, {r.lds} B LDS, {r.waves_per_simd} waves a SIMD; loop: {r.loop_mfma} MFMA, "
            f"{r.loop_instructions} instructions, {r.instructions_per_mfma or 0:.1f} an MFMA, {r.loop_loads_16_bytes} 16-byte loads"
        )
        assert r.vgpr_spill == r.sgpr_spill == r.scratch == 0 and r.lds <= ARCHES[arch]
        if "attention_kernel" in r.kernel or "gemm" in r.kernel:
            assert r.loop_mfma > 0 and r.loop_loads_16_bytes > 0 and r.waves_per_simd >= 2


@pytest.fixture(scope="session")
def code_objects(tmp_path_factory):
    from emulator import code_object

    folder = tmp_path_factory.mktemp("code")
    return cache(
        lambda name, arch: code_object(next(s for s in SOURCES if s.stem == name), arch, folder)
    )


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "dtype, mangled, depth",
    [(torch.float32, "If", 64), (torch.bfloat16, "bf16", 64), (torch.float16, "fp16", 128)],
)
def test_gemm_in_the_emulator(dtype, mangled, depth, arch, emulator, code_objects):
    a, b = (torch.randn(size, depth).to(dtype) for size in (70, 250))
    c = poisoned(70, 250, dtype=torch.float32)
    emulator.run(
        code_objects("gemm", arch),
        mangled,
        1,
        THREADS,
        struct.pack("<QQQiif", a.data_ptr(), b.data_ptr(), c.data_ptr(), 70, 250, 0.5),
    )
    assert_close(c, 0.5 * a.double() @ b.double().T)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("unit", [torch.bfloat16, torch.float32, "16 bytes"], ids=str)
def test_commit_in_the_emulator(unit, arch, emulator, code_objects):
    dtype, size = (torch.float32, 4) if unit == "16 bytes" else (unit, 1)
    states = []
    for run in ("mine", "reference"):
        generator = torch.Generator().manual_seed(2)
        rows = random_rows(BlockLayout(4, 2, 1), [0, 3, 9], generator)
        total = int(rows.cu_rows[-1])
        qk, v_late = (torch.randn(2, total, n, generator=generator).to(dtype) for n in (24, 4))
        conv_state, late_state = (
            torch.randn(2, 3, *n, generator=generator).to(dtype) for n in ((5, 24), (4,))
        )
        case = (
            qk,
            v_late,
            torch.minimum(rows.draft_len, torch.tensor([0, 2, 4])).int(),
            rows,
            conv_state,
            late_state,
            torch.tensor([2, 0, 1], dtype=torch.int32),
        )
        if run == "mine":
            params = harness.commit_params(*case)
            for field in (
                "qk_layer",
                "qk_row",
                "v_layer",
                "v_row",
                "conv_layer",
                "conv_slot",
                "conv_tap",
                "late_layer",
                "late_slot",
                "channels",
                "half",
            ):
                setattr(params, field, getattr(params, field) // size)
            name = {torch.bfloat16: "kernelIt", torch.float32: "kernelIj"}.get(unit, "kernelIDv2")
            emulator.run(code_objects("commit", arch), name, 3, 1024, bytes(params))
        else:
            ops.commit(*case, backend="reference")
        states.append((conv_state, late_state, rows.prefix_lens))
    assert all(torch.equal(a, b) for a, b in zip(*states))


CASES = {  # layout, prefixes, query and KV heads, head dim, page, window, least keys of a split
    "tidar": (BlockLayout.tidar(16, P=3), [5, 0], (4, 1), 128, 16, 0, 2048),
    "zyphra, dead proposals": (BlockLayout.zyphra(16, P=2), [33], (8, 2), 64, 8, 0, 2048),
    "splits": (BlockLayout(4, 5, 3), [0, 70, 41], (4, 2), 128, 8, 0, 32),
    "window, causal, splits, group 8": (
        BlockLayout(4, 5, 3, bidirectional=False),
        [0, 70, 41],
        (8, 1),
        64,
        8,
        20,
        32,
    ),
    "no grouping": (BlockLayout(4, 5, 5), [9, 64], (2, 2), 128, 32, 0, 2048),
    "two row tiles": (BlockLayout(9, 10, 7), [40], (4, 1), 64, 8, 0, 2048),
    "prefill": (BlockLayout(69, 1, 0), [40], (4, 1), 64, 8, 30, 2048),
}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", harness.TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_block_attention_in_the_emulator(name, dtype, arch, emulator, code_objects):
    layout, prefixes, (query_heads, kv_heads), dim, page, window, split = CASES[name]
    generator = torch.Generator().manual_seed(1)
    rows = random_rows(layout, prefixes, generator, 0.5 if "dead" in name else 0.1)
    total = int(rows.cu_rows[-1])
    # strided rows
    packed = torch.randn(total, query_heads + 2 * kv_heads, dim, generator=generator).to(dtype)
    packed[~rows.table(total).live] = torch.nan
    q, k, v = packed.split([query_heads, kv_heads, kv_heads], 1)
    past = [
        [torch.randn(n, kv_heads, dim, generator=generator).to(dtype) for n in prefixes]
        for _ in range(2)
    ]
    (k_cache, table), (v_cache, _) = (
        random_pages(p, prefixes, page, torch.Generator().manual_seed(9)) for p in past
    )
    out, lse = poisoned(*q.shape, dtype=dtype), poisoned(*q.shape[:2], dtype=torch.float32)
    splits = max(-(-max(prefixes) // split), 1)
    workspace = poisoned(splits, *q.shape[:2], dim + 2, dtype=torch.float32)
    case = q, k, v, k_cache, v_cache, table, rows
    params = bytes(harness.attention_params(*case, out, lse, workspace, split=split, window=window))
    tiles = -(-rows.max_rows // (COLUMNS * kv_heads // query_heads))
    items = len(prefixes) * kv_heads * splits * tiles
    code = code_objects("block_attention", arch)
    emulator.run(
        code,
        f"block_attention_kernelI{MANGLED[dtype]}Li{dim}E",
        -(-items // 8) * 8,
        THREADS,
        params + struct.pack("<iiiiq", COLUMNS, tiles, splits, 0, items),
    )
    if splits > 1:
        emulator.run(
            code,
            f"merge_kernelI{MANGLED[dtype]}E",
            len(prefixes) * rows.max_rows * query_heads,
            64,
            params,
        )
    expected, expected_lse = (
        poisoned(*q.shape, dtype=torch.float32),
        poisoned(*q.shape[:2], dtype=torch.float32),
    )
    ops.block_attention(
        *(t.float() for t in case[:5]),
        table,
        rows,
        window=window,
        out=expected,
        lse=expected_lse,
        backend="reference",
    )
    assert_close(out, expected)
    assert_close(lse, expected_lse, dtype, name="lse")
