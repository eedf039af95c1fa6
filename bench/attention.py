"""block_attention at decode: V = M = 16, heads 8 and 2, head dim 128, equal prefixes, contiguous KV
for the peers."""

import torch
import torch.nn.functional as F

from .. import ops
from ..layout import BlockLayout
from ..roofline import costs
from ..testing import assert_close
from .rows import DTYPES, Implementation, Row, backends

HQ, HK, DIM, PAGE = 8, 2, 128, 16


def cases(quick):
    if quick:
        return [dict(B=1, L=2048, P=3)]
    return [
        dict(B=b, L=length, P=p) for length in (2048, 8192, 32768) for b in (1, 8) for p in (0, 3)
    ]


def build(case, dtype, device):
    B, L, P = case["B"], case["L"], case["P"]
    layout = BlockLayout.tidar(16, P=P)
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(DTYPES[dtype]).to(device)

    branches = [1 + round(j * layout.K / max(P - 1, 1)) for j in range(P)]
    i32 = dict(dtype=torch.int32, device=device)
    rows = layout.pack(
        torch.full((B,), L, **i32),
        torch.full((B,), layout.K, **i32),
        torch.tensor([branches] * B, **i32).reshape(B, P),
        L,
    )
    q, k, v = (randn(B * layout.rows, heads, DIM) for heads in (HQ, HK, HK))
    pages = B * L // PAGE
    k_cache, v_cache = randn(pages, PAGE, HK, DIM), randn(pages, PAGE, HK, DIM)
    table = torch.randperm(pages, generator=generator).int().reshape(B, -1).to(device)
    mask = layout.dense_mask(L, branches).to(device)
    out = torch.empty_like(q)

    def mine(backend):
        return ops.block_attention(q, k, v, k_cache, v_cache, table, rows, out=out, backend=backend)

    def contiguous():
        """The peers' layout: [B, heads, tokens, dim], keys of the prefix gathered from their
        pages."""

        def whole(cache, new):
            past = cache[table.long()].flatten(1, 2)
            return torch.cat([past, new.unflatten(0, (B, -1))], 1).transpose(1, 2).contiguous()

        return (
            q.unflatten(0, (B, -1)).transpose(1, 2).contiguous(),
            whole(k_cache, k),
            whole(v_cache, v),
        )

    def packed(result):
        return result.transpose(1, 2).flatten(0, 1)

    additive = torch.zeros(mask.shape, dtype=q.dtype, device=device).masked_fill_(~mask, -torch.inf)

    def sdpa(bias):
        def prepare():
            Q, K, V = contiguous()
            return lambda: packed(F.scaled_dot_product_attention(Q, K, V, bias, enable_gqa=True))

        return prepare

    def folded():
        """Query heads of a group become rows of their KV head, so that K and V are read once for
        them."""
        Q, K, V = contiguous()
        group, R = HQ // HK, layout.rows
        Q, bias = Q.reshape(B, HK, group * R, DIM), additive.repeat(group, 1)
        return lambda: packed(F.scaled_dot_product_attention(Q, K, V, bias).reshape(B, HQ, R, DIM))

    def flex():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        Q, K, V = contiguous()
        block = create_block_mask(
            lambda b, h, r, c: mask[r, c], None, None, *mask.shape, device=device
        )
        compiled = torch.compile(flex_attention, dynamic=False)
        compiled(Q, K, V, block_mask=block, enable_gqa=True)
        return lambda: packed(compiled(Q, K, V, block_mask=block, enable_gqa=True))

    def eager():
        Q, K, V = contiguous()

        def run():
            keys, values = K.repeat_interleave(HQ // HK, 1), V.repeat_interleave(HQ // HK, 1)
            scores = (Q @ keys.transpose(2, 3)) * DIM**-0.5
            return packed(
                scores.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32).to(Q.dtype)
                @ values
            )

        return run

    peers = [
        Implementation("sdpa bool mask", sdpa(mask)),
        Implementation("sdpa additive mask", sdpa(additive)),
        Implementation("sdpa heads folded", folded),
        Implementation("flex compiled", flex),
        Implementation("eager", eager),
    ]
    expected = ops.block_attention(
        q.float(),
        k.float(),
        v.float(),
        k_cache.float(),
        v_cache.float(),
        table,
        rows,
        backend="reference",
    )
    cost = B * costs.block_attention(L, layout.V, branches, layout.M, HQ, HK, DIM, q.element_size())
    return Row(
        "attention",
        case,
        dtype,
        cost,
        backends("block_attention", mine, out) + peers,
        lambda result, slack: assert_close(result, expected, q.dtype, slack=slack),
    )
