"""Keys and values cached in fp8: the kernels against the reference on the same numbers; each code;
what the store rounds and refuses."""

from functools import partial

import cca
import fp8
import pytest
import torch
from fp8 import FN, FNUZ, SCALES

from blockdraft import BlockLayout, contract, env, ops
from blockdraft.ops import _native
from blockdraft.testing import assert_close, poisoned, random_pages, random_rows

pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason="the extension is not built")
BACKENDS = fp8.COMPUTED
DTYPES = fp8.DTYPES


def attention(layout, prefixes, heads, dim, dtype, stored, scales, seed=0):
    """Arguments of block_attention: pages of random codes, but NaN where nothing is cached."""
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(layout, prefixes, generator, 0.2)
    total, (query_heads, kv_heads) = int(rows.cu_rows[-1]), heads
    q, k, v = (
        torch.randn(total, n, dim, generator=generator).to(dtype)
        for n in (query_heads, kv_heads, kv_heads)
    )
    caches = []
    for _ in range(2):
        past = [torch.randn(n, kv_heads, dim, generator=generator) for n in prefixes]
        cache, table = random_pages(past, prefixes, 8, torch.Generator().manual_seed(9))
        caches.append(cache.to(stored))
    shape = SCALES[scales](len(caches[0]), kv_heads)
    k_scale, v_scale = (0.5 + torch.rand(shape, generator=generator) for _ in range(2))
    return (q, k, v, *caches, table, rows), dict(k_scale=k_scale, v_scale=v_scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(
    "layout, heads, dim",
    [
        (BlockLayout(4, 5, 3), (4, 2), 40),  # many columns
        (BlockLayout(4, 5, 3), (4, 2), 64),  # which matrix units of CPUs multiply
        (BlockLayout(0, 1, 0), (8, 2), 40),  # plain decoding
        (BlockLayout(1, 1, 0), (6, 2), 40),
    ],
)
@pytest.mark.parametrize("window", [0, 30])
def test_attention(window, layout, heads, dim, scales, stored, dtype):
    case = attention(layout, [0, 301, 641], heads, dim, dtype, stored, scales)
    attends_as_the_reference(*case, window, "cpp")


@pytest.mark.skipif(not env.triton_interpreter(), reason="a CPU's Triton is the interpreter")
@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("window, dtype", [(0, torch.float32), (9, torch.float16)], ids=str)
@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
@pytest.mark.parametrize("scales", SCALES)
def test_attention_in_triton(window, scales, stored, dtype, backend):
    layout = BlockLayout(2, 3, 2)
    case = attention(layout, [0, 37, 18], (4, 2), 40, dtype, stored, scales)
    attends_as_the_reference(*case, window, backend)


def attends_as_the_reference(case, given, window, backend):
    dtype = case[0].dtype
    expected_lse, lse = (poisoned(*case[0].shape[:2], dtype=torch.float32) for _ in range(2))
    out = poisoned(*case[0].shape, dtype=dtype)
    given["window"] = window
    expected = ops.block_attention(*case, **given, lse=expected_lse, backend="reference")
    ops.block_attention(*case, **given, out=out, lse=lse, backend=backend)
    assert_close(out, expected)
    assert_close(lse, expected_lse, name="lse")


@pytest.mark.parametrize("layout", [BlockLayout(0, 1, 0), BlockLayout(4, 5, 3)], ids=str)
def test_a_caller_that_flushes_subnormals(layout):
    """Codes of small numbers become subnormal ones on the way; they are not lost."""
    case, given = attention(layout, [301, 41], (8, 2), 64, torch.float32, FN, "one")
    case[4].view(torch.uint8).bitwise_and_(0x87)  # values: all are subnormal codes
    expected = ops.block_attention(*case, **given, backend="cpp")
    try:
        torch.set_flush_denormal(True)
        found = ops.block_attention(*case, **given, backend="cpp")
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dim", [24, 128])
@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
def test_nan_in_one_of_the_heads_that_are_read_together(stored, dim):
    """With many requests of plain decoding a CPU reads all KV heads of a token at once."""
    prefixes = [300 + 7 * i for i in range(8)]
    case, given = attention(
        BlockLayout(0, 1, 0), prefixes, (8, 2), dim, torch.float32, stored, "page"
    )
    page = case[5][3, 2]
    case[4].view(torch.uint8)[page, 1, 1, 5] = 0x7F if stored == FN else 0x80
    expected = ops.block_attention(*case, **given, backend="reference")
    found = ops.block_attention(*case, **given, backend="cpp")
    nan = expected.isnan()
    assert nan.any() and torch.equal(found.isnan(), nan)
    assert_close(found[~nan], expected[~nan])


@pytest.mark.parametrize(
    "backend, dtype",
    [("cpp", torch.float32), ("cpp", torch.bfloat16)]
    + [("triton", torch.float32)] * env.triton_interpreter(),
    ids=str,
)
@pytest.mark.parametrize("columns", ["narrow", "wide"])
@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
def test_every_code_of_a_cached_value(stored, columns, backend, dtype):
    """A query that sees one cached token gets its value, whatever its key."""
    rows = BlockLayout(0 if columns == "narrow" else 15, 1, 0)
    count = rows.rows
    packed = rows.pack(
        torch.tensor([1], dtype=torch.int32),
        torch.tensor([count - 1], dtype=torch.int32),
        torch.zeros(1, 0, dtype=torch.int32),
        1,
    )
    codes = torch.arange(256).to(torch.uint8)
    found = []
    for part in codes.view(2, 128):
        cache = torch.zeros(1, 8, 1, 128, dtype=torch.uint8)
        cache[0, 0, 0] = part
        q = torch.zeros(count, 1, 128, dtype=dtype)
        k = torch.zeros(count, 1, 128, dtype=dtype)
        k[:] = -1e4
        q[:] = 1  # so that the pass's own keys have no weight
        zeros = torch.zeros(1, 8, 1, 128, dtype=torch.uint8).view(stored)
        scale = torch.tensor([0.37])
        out = ops.block_attention(
            q,
            k,
            torch.zeros_like(k),
            zeros,
            cache.view(stored),
            torch.zeros(1, 1, dtype=torch.int32),
            packed,
            k_scale=scale,
            v_scale=scale,
            backend=backend,
        )
        found.append(out[0, 0])
    expected = codes.view(stored).float() * 0.37
    rounding = 1e-6 if dtype == torch.float32 else 2**-7
    found = torch.cat(found).float()
    assert torch.allclose(found, expected, rtol=rounding, atol=0, equal_nan=True)


@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("backend, dtype", BACKENDS, ids=str)
def test_store(backend, scales, stored, dtype):
    case = cca.case(BlockLayout(5, 4, 2), [0, 9], (4, 2, 40), (2, 2), 16, dtype, seed=1)
    fp8.check_store(case, stored, scales, partial(called, backend))


@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
@pytest.mark.parametrize("backend, dtype", BACKENDS, ids=str)
def test_the_store_s_rounding_and_saturation(backend, stored, dtype):
    fp8.check_store(fp8.edge_case(stored, dtype), stored, None, partial(called, backend))


def called(backend, arguments):
    written, run = cca.prepared(arguments, backend=backend)
    run()
    return written


@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
def test_a_store_of_a_caller_that_flushes_subnormals(stored):
    case = cca.case(BlockLayout(5, 4, 2), [0, 9], (4, 2, 40), (2, 2), 16, torch.float32)
    caches = {name: torch.zeros_like(case[name], dtype=stored) for name in ("k_cache", "v_cache")}
    case |= caches | dict.fromkeys(("k_scale", "v_scale"), torch.tensor([64.0]))
    expected = called("cpp", case)
    try:
        torch.set_flush_denormal(True)
        found = called("cpp", case)
    finally:
        torch.set_flush_denormal(False)
    assert (found[2] != 0).any() and all(map(torch.equal, found[:3], expected))


def test_what_is_refused(monkeypatch):
    case, given = attention(BlockLayout(0, 1, 0), [9], (2, 1), 8, torch.float32, FN, "one")
    with pytest.raises(ValueError, match="k_scale: expected a tensor, since the cache is"):
        ops.block_attention(*case)
    with pytest.raises(ValueError, match="v_scale: expected finite scales above 0, got 0.0"):
        ops.block_attention(*case, k_scale=given["k_scale"], v_scale=torch.zeros(1))
    plain = (*case[:3], case[3].float(), case[4].float(), *case[5:])
    with pytest.raises(ValueError, match="k_scale: expected None, since the cache is not fp8"):
        ops.block_attention(*plain, **given)
    other = (*case[:4], case[4].to(FNUZ), *case[5:])
    with pytest.raises(TypeError, match="v_cache: expected float8_e4m3fn, got float8_e4m3fnuz"):
        ops.block_attention(*other, **given)
    stores = cca.case(BlockLayout(0, 1, 0), [9], (2, 1, 16), (2, 2), 8, torch.float32)
    stores |= {name: torch.zeros_like(stores[name], dtype=FN) for name in ("k_cache", "v_cache")}
    stores |= given
    with pytest.raises(ValueError, match="v_scale: expected finite scales above 0, got 0.0"):
        ops.cca_qkv(**stores | dict(v_scale=torch.zeros(1)))
    monkeypatch.setattr(contract, "fp8_types", lambda device: (FNUZ,))
    with pytest.raises(TypeError, match="k_cache: expected float8_e4m3fnuz, got float8_e4m3fn"):
        ops.cca_qkv(**stores)
    with pytest.raises(TypeError, match="k_cache: expected float8_e4m3fnuz, got float8_e4m3fn"):
        ops.block_attention(*case, **given)
