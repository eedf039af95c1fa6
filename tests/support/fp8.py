"""Caches of fp8: their formats and scales, and calls of cca_qkv that fill them."""

from collections.abc import Callable

import cca
import torch

from blockdraft import BlockLayout, env, reference

Same = Callable[[torch.Tensor, torch.Tensor], bool]
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
COMPUTED = [("cpp", dtype) for dtype in DTYPES]
if env.triton_interpreter():  # whose bfloat16 is wrong
    COMPUTED += [("triton", torch.float32), ("triton", torch.float16)]
NAN = {FN: 0x7F, FNUZ: 0x80}
OF_ARCH = {"gfx942": FNUZ, "gfx950": FN}
SCALES = {
    "one": lambda pages, heads: (1,),
    "head": lambda pages, heads: (heads,),
    "page": lambda pages, heads: (pages, heads),
}


def edges(stored: torch.dtype, dtype: torch.dtype) -> torch.Tensor:
    """What rounding to fp8 may get wrong: each of its numbers, the middles between them and beyond
    the largest, their neighbours; larger ones, NaN, the least numbers of the type."""
    codes = torch.arange(128).to(torch.uint8).view(stored).float()
    numbers = codes[codes.isfinite()]
    middles = (numbers[1:] + numbers[:-1]) / 2
    step = numbers[-1] - numbers[-2]
    near = torch.cat([numbers, middles, numbers[-1:] + step / 2, numbers[-1:] + step]).to(dtype)
    assert torch.equal(near[: len(numbers)].float(), numbers)
    far = torch.tensor([1e4, torch.inf, torch.nan, torch.finfo(dtype).tiny, 0], dtype=dtype)
    neighbours = [near.nextafter(torch.tensor(to, dtype=dtype)) for to in (-1, torch.inf)]
    every = torch.cat([near, *neighbours, far, far[-1:].nextafter(far[:1])])
    return torch.cat([every, -every])


def edge_case(stored: torch.dtype, dtype: torch.dtype) -> dict:
    """A call of cca_qkv whose values are these numbers."""
    layout, numbers = BlockLayout(25, 1, 0), edges(stored, dtype)
    arguments = cca.case(layout, [3], (2, 2, 64), (2, 2), 16, dtype)
    prefix, drafts = (torch.tensor([n], dtype=torch.int32) for n in (3, 25))
    arguments["rows"] = layout.pack(prefix, drafts, torch.zeros(1, 0, dtype=torch.int32), 3)
    for name in ("v_now", "v_late"):
        shape = arguments[name].shape
        assert 0 <= shape.numel() - len(numbers) < len(numbers)
        arguments[name] = numbers.repeat(2)[: shape.numel()].view(shape)
    return arguments


def check_store(
    arguments: dict, stored: torch.dtype, scales: str | None, run, same: Same | None = None
) -> None:
    """What run(arguments of cca_qkv) -> (q, k, v, k_cache, v_cache) stores in caches of fp8, which
    hold NaN, and returns: the reference's store of what it computes beside plain caches. That has
    been rounded to its type, so that a key at a middle may go the other way. scales: the shape of
    random ones; None: 1. same: whether q, and the keys that are not stored, are those beside plain
    caches; None: the same bits."""
    pages, page, heads, _ = shape = arguments["k_cache"].shape
    generator = torch.Generator().manual_seed(0)
    caches, steps = [], []
    for _ in range(2):
        caches.append(torch.full(shape, NAN[stored], dtype=torch.uint8).view(stored))
        size = SCALES[scales](pages, heads) if scales else (1,)
        steps.append(0.1 + torch.rand(size, generator=generator) if scales else torch.ones(1))
    given = dict(zip(("k_cache", "v_cache", "k_scale", "v_scale"), (*caches, *steps)))
    q, k, v, *_ = run(arguments)
    my_q, my_k, my_v, *mine = run(arguments | given)
    exact = k.clone()
    table, rows = arguments["block_table"], arguments["rows"]
    steps = [step.expand(pages, heads) for step in steps]
    reference.store_kv(k, v, *caches, table, rows, *steps)

    same = same or _same
    assert same(my_q, q) and _same(my_v, v), "q, v"
    assert _same(mine[1], caches[1]), "v_cache"
    assert caches[0].isnan().any() and not caches[0].isnan().all()
    assert torch.equal(mine[0].isnan(), caches[0].isnan()), "k_cache: cells"
    found = rows.table(len(k))
    kept = found.live & (found.proposal < 0)
    assert same(my_k[~kept], k[~kept]), "k of rows that are not stored"
    position = found.position[kept]
    block = table[found.request[kept], position // page].long()
    codes, right = (cache[block, position % page] for cache in (mine[0], caches[0]))
    step = steps[0][block][..., None]
    assert _same(my_k[kept], (codes.float() * step).to(k.dtype)), "k is not what is stored"
    ranks = [torch.where(c >= 128, 128 - c, c) for c in (_bits(x).int() for x in (codes, right))]
    apart = (ranks[0] - ranks[1]).abs()
    assert apart.max() <= 1, "k_cache: codes"
    middle = (codes.float() + right.float()) / 2 * step
    error = (exact[kept].float() - middle).abs()
    assert (error <= torch.finfo(k.dtype).eps * middle.abs())[apart > 0].all(), "k_cache: rounding"


def _bits(t: torch.Tensor) -> torch.Tensor:
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[t.itemsize])


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same but for a rounding: a compiler may fuse other products in the other kernel."""
    return torch.allclose(a, b, rtol=torch.finfo(a.dtype).eps, atol=0, equal_nan=True)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits, but for NaN's."""
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and torch.equal(_bits(a)[~nan], _bits(b)[~nan])
