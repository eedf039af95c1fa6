"""rope_qkv of Nemotron-Labs-Diffusion 3B: 32 query and 8 KV heads of 128, in one projection."""

from typing import Any

import torch

from .. import ops
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from ..types import Rows
from .case import Implementation, Normal, Prepared, backends, compiled

HQ, HK, DIM, PAGE = 32, 8, 128, 16


def cases(quick: bool) -> list[dict[str, Any]]:
    return (
        [dict(B=2, rows=16)] if quick else [dict(B=b, rows=r) for b in (1, 8) for r in (1, 16, 64)]
    )


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    return costs.rope_qkv(parameters["B"] * parameters["rows"], HQ, HK, DIM, itemsize)


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    normal = Normal(dtype, device)
    batch, count = parameters["B"], parameters["rows"]
    total, width = batch * count, -(-count // PAGE)
    projection = normal(total, HQ + 2 * HK, DIM)
    q, k, v = projection.split([HQ, HK, HK], 1)
    angle = torch.arange(count).float()[:, None] * 1e6 ** -(torch.arange(0, DIM, 2) / DIM)
    cos, sin = (t.to(device) for t in (angle.cos(), angle.sin()))
    prefix = torch.zeros(batch, dtype=torch.int32, device=device)
    rows = Rows.prefill(prefix, [count] * batch, 0)
    pages = torch.arange(batch * width, dtype=torch.int32, device=device).view(batch, width)
    caches = [normal(batch * width, PAGE, HK, DIM) for _ in range(2)]
    out = tuple(
        torch.empty(total, heads, DIM, dtype=dtype, device=device) for heads in (HQ, HK, HK)
    )
    place = torch.arange(total, device=device)
    page, slot = place // count * width + place % count // PAGE, place % count % PAGE

    def ours(backend: str) -> tuple[torch.Tensor, ...]:
        angles = torch.cat([cos, sin], 1)
        return ops.rope_qkv(q, k, v, angles, rows, *caches, pages, out=out, backend=backend)

    def torch_ops(q, k, v):
        turned = []
        for x in (q, k):
            x = x.float().unflatten(0, (batch, count))
            a, b = x.chunk(2, -1)
            c, s = cos[:, None], sin[:, None]
            both = torch.cat([a * c - b * s, b * c + a * s], -1)
            turned.append(both.flatten(0, 1).to(v.dtype))
        for cache, x in zip(caches, (turned[1], v)):
            cache[page, slot] = x.to(cache.dtype)
        return *turned, v.contiguous()

    expected = torch_ops(q.float(), k.float(), v.float())

    def check(result: tuple[torch.Tensor, ...], slack: float) -> None:
        for name, mine, theirs in zip(("q", "k", "v"), result, expected):
            assert_close(mine.to(dtype), theirs.to(dtype), dtype, name, slack)
        for cache, mine in zip(caches, result[1:]):
            assert torch.equal(cache[page, slot], mine), "a page differs from what was returned"

    peers = [
        Implementation("torch", lambda: lambda: torch_ops(q, k, v)),
        compiled("torch compiled", torch_ops, q, k, v),
    ]
    return Prepared(backends("rope_qkv", ours, out[0]) + peers, check)
