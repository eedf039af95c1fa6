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
SOURCES = {
    "block_attention": harness.ROOT / "csrc/ops/block_attention/hip.hip",
    "commit": harness.ROOT / "csrc/ops/commit/hip.hip",
    "gemm": harness.ROOT / "tests/support/gemm.hip",
}
MANGLED = {torch.float32: "f", torch.bfloat16: "NS_4bf16E", torch.float16: "NS_4fp16E"}
THREADS, COLUMNS = 512, 256  # of a workgroup, csrc/tile/cdna.h


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", SOURCES)
def test_compiles_without_spills(name, arch):
    for r in isa.compile_hip(SOURCES[name], arch, [f"-I{harness.ROOT}/tests/support"]):
        print(
            f"{arch} {r.kernel}: {r.vgpr} VGPR, {r.agpr} AGPR, {r.lds} B LDS, "
            f"{r.waves_per_simd} waves a SIMD; loop: {r.loop_mfma} MFMA, "
            f"{r.loop_instructions} instructions, {r.instructions_per_mfma or 0:.1f} an MFMA, "
            f"{r.loop_loads_16_bytes} 16-byte loads"
        )
        assert r.vgpr_spill == r.sgpr_spill == r.scratch == 0 and r.lds <= ARCHES[arch]
        if "AttentionStepE0" in r.kernel or "gemm" in r.kernel:
            assert r.loop_mfma > 0 and r.loop_loads_16_bytes > 0 and r.waves_per_simd >= 2


@pytest.fixture(scope="session")
def code_objects(tmp_path_factory):
    from emulator import code_object

    folder = tmp_path_factory.mktemp("code")
    return cache(lambda name, arch: code_object(SOURCES[name], arch, folder, name))


def launch(op, params, code, dtype, emulator, threads, group_columns=0, last=""):
    """The op's own schedule, each launch in the emulator. `threads` of each step; `last`: what ends
    the template arguments of the first step's kernel."""
    for step, groups in harness.schedule(op, params, group_columns):
        name = f"{op}_kernelI{MANGLED[dtype]}"
        step_name = {"block_attention": "AttentionStep"}[op]
        full = f"{name}LNS_{len(step_name)}{step_name}E{step}E" + (last if step == 0 else "E")
        padded = -(-groups // 8) * 8 if step == 0 else groups
        emulator.run(code, full, padded, threads[step], params.raw[:-1])


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "dtype, mangled, depth",
    [(torch.float32, "If", 72), (torch.bfloat16, "bf16", 200), (torch.float16, "fp16", 128)],
)
def test_gemm_in_the_emulator(dtype, mangled, depth, arch, emulator, code_objects):
    rows, tokens = 70, [3, -1, 3, 6, 0] * 7
    w, x = (torch.randn(n, depth).to(dtype) for n in (rows, 7))
    bias, columns = torch.randn(rows // 2), torch.tensor(tokens, dtype=torch.int32)
    y = poisoned(len(tokens), rows // 2, dtype=torch.float32)
    pointers = (t.data_ptr() for t in (w, x, columns, bias, y))
    arguments = struct.pack("<QQQQQiii", *pointers, rows, len(tokens), depth)
    emulator.run(code_objects("gemm", arch), mangled, 1, THREADS, arguments)
    gathered = x.double()[columns.clamp(min=0).long()] * (columns >= 0)[:, None]
    product = gathered @ w.double().T
    assert_close(y, product[:, ::2] * (product[:, 1::2] + bias))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("unit", [torch.bfloat16, torch.float32, "16 bytes"], ids=str)
def test_commit_in_the_emulator(unit, arch, emulator, code_objects):
    dtype, channels = (torch.float32, 24) if unit == "16 bytes" else (unit, 22)
    states = []
    for run in ("mine", "reference"):
        generator = torch.Generator().manual_seed(2)
        rows = random_rows(BlockLayout(4, 2, 1), [0, 3, 9], generator)
        total = int(rows.cu_rows[-1])
        qk, v_late = (
            torch.randn(2, total, n, generator=generator).to(dtype) for n in (channels, 4)
        )
        conv_state, late_state = (
            torch.randn(2, 3, *n, generator=generator).to(dtype) for n in ((5, channels), (4,))
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
            params = harness.recorded(*harness.captured(ops.commit, *case))
            name = {torch.bfloat16: "kernelIt", torch.float32: "kernelIj"}.get(unit, "kernelIDv2")
            emulator.run(code_objects("commit", arch), name, 3, 1024, params.raw[:-1])
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
    op, args = harness.captured(ops.block_attention, *case, out=out, lse=lse, window=window)
    args = args._replace(workspace=workspace, split_keys=split)
    params = harness.recorded(op, args)
    code = code_objects("block_attention", arch)
    threads, last = {0: THREADS, 1: 64}, f"Li{dim}EE"
    launch("block_attention", params, code, dtype, emulator, threads, COLUMNS, last)
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
