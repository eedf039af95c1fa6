"""Keys and values cached in fp8: the C++ kernels against the reference on the same numbers; each
code; what the store rounds and refuses."""

import cca
import pytest
import torch

from blockdraft import BlockLayout, contract, ops
from blockdraft.ops import _native
from blockdraft.reference.dequantize import encode
from blockdraft.testing import assert_close, poisoned, random_pages, random_rows

pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason="the extension is not built")
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCALES = {"one": lambda pages, heads: (1,), "head": lambda pages, heads: (heads,)}
SCALES["page"] = lambda pages, heads: (pages, heads)


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
    "layout, heads",
    [
        (BlockLayout(4, 5, 3), (4, 2)),  # many columns
        (BlockLayout(0, 1, 0), (8, 2)),  # plain decoding
        (BlockLayout(1, 1, 0), (6, 2)),
    ],
)
@pytest.mark.parametrize("window", [0, 30])
def test_attention(window, layout, heads, scales, stored, dtype):
    case, given = attention(layout, [0, 301, 41], heads, 40, dtype, stored, scales)
    expected_lse, lse = (poisoned(*case[0].shape[:2], dtype=torch.float32) for _ in range(2))
    out = poisoned(*case[0].shape, dtype=dtype)
    given["window"] = window
    expected = ops.block_attention(*case, **given, lse=expected_lse, backend="reference")
    ops.block_attention(*case, **given, out=out, lse=lse, backend="cpp")
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


@pytest.mark.parametrize("columns", ["narrow", "wide"])
@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
def test_every_code_of_a_cached_value(stored, columns):
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
        q = torch.zeros(count, 1, 128)
        k = torch.zeros(count, 1, 128)
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
            backend="cpp",
        )
        found.append(out[0, 0])
    expected = codes.view(stored).float() * 0.37
    assert torch.allclose(torch.cat(found), expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
@pytest.mark.parametrize("scales", SCALES)
def test_store(scales, stored, dtype):
    """The same codes as the reference's, but where fp32 sums in another order, and q's rounding in
    16 bits, take the number past a middle: then the next."""
    case = cca.case(BlockLayout(5, 4, 2), [0, 9], (4, 2, 40), (2, 2), 16, dtype, seed=1)
    shape = SCALES[scales](len(case["k_cache"]), 2)
    generator = torch.Generator().manual_seed(0)
    given = {name: 0.1 + torch.rand(shape, generator=generator) for name in ("k_scale", "v_scale")}
    found = {}
    for backend in ("cpp", "reference"):
        caches = {
            name: torch.zeros(case[name].shape, dtype=torch.uint8).view(stored)
            for name in ("k_cache", "v_cache")
        }
        _, *computed = ops.cca_qkv(**(case | caches | given), backend=backend)
        found[backend] = caches
        returned_as_stored(case, caches, given, *computed)
    for name in ("k_cache", "v_cache"):
        mine, theirs = (found[backend][name] for backend in ("cpp", "reference"))
        assert theirs.float().abs().max() > 0
        ranks = [t.view(torch.uint8).int() for t in (mine, theirs)]
        ranks = [torch.where(r >= 128, 128 - r, r) for r in ranks]
        apart = (ranks[0] - ranks[1]).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() < 0.02


def returned_as_stored(case, caches, given, k, v):
    """Live verify rows get what later passes will read."""
    rows, page = case["rows"], case["k_cache"].shape[1]
    table = rows.table(len(k))
    kept = (table.live & (table.proposal < 0)).nonzero()[:, 0]
    position = table.position[kept]
    block = case["block_table"][table.request[kept], position // page].long()
    for x, which in ((k, "k"), (v, "v")):
        scale = given[f"{which}_scale"].expand(case["k_cache"].shape[0], x.shape[1])
        codes = caches[f"{which}_cache"][block, position % page]
        expected = (codes.float() * scale[block][..., None]).to(x.dtype)
        assert_close(x[kept], expected)


@pytest.mark.parametrize("stored", [FN, FNUZ], ids=str)
def test_the_store_s_rounding_and_saturation(stored):
    """Every number half way between two, beyond the largest, and NaN, as values that are copied."""
    numbers = torch.arange(128).to(torch.uint8).view(stored).float()
    numbers = numbers[numbers.isfinite()]
    middles = (numbers[1:] + numbers[:-1]) / 2
    values = torch.cat([numbers, middles, middles.nextafter(torch.tensor(1e9))])
    values = torch.cat([values, -values, torch.tensor([449.0, 1e30, -1e30, torch.inf, torch.nan])])
    values = torch.cat([values, torch.zeros(-len(values) % 16)])
    case = cca.case(BlockLayout(3, 1, 0), [0], (2, 1, 16), (2, 2), 8, torch.float32, seed=1)
    for part in values.view(-1, 16):
        v_now, v_late = torch.zeros(4, 8), torch.zeros(4, 8)
        v_now[1], v_late[0] = part[:8], part[8:]  # row 1 has its own half and its parent's
        pages = case["k_cache"].shape
        caches = {
            name: torch.zeros(pages, dtype=torch.uint8).view(stored)
            for name in ("k_cache", "v_cache")
        }
        given = dict(k_scale=torch.ones(1), v_scale=torch.ones(1), v_now=v_now, v_late=v_late)
        given["rows"] = BlockLayout(3, 1, 0).pack(
            torch.tensor([0], dtype=torch.int32),
            torch.tensor([3], dtype=torch.int32),
            torch.zeros(1, 0, dtype=torch.int32),
            0,
        )
        ops.cca_qkv(**(case | caches | given), backend="cpp")
        page = int(case["block_table"][0, 0])
        found = caches["v_cache"][page, 1, 0].float()
        assert torch.equal(
            found.nan_to_num(nan=-7), encode(part, stored).float().nan_to_num(nan=-7)
        )


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
    monkeypatch.setattr(contract, "fp8_types", lambda device: (FNUZ,))
    with pytest.raises(TypeError, match="k_cache: expected float8_e4m3fnuz, got float8_e4m3fn"):
        ops.block_attention(*case, **given)
