"""rope_qkv: every backend against a rotation written with complex numbers."""

import fp8
import pytest
import rope
import torch

from blockdraft import BlockLayout, ops
from blockdraft.registry import OPS
from blockdraft.testing import assert_close, random_rows

BACKENDS = list(OPS["rope_qkv"].backends)


def data(layout, prefixes, dtype=torch.float32, dim=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(layout, prefixes, generator)
    total, batch = int(rows.cu_rows[-1]), len(prefixes)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    heads = randn(total, 8, dim).split([4, 2, 2], 1)  # strided, as parts of one projection
    angle = torch.rand(64, width // 2, generator=generator) * 6
    pages = 8 * batch
    table = torch.randperm(pages, generator=generator).int().view(batch, 8)
    caches = [torch.full((pages, 8, 2, dim), torch.nan, dtype=dtype) for _ in range(2)]
    return heads, angle, rows, caches, table


def turned(x, angle):
    width = 2 * angle.shape[1]
    a, b = x[..., :width].double().chunk(2, -1)
    z = (
        torch.complex(a, b)
        * torch.polar(torch.ones_like(angle), angle).to(torch.complex128)[:, None]
    )
    return torch.cat([z.real, z.imag, x[..., width:].double()], -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "layout, dim, width",
    [
        (BlockLayout(3, 4, 2), 16, 16),
        (BlockLayout(0, 1, 0), 64, 32),
        (BlockLayout(5, 3, 4), 40, 24),
    ],
    ids=str,
)
@pytest.mark.parametrize("scaled", [True, False])
def test_is_a_rotation(backend, dtype, layout, dim, width, scaled):
    (q, k, v), angle, rows, caches, table = data(layout, [5, 0, 31], dtype, dim, width)
    cos_sin = torch.cat([angle.cos(), angle.sin()], 1)
    scale = torch.linspace(1, 2, 64) if scaled else None
    out = tuple(torch.full(x.shape, torch.nan, dtype=dtype) for x in (q, k, v))
    given = dict(query_scale=scale, out=out, backend=backend)
    ops.rope_qkv(q, k, v, cos_sin, rows, *caches, table, **given)
    at = rows.table(len(q))
    live = at.live[:, None, None]
    expected_q = turned(q, angle[at.position]) * (scale[at.position, None, None] if scaled else 1)
    expected = (expected_q, turned(k, angle[at.position]), v.double())
    for name, mine, theirs in zip("qkv", out, expected):
        assert_close(mine, torch.where(live, theirs, 0).to(dtype), dtype, name)
    stored = at.live & (at.proposal < 0)
    for cache, x in zip(caches, out[1:]):
        page = table[at.request, at.position // 8][stored].long()
        assert torch.equal(cache[page, at.position[stored] % 8], x[stored])
        cache[page, at.position[stored] % 8] = torch.nan
        assert cache.isnan().all(), "a page slot that no live verify row has was written"


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_cache(backend):
    (q, k, v), angle, rows, caches, table = data(BlockLayout(3, 4, 2), [5, 9])
    cos_sin = torch.cat([angle.cos(), angle.sin()], 1)
    alone = ops.rope_qkv(q, k, v, cos_sin, rows, backend=backend)
    stored = ops.rope_qkv(q, k, v, cos_sin, rows, *caches, table, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(alone, stored))


@pytest.mark.parametrize("backend, dtype", fp8.COMPUTED, ids=str)
@pytest.mark.parametrize("stored", [fp8.FN, fp8.FNUZ], ids=str)
@pytest.mark.parametrize("scales", [*fp8.SCALES, None])
def test_a_cache_of_fp8(backend, scales, stored, dtype):
    def called(arguments):
        written, run = rope.prepared(arguments, backend=backend)
        run()
        return written

    arguments = rope.case(BlockLayout(5, 4, 2), [0, 9], (4, 2, 48), 32, dtype)
    if scales is None:
        values = fp8.edges(stored, dtype)
        arguments["v"] = values[torch.arange(arguments["v"].numel()) % len(values)].view(
            arguments["v"].shape
        )
    fp8.check_store(arguments, stored, scales, called, fp8.near)


def test_bad_arguments():
    (q, k, v), angle, rows, caches, table = data(BlockLayout(3, 4, 2), [5, 9])
    cos_sin = torch.cat([angle.cos(), angle.sin()], 1)
    with pytest.raises(ValueError, match="cos_sin: expected an even width of at most Dh = 16"):
        ops.rope_qkv(q, k, v, torch.ones(64, 18), rows)
    with pytest.raises(ValueError, match="cos_sin: expected a table of more than every position"):
        ops.rope_qkv(q, k, v, cos_sin[:12], rows)
    with pytest.raises(ValueError, match=r"query_scale: .* = \[64\], got \[3\]"):
        ops.rope_qkv(q, k, v, cos_sin, rows, query_scale=torch.ones(3))
    with pytest.raises(ValueError, match="all three or none"):
        ops.rope_qkv(q, k, v, cos_sin, rows, caches[0])
    with pytest.raises(ValueError, match="out.0.: expected memory apart from q's"):
        whole = torch.cat([q, k, v], 1)
        parts = whole.split([4, 2, 2], 1)
        ops.rope_qkv(*parts, cos_sin, rows, out=(parts[0], *(torch.empty_like(t) for t in (k, v))))
