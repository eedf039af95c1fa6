"""Calls of rope_qkv and their results, for every backend and target."""

from functools import partial

import torch

from blockdraft import ops
from blockdraft.testing import poisoned, random_rows

PAGE = 8


def case(layout, prefixes, heads, rotary, dtype, seed=0):
    """Arguments of a decode step with a cache, whose pages have not been written; q, k and v are
    parts of one projection."""
    generator = torch.Generator().manual_seed(seed)
    query_heads, kv_heads, dim = heads
    batch, pages = len(prefixes), max(prefixes) // PAGE + layout.V // PAGE + 2
    rows = random_rows(layout, prefixes, generator)
    counts = query_heads, kv_heads, kv_heads
    x = torch.randn(int(rows.cu_rows[-1]), sum(counts), dim, generator=generator).to(dtype)
    cache = poisoned(2, batch * pages, PAGE, kv_heads, dim, dtype=dtype)
    return dict(
        zip("qkv", x.split(counts, 1)),
        cos_sin=torch.randn(256, rotary, generator=generator),
        rows=rows,
        k_cache=cache[0],
        v_cache=cache[1],
        block_table=torch.randperm(batch * pages, generator=generator).int().view(batch, -1),
        query_scale=1 + torch.rand(256, generator=generator),
    )


def prepared(arguments: dict, **options):
    """What a call writes (q, k, v and its own copy of the pages), and the call."""
    caches = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    out = tuple(poisoned(*arguments[x].shape, dtype=arguments[x].dtype) for x in "qkv")
    return (*out, *caches.values()), partial(ops.rope_qkv, **arguments | caches, out=out, **options)


def expected(arguments: dict) -> tuple[torch.Tensor, ...]:
    written, run = prepared(arguments, backend="reference")
    run()
    return written
