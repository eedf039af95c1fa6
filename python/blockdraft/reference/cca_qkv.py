"""Compressed convolutional attention: from projected rows to q, k, v (arXiv 2510.04476;
transformers `models/zaya`)."""

import torch

from ..layout import ancestors
from ..types import Rows
from .dequantize import encode


def cca_qkv(
    qk,
    v_now,
    v_late,
    conv0_weight,
    conv0_bias,
    conv1_weight,
    conv1_bias,
    temp,
    cos_sin,
    rows: Rows,
    conv_state=None,
    late_state=None,
    slots=None,
    late_start=None,
    norm_eps=None,
):
    """q [T,Hq,Dh], k [T,Hk,Dh], v [T,Hk,Dh] in fp32; dead rows are 0."""
    total, channels = qk.shape
    kv_heads, head_dim = len(temp), conv1_weight.shape[1]
    group = channels // head_dim // kv_heads - 1
    least_norm = torch.finfo(qk.dtype).eps if norm_eps is None else None
    table = rows.table(total)
    kernel0, kernel1 = conv0_weight.shape[-1], conv1_weight.shape[-1]
    depth = kernel0 + kernel1 - 2
    qk, live = qk.float(), table.live[:, None, None]

    # Each row after its ancestors, oldest first, as the convolutions see it: [T, taps, C]
    lineage = ancestors(table, max(depth, 1))
    stored = _stored(rows, slots, conv_state, qk.new_zeros(channels))
    window = _gather(qk, stored, lineage[:, : depth + 1].flip(1), table)
    weight = conv0_weight[:, 0].float()
    mixed = (
        sum(window[:, i : i + kernel1] * weight[:, i] for i in range(kernel0)) + conv0_bias.float()
    )
    mixed = mixed.unflatten(2, (-1, head_dim))
    grouped = conv1_weight.float().unflatten(0, (-1, head_dim))
    mixed = torch.einsum("tjgi,goij->tgo", mixed, grouped) + conv1_bias.float().view(-1, head_dim)

    # Residual paths: a query head adds its average with its KV head; a KV head adds the mean of the
    # averages of its group.
    q_in, k_in = qk.view(total, -1, head_dim).split([group * kv_heads, kv_heads], 1)
    q_skip = (q_in + k_in.repeat_interleave(group, 1)) * 0.5
    k_skip = q_skip.view(total, kv_heads, group, head_dim).mean(2)
    q_mixed, k_mixed = mixed.split([group * kv_heads, kv_heads], 1)

    def normalise(x):
        square = x.square().sum(-1, keepdim=True)
        norm = square.sqrt().clamp_min(least_norm) if least_norm else (square + norm_eps).sqrt()
        return x * (head_dim**0.5 / norm)

    angles = cos_sin[table.position]
    q = rotate(normalise(q_mixed + q_skip), angles)
    k = rotate(normalise(k_mixed + k_skip) * temp.float()[:, None], angles)

    # Half of the value channels come from the parent row; the first token has `late_start` instead.
    start = qk.new_zeros(v_late.shape[1]) if late_start is None else late_start.float()
    stored = _stored(rows, slots, None if late_state is None else late_state[:, None], start)
    late = _gather(v_late.float(), stored, lineage[:, 1:2], table)[:, 0]
    v = torch.cat([v_now.float(), late], 1).view(total, kv_heads, head_dim)
    return tuple(torch.where(live, x, 0) for x in (q, k, v))


def store_kv(k, v, k_cache, v_cache, block_table, rows: Rows, k_scale=None, v_scale=None) -> None:
    """Writes k and v of the live verify rows to their cache pages, in place, if there is a cache.
    If there are scales [pages,Hk]: divided by them, to fp8, and k and v become what was stored, so
    that this pass attends to what later ones will."""
    if k_cache is None:
        return
    table = rows.table(len(k))
    keep = (table.live & (table.proposal < 0)).nonzero()[:, 0]
    page, slot = table.position[keep] // k_cache.shape[1], table.position[keep] % k_cache.shape[1]
    page = block_table[table.request[keep], page].long()
    for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        if scale is None:
            cache[page, slot] = x[keep].to(cache.dtype)
        else:
            step = scale[page][..., None]
            stored = encode(x[keep].float() / step, cache.dtype)
            cache[page, slot] = stored
            x[keep] = (stored.float() * step).to(x.dtype)


def _stored(rows, slots, state, start):
    """[B, depth, channels], newest last: the state of each request, or `start` if it has none (no
    slot or no prefix)."""
    batch = len(rows.prefix_lens)
    if state is None or slots is None:
        return start.expand(batch, 1, -1)
    known = (slots >= 0) & (rows.prefix_lens > 0)
    return torch.where(known[:, None, None], state.float()[slots.long().clamp(min=0)], start)


def _gather(now, stored, lineage, table):
    """[T, d, channels]: the packed rows (or, if negative, stored tokens) that `lineage` [T,d]
    names."""
    depth = stored.shape[1]
    entry = len(now) + table.request[:, None] * depth + (depth + lineage).clamp(min=0)
    return torch.cat([now, stored.flatten(0, 1)])[torch.where(lineage >= 0, lineage, entry)]


def rotate(x, cos_sin):
    """Rotates the first `cos_sin.shape[1]` channels of each head by halves (GPT-NeoX order); the
    others stay as they are."""
    cos, sin = cos_sin.float()[:, None].chunk(2, -1)
    x1, x2, rest = x.split([cos.shape[-1], cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], -1)
