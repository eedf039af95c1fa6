"""The Triton kernels' AMD code, launched by their own launcher, in an emulator of the instructions:
pytest --emulator PATH."""

import fp8
import pytest
import torch
from harness import captured
from sampling_cases import PLAIN, compare, compare_samples

pytest.importorskip("triton", reason="triton is not installed")

from emulated import Emulated

from blockdraft import BlockLayout, env, ops
from blockdraft.ops import _triton
from blockdraft.testing import assert_close, poisoned, random_pages, random_rows
from blockdraft.triton_kernels import (
    accept_drafts,
    block_attention,
    plan_branches,
    sample_drafts,
)

if env.triton_interpreter():
    pytest.skip("the interpreter takes the compiler's place", allow_module_level=True)


@pytest.fixture
def emulated(emulator, tmp_path, monkeypatch):
    """Attention's kernels are those of an architecture."""

    def replace(arch):
        monkeypatch.setattr(block_attention, "arch", lambda: arch)
        for name in ("attend", "merge"):
            kernel = Emulated(getattr(block_attention, name), arch, emulator, tmp_path)
            monkeypatch.setattr(block_attention, name, kernel)

    return replace


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [0, 12])
def test_attention_in_the_emulator(window, dtype, arch, emulated, scales=None):
    """Dead rows, three chunks of a prefix, none, pages of NaN. Two chunks of a split give the same
    bits as one. scales: of a cache of fp8, by their shape."""
    emulated(arch)
    generator = torch.Generator().manual_seed(1)
    prefixes = [150, 0]
    rows = random_rows(BlockLayout(3, 4, 2, bidirectional=not window), prefixes, generator)
    total = int(rows.cu_rows[-1])
    q, k, v = (torch.randn(total, heads, 64, generator=generator).to(dtype) for heads in (2, 1, 1))
    past = [torch.randn(n, 1, 64, generator=generator).to(dtype) for n in prefixes]
    cache, table = random_pages(past, prefixes, 16, generator)
    given = dict(scale=0.125, window=window)
    if scales:
        cache = cache.to(fp8.OF_ARCH[arch])
        for which in ("k_scale", "v_scale"):
            shape = fp8.SCALES[scales](len(cache), 1)
            given[which] = 0.5 + torch.rand(shape, generator=generator)
    case = q, k, v, cache, cache, table, rows
    found = []
    for together in (1, 2):
        out, lse = poisoned(total, 2, 64, dtype=dtype), poisoned(total, 2, dtype=torch.float32)
        workspace = poisoned(-(-3 // together), total, 2, 66, dtype=torch.float32)
        _, args = captured(ops.block_attention, *case, out=out, lse=lse, **given)
        args = args._replace(chunk_keys=64, split_chunks=together, workspace=workspace)
        block_attention.launch(args)
        found.append((out, lse))
    assert all(map(torch.equal, *found))
    expected_lse = torch.empty_like(lse)
    wide = [t.float() for t in (q, k, v)]
    caches = (cache, cache) if scales else (cache.float(), cache.float())
    expected = ops.block_attention(
        *wide, *caches, table, rows, lse=expected_lse, backend="reference", **given
    )
    assert_close(out, expected)
    assert_close(lse, expected_lse, name="lse")


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("window, scales", [(0, "page"), (12, "page"), (0, "one")])
def test_a_cache_of_fp8_in_the_emulator(window, scales, arch, emulated):
    test_attention_in_the_emulator(window, torch.bfloat16, arch, emulated, scales)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_every_code_in_the_emulator(arch, emulated):
    """A query that sees one cached token gets its value: of each of two heads half of the codes."""
    emulated(arch)
    stored = fp8.OF_ARCH[arch]
    codes = torch.arange(256).to(torch.uint8)
    v_cache = torch.zeros(1, 8, 2, 128, dtype=torch.uint8)
    v_cache[0, 0] = codes.view(2, 128)
    k_cache = torch.zeros_like(v_cache)
    q, k = torch.ones(1, 2, 128), torch.full((1, 2, 128), -1e4)
    q, k, v = (x.to(torch.bfloat16) for x in (q, k, torch.zeros_like(k)))
    row = BlockLayout(0, 1, 0).pack(
        torch.tensor([1], dtype=torch.int32),
        torch.tensor([0], dtype=torch.int32),
        torch.zeros(1, 0, dtype=torch.int32),
        1,
    )
    out = poisoned(1, 2, 128, dtype=torch.bfloat16)
    caches, table = (k_cache.view(stored), v_cache.view(stored)), torch.zeros(1, 1).int()
    half = torch.tensor([0.5])
    given = dict(k_scale=half, v_scale=half, out=out)
    _, args = captured(ops.block_attention, q, k, v, *caches, table, row, **given)
    block_attention.launch(args._replace(workspace=None))
    expected = codes.view(stored).float() / 2
    assert torch.equal(out.view(256).float().nan_to_num(nan=-7), expected.nan_to_num(nan=-7))


CASES = {
    "token": dict(),
    "block": dict(rule="block", K=3),
    "greedy drafter, given normalisers": dict(drafter="greedy", given_lse=True),
    "given normalisers": dict(given_lse=True),
    "mixed, truncated, ties": dict(mix="some", truncated=True, coarse=True, top=20),
    "spoilt, temperature 0 among others": dict(spoiled=torch.nan, temperature=0.0, B=3),
    "two blocks": dict(vocab=4512, valid=4490, mask=4096, K=1, top=3),
    "two blocks, a vocabulary of no multiple of 16": dict(vocab=4500, valid=4490, mask=4096, K=1),
    "long, truncated by a sample": dict(
        vocab=9008, valid=9001, mask=4096, truncated=True, B=1, K=1
    ),
    "allowed, truncated, mixed": dict(masked=True, truncated=True, mix="some"),
    "penalised": dict(penalised=True),
    "penalised, allowed, block": dict(penalised=True, masked=True, rule="block", K=3),
    "foreign and rare drafts, block": dict(rule="block", K=5, truncated=True, gap=100, seed=7),
}


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_sampling_in_the_emulator(name, dtype, arch, emulator, tmp_path, monkeypatch):
    kernels = []
    for module, kernel in ((accept_drafts, "accept"), (sample_drafts, "sample")):
        monkeypatch.setattr(module, "arch", lambda: arch)
        kernels.append(Emulated(getattr(module, kernel), arch, emulator, tmp_path))
        monkeypatch.setattr(module, kernel, kernels[-1])
    monkeypatch.setattr(_triton, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(_triton, "unsupported", lambda tensor: None)
    case = PLAIN | dict(vocab=704, valid=690, dtype=dtype) | CASES[name]
    same, doubt = compare(
        case,
        lambda args, options, u: ops.accept_drafts(*args, uniforms=u, backend="triton", **options),
    )
    assert (same | doubt).all()
    compare_samples(
        case,
        lambda logits, length, how, u: ops.sample_drafts(
            logits, length, uniforms=u, backend="triton", **how
        ),
    )
    if case["vocab"] > 4096:  # then a lane has as many ids of a tile as in the code that ships
        for kernel in kernels:
            wide = any(report.loop_loads_16_bytes for report in kernel.reports)
            assert wide == (case["vocab"] % 16 == 0)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("K, P", [(15, 3), (40, 5)])
def test_plan_branches_in_the_emulator(K, P, arch, emulator, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(K)
    accept, masks = torch.rand(3, K, generator=generator), torch.rand(K, K, generator=generator)
    inputs = accept.double(), masks.double(), P, torch.tensor([K, 5, -1], dtype=torch.int32)
    out = poisoned(3, P, dtype=torch.int32)
    _, args = captured(ops.plan_branches, *inputs, out=out)
    monkeypatch.setattr(
        plan_branches, "plan", Emulated(plan_branches.plan, arch, emulator, tmp_path)
    )
    plan_branches.launch(args)
    assert torch.equal(out, ops.plan_branches(*inputs, backend="reference"))
