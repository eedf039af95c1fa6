"""Attention of verify rows and proposals over a paged prefix and each other."""

import torch

from ..layout import own_mask, prefix_mask
from ..types import Rows


def block_attention(
    q,
    k,
    v,
    k_cache,
    v_cache,
    block_table,
    rows: Rows,
    scale: float,
    window: int = 0,
    k_scale=None,
    v_scale=None,
):
    """out [T,Hq,Dh] and lse [T,Hq] (natural log) in fp32; a row that sees nothing has out 0 and lse
    -inf. Scales [pages,Hk], if there are any, multiply what is cached."""
    table = rows.table(len(q))
    outs, lses = [], []
    bounds = rows.cu_rows.tolist()
    for request, prefix in enumerate(rows.prefix_lens.tolist()):
        packed = slice(bounds[request], bounds[request + 1])
        own = type(table)(*(field[packed] for field in table))
        mask = torch.cat(
            [prefix_mask(own, prefix, window), own_mask(own, window, rows.bidirectional)], 1
        )
        # Dead rows may hold anything, and 0 * NaN would reach the output.
        keys, values = k[packed], v[packed].where(own.live[:, None, None], 0)
        if prefix:
            pages = block_table[request, : -(-prefix // k_cache.shape[1])].long()
            keys = torch.cat([_cached(k_cache, k_scale, pages)[:prefix], keys.float()])
            values = torch.cat([_cached(v_cache, v_scale, pages)[:prefix], values.float()])
        out, lse = _attend(q[packed].float(), keys.float(), values.float(), mask, scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def _cached(cache, scale, pages):
    """The tokens of some pages, in fp32."""
    tokens = cache[pages].float()
    if scale is not None:
        tokens = tokens * scale[pages][:, None, :, None]
    return tokens.flatten(0, 1)


def _attend(q, k, v, mask, scale):
    """q [R,Hq,Dh] over k, v [N,Hk,Dh] under mask [R,N]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("rhd,nhd->rhn", q, k) * scale
    scores = scores.masked_fill(~mask[:, None], -torch.inf)
    if not len(k):  # a request without rows or prefix
        return q * 0, q.new_full(q.shape[:2], -torch.inf)
    top = scores.amax(-1, keepdim=True)
    base = top.masked_fill(top == -torch.inf, 0)  # (-inf) - (-inf) is NaN
    weights = (scores - base).exp()
    total = weights.sum(-1, keepdim=True)
    lse = (base + total.log())[..., 0]
    weights = weights / total.masked_fill(total == 0, 1)
    return torch.einsum("rhn,nhd->rhd", weights, v), lse
