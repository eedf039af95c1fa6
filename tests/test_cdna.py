"""The HIP kernels without an AMD machine: compiled offline for gfx942 and gfx950, and run in an
emulator where one is given."""

import importlib.util
import struct

import fp8
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
SAMPLERS = ("accept_drafts", "sample_drafts")  # test_cdna_sampling.py has them
SOURCES = {isa.source_name(path): path for path in isa.hip_sources()} | {
    "gemm": harness.ROOT / "tests/support/gemm.hip"
}
THREADS = 512  # of a product's workgroup


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", sorted(SOURCES.keys() - set(SAMPLERS)))
def test_compiles_without_spills(name, arch):
    for r in isa.compile_hip(SOURCES[name], arch, [f"-I{harness.ROOT}/tests/support"]):
        print(
            f"{arch} {r.kernel}: {r.vgpr} VGPR, {r.agpr} AGPR, {r.lds} B LDS, "
            f"{r.waves_per_simd} waves a SIMD; loop: {r.loop_mfma} MFMA, "
            f"{r.loop_instructions} instructions, {r.instructions_per_mfma or 0:.1f} an MFMA, "
            f"{r.loop_loads_16_bytes} 16-byte loads"
        )
        assert r.vgpr_spill == r.sgpr_spill == r.scratch == r.misexecuted == 0
        assert r.lds <= ARCHES[arch]
        if "AttentionStepE0" in r.kernel or "gemm" in r.kernel:
            assert r.loop_mfma > 0 and r.loop_loads_16_bytes > 0
        if "gemm" in r.kernel:  # a wave of attention has all registers of its SIMD
            assert r.waves_per_simd >= 2


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "dtype, mangled, depth",
    [
        (torch.float32, "f", 72),
        (torch.bfloat16, "NS_4bf16E", 200),
        (torch.bfloat16, "NS_4bf16E", 1416),
        (torch.bfloat16, "NS_4bf16E", 2184),
        (torch.float16, "NS_4fp16E", 128),
    ],
)
def test_gemm_in_the_emulator(dtype, mangled, depth, arch, hip):
    """Every product's values, and the same bits: of SplitGemm's columns, and of more."""
    rows, few, tokens = 70, 27, [3, 5, 3, 6, 0] * 10
    generator = torch.Generator().manual_seed(depth)
    w, x = (torch.randn(n, depth, generator=generator).to(dtype) for n in (rows, 7))
    bias = torch.randn(rows // 2, generator=generator)
    columns = torch.tensor(tokens, dtype=torch.int32)
    product = x.double()[columns.long()] @ w.double().T
    expected = product[:, ::2] * (product[:, 1::2] + bias)
    found = []
    again = "f" if dtype == torch.float32 else "S3_"
    kinds = [f"SplitGemmI{mangled}{again}E", f"4GemmI{mangled}Li1E{again}E"]
    if dtype != torch.float32:
        kinds.append(f"4GemmI{mangled}Li2E{again}E")
    for kind in kinds:
        count = few if kind.startswith("Split") else len(tokens)
        y = poisoned(count, rows // 2, dtype=torch.float32)
        pointers = (t.data_ptr() for t in (w, x, columns, bias, y))
        arguments = struct.pack("<QQQQQiii", *pointers, rows, count, depth)
        hip.emulator.run(hip.code(SOURCES["gemm"], arch), kind, 1, THREADS, arguments)
        assert_close(y, expected[:count])
        found.append(y[:few])
    assert all(torch.equal(found[0], other) for other in found[1:])


CASES = {  # layout, prefixes, query and KV heads, head dim, page, window, least keys of a chunk
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
    "pages of a tile, chunks": (BlockLayout(4, 5, 1), [290], (4, 1), 128, 16, 0, 128),
    "one row": (BlockLayout(0, 1, 0), [300, 130], (4, 1), 64, 64, 100, 64),
    "many columns, chunks": (BlockLayout(16, 17, 1), [330], (4, 1), 128, 16, 0, 16),
    "two row tiles": (BlockLayout(9, 10, 7), [40], (4, 1), 64, 8, 0, 2048),
    "prefill": (BlockLayout(69, 1, 0), [40], (4, 1), 64, 8, 30, 2048),
    "no cache": (BlockLayout(4, 5, 1), [0, 0], (4, 2), 128, 16, 0, 2048),
}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", harness.TYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_block_attention_in_the_emulator(name, dtype, arch, hip, scales=None):
    """As many chunks of a split as are streamed, and one, which give the same bits. scales: of a
    cache of fp8, by their shape."""
    layout, prefixes, (query_heads, kv_heads), dim, page, window, chunk = CASES[name]
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
    if max(prefixes) == 0:
        k_cache = v_cache = table = None
    given = dict(window=window)
    if scales:
        k_cache, v_cache = (cache.to(fp8.OF_ARCH[arch]) for cache in (k_cache, v_cache))
        shape = fp8.SCALES[scales](len(k_cache), kv_heads)
        for which in ("k_scale", "v_scale"):
            given[which] = 0.5 + torch.rand(shape, generator=generator)
    case = q, k, v, k_cache, v_cache, table, rows
    chunks = max(-(-max(prefixes) // chunk), 1)
    found = []
    for together in (1, 2) if "chunks" in name else (1,):
        out, lse = poisoned(*q.shape, dtype=dtype), poisoned(*q.shape[:2], dtype=torch.float32)
        workspace = poisoned(-(-chunks // together), *q.shape[:2], dim + 2, dtype=torch.float32)
        op, args = harness.captured(ops.block_attention, *case, out=out, lse=lse, **given)
        args = args._replace(workspace=workspace, chunk_keys=chunk, split_chunks=together)
        params = harness.recorded(op, args)
        hip.launch(arch, "block_attention", params, harness.TYPES[dtype])
        found.append((out, lse))
    expected, expected_lse = (
        poisoned(*q.shape, dtype=torch.float32),
        poisoned(*q.shape[:2], dtype=torch.float32),
    )
    caches = (k_cache, v_cache) if scales or table is None else (k_cache.float(), v_cache.float())
    ops.block_attention(
        q.float(),
        k.float(),
        v.float(),
        *caches,
        table,
        rows,
        out=expected,
        lse=expected_lse,
        backend="reference",
        **given,
    )
    assert_close(out, expected)
    assert_close(lse, expected_lse, dtype, name="lse")
    assert all(map(torch.equal, found[0], found[-1]))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "name, scales",
    [
        ("tidar", "one"),
        ("zyphra, dead proposals", "head"),
        ("window, causal, splits, group 8", "page"),
        ("pages of a tile, chunks", "page"),
        ("one row", "page"),
        ("many columns, chunks", "page"),
    ],
)
def test_a_cache_of_fp8_in_the_emulator(name, scales, arch, hip):
    test_block_attention_in_the_emulator(name, torch.bfloat16, arch, hip, scales)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("rows", [16, 21])
def test_every_code_in_the_emulator(rows, arch, hip):
    """Each query, of a wave's columns and of more, finds the cached token that has its number: in
    whole tiles and beyond. NaN is in the last channel."""
    stored, prefix, dim = fp8.OF_ARCH[arch], 84, 128
    codes = torch.arange(256).to(torch.uint8)
    finite = codes[codes.view(stored).float().isfinite()]
    queries = 4 * rows
    first = prefix - queries
    k_cache, v_cache = (torch.zeros(6, 16, 1, dim) for _ in range(2))
    k_cache.view(-1, dim)[torch.arange(first, prefix), torch.arange(queries)] = 2
    q = torch.zeros(rows, 4, dim, dtype=torch.bfloat16)
    q.view(queries, dim).fill_diagonal_(200)
    k = torch.zeros(rows, 1, dim, dtype=torch.bfloat16)
    v_cache = finite.repeat(-(-prefix * dim // len(finite)))[: 96 * dim].clone()
    v_cache = torch.cat([v_cache, v_cache.new_zeros(96 * dim - len(v_cache))]).view(6, 16, 1, dim)
    v_cache[..., -1] = 0
    v_cache[0, first % 16, 0, -1] = codes[codes.view(stored).float().isnan()][-1]
    packed = BlockLayout(rows - 1, 1, 0).pack(
        torch.tensor([prefix], dtype=torch.int32),
        torch.tensor([rows - 1], dtype=torch.int32),
        torch.zeros(1, 0, dtype=torch.int32),
        prefix,
    )
    out = poisoned(rows, 4, dim, dtype=torch.bfloat16)
    table = torch.arange(6, dtype=torch.int32)[None]
    caches = k_cache.to(stored), v_cache.view(stored)
    half = torch.tensor([0.5])
    given = dict(k_scale=half, v_scale=half, scale=1.0, out=out)
    op, args = harness.captured(ops.block_attention, q, k, k, *caches, table, packed, **given)
    hip.launch(arch, "block_attention", harness.recorded(op, args), 1)
    expected = v_cache.view(stored).float().view(96, dim)[first:prefix].view(rows, 4, dim) / 2
    assert out[..., -1].isnan().all()
    assert torch.equal(out[..., :-1].float(), expected[..., :-1])


FAULTS = {  # a file of csrc, what stands there, the fault; a case
    "missing barrier": (
        "ops/block_attention/body.h",
        "tile_.deposit(now.count);\n      tile_.barrier();",
        "tile_.deposit(now.count);",
        "many columns, chunks",
    ),
    "over-read": (
        "tile/cdna/attention.h",
        "least(value_row(i), n - 1)) + value_dim()",
        "value_row(i)) + value_dim()",
        "splits",
    ),
    "layout of a product": (
        "tile/cdna/attention.h",
        "return 8 * (i / 4) + 4 * half() + i % 4;",
        "return 16 * half() + i;",
        "splits",
    ),
    "unwritten split": (
        "ops/block_attention/body.h",
        "float* partial = p.partial(item_.split, row, x.head);",
        "if (item_.split == 1) return;\n"
        "      float* partial = p.partial(item_.split, row, x.head);",
        "splits",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_attention_is_caught(fault, planted):
    *planting, case = FAULTS[fault]
    kernels = planted(*planting)
    with pytest.raises(AssertionError, match="^output: "):
        test_block_attention_in_the_emulator(case, torch.bfloat16, "gfx942", kernels)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("K, P, dtype", [(15, 3, torch.float64), (63, 64, torch.float32)])
def test_plan_branches_in_the_emulator(K, P, dtype, arch, hip):
    generator = torch.Generator().manual_seed(K)
    accept, masks = torch.rand(3, K, generator=generator), torch.rand(K, K, generator=generator)
    inputs = accept.to(dtype), masks.to(dtype), P, torch.tensor([K, 5, -1], dtype=torch.int32)
    out = poisoned(3, P, dtype=torch.int32)
    params = harness.recorded(*harness.captured(ops.plan_branches, *inputs, out=out))
    hip.launch(arch, "plan_branches", params, dtype.itemsize)
    assert torch.equal(out, ops.plan_branches(*inputs, backend="reference"))
