"""Calls of cca_qkv and their results, for every backend and target."""

from functools import partial

import torch

from blockdraft import ops
from blockdraft.testing import assert_close, poisoned, random_rows

PAGE = 8


def case(layout, prefixes, heads, kernels, rotary, dtype, seed=0, device="cpu"):
    """Arguments of a decode step with state and cache, whose pages have not been written."""
    generator = torch.Generator().manual_seed(seed)
    query_heads, kv_heads, dim = heads

    def randn(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    channels, half, batch = (query_heads + kv_heads) * dim, kv_heads * dim // 2, len(prefixes)
    rows = random_rows(layout, prefixes, generator)
    x = randn(int(rows.cu_rows[-1]), channels + 2 * half)
    pages = max(prefixes) // PAGE + layout.V // PAGE + 2
    cache = poisoned(2, batch * pages, PAGE, kv_heads, dim, dtype=dtype)
    tensors = dict(
        conv0_weight=randn(channels, 1, kernels[0], scale=kernels[0] ** -0.5),
        conv0_bias=randn(channels, scale=0.1),
        conv1_weight=randn(channels, dim, kernels[1], scale=(dim * kernels[1]) ** -0.5),
        conv1_bias=randn(channels, scale=0.1),
        temp=1 + randn(kv_heads, scale=0.1),
        cos_sin=torch.randn(256, rotary, generator=generator),
        conv_state=randn(batch + 1, sum(kernels) - 2, channels),
        late_state=randn(batch + 1, half),
        slots=torch.randperm(batch + 1, generator=generator)[:batch].int() - 1,
        k_cache=cache[0],
        v_cache=cache[1],
        block_table=torch.randperm(batch * pages, generator=generator).int().view(batch, -1),
        late_start=randn(half),
    )
    tensors |= dict(zip(("qk", "v_now", "v_late"), x.split([channels, half, half], 1)))
    tensors = {name: t.to(device) for name, t in tensors.items()}
    return tensors | dict(rows=rows.to(device) if device != "cpu" else rows)


def prepared(arguments: dict, **options):
    """What a call writes (q, k, v and its own copy of the pages), and the call."""
    caches = {name: arguments[name].clone() for name in ("k_cache", "v_cache")}
    total, dim = len(arguments["qk"]), arguments["conv1_weight"].shape[1]
    kv_heads = len(arguments["temp"])
    query_heads = arguments["qk"].shape[1] // dim - kv_heads
    like = dict(dtype=arguments["qk"].dtype, device=arguments["qk"].device)
    out = tuple(poisoned(total, heads, dim, **like) for heads in (query_heads, kv_heads, kv_heads))
    run = partial(ops.cca_qkv, **arguments | caches, out=out, **options)
    return (*out, *caches.values()), run


def expected(arguments: dict, **options) -> tuple[torch.Tensor, ...]:
    written, run = prepared(arguments, backend="reference", **options)
    run()
    return written


def assert_same(found, right) -> None:
    """Values, and which elements were written."""
    # tokens of the second convolution are rounded, too: two roundings, where the table has one
    slack = 1 if found[0].dtype == torch.float32 else 2
    for what, mine, theirs in zip(("q", "k", "v", "k_cache", "v_cache"), found, right):
        kept = ~theirs.isnan()
        assert torch.equal(kept, ~mine.isnan()), what
        assert_close(mine[kept], theirs[kept], name=what, slack=slack)
