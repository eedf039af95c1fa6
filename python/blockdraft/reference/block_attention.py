"""Attention of verify rows and proposals over a paged prefix and each other."""

import torch

from ..layout import own_mask, prefix_mask
from ..types import Rows


def block_attention(
    q, k, v, k_cache, v_cache, block_table, rows: Rows, scale: float, window: int = 0
):
    """out [T,Hq,Dh] and lse [T,Hq] (natural log) in fp32; a row that sees nothing has out 0 and lse
    -inf."""
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
            keys = torch.cat([k_cache[pages].flatten(0, 1)[:prefix], keys])
            values = torch.cat([v_cache[pages].flatten(0, 1)[:prefix], values])
        out, lse = _attend(q[packed].float(), keys.float(), values.float(), mask, scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


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
