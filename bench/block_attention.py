"""block_attention at decode: V = M = 16 (`V`: other verify rows; 1 is plain decoding, hundreds a
chunk of a prefill), 8 query and 2 KV heads, head dim 128. The peers get contiguous keys, with all
prefixes padded to the longest; of a cache of fp8 they, and our own kernel once more, get the same
numbers in the dtype of the queries."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from .. import ops
from ..contract import fp8_types
from ..layout import BlockLayout
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from ..types import Rows
from .case import Implementation, Normal, Prepared, backends, unstored

HQ, HK, DIM, PAGE = 8, 2, 128, 16
GROUP = HQ // HK


def cases(quick: bool) -> list[dict[str, Any]]:
    if quick:
        return [dict(B=1, L=2048, P=3)]
    equal = [
        dict(B=b, L=length, P=p) for length in (2048, 8192, 32768) for b in (1, 8) for p in (0, 3)
    ]
    unequal = [
        dict(B=2, L="2048,512", P=3),
        dict(B=4, L="8192,16,0,2048", P=3),
        dict(B=2, L="140000,100000", P=3),
    ]
    plain = [dict(B=b, L=length, P=0, V=1) for length in (2048, 32768) for b in (1, 8)]
    plain.append(dict(B=4, L="8192,16,0,2048", P=0, V=1))
    chunks = [dict(B=1, L=length, P=0, V=rows) for length, rows in ((0, 512), (2048, 512))]
    low = [
        dict(B=b, L=length, P=p, V=v, cache="fp8")
        for b, length, p, v in (
            (1, 2048, 3, 16),
            (1, 32768, 3, 16),
            (1, 32768, 0, 1),
            (8, 32768, 0, 1),
        )
    ]
    return equal + unequal + plain + chunks + low


def lengths(parameters: dict[str, Any]) -> list[int]:
    """The prefix of each request: `L` is one length for all, or a comma-separated list."""
    given = [int(length) for length in str(parameters["L"]).split(",")]
    return given if len(given) > 1 else given * parameters["B"]


def layout_of(parameters: dict[str, Any]) -> tuple[BlockLayout, list[int]]:
    """The layout, and the branches of its proposals."""
    layout = BlockLayout(parameters.get("V", 16) - 1, 16, parameters["P"])
    return layout, layout.spread()


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    layout, branches = layout_of(parameters)
    cached = 1 if "cache" in parameters else itemsize
    each = [
        costs.block_attention(length, layout.V, branches, layout.M, HQ, HK, DIM, itemsize, cached)
        for length in lengths(parameters)
    ]
    return sum(each[1:], each[0])


@dataclass(frozen=True)
class Inputs:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    table: torch.Tensor
    rows: Rows
    mask: torch.Tensor  # bool, [1 or B, 1, rows, longest prefix + rows]

    @property
    def batch(self) -> int:
        return len(self.table)

    def contiguous(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The peers' layout, [B, heads, tokens, dim]: the prefix gathered from its pages."""

        def whole(cached: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            past = cached[self.table.long()].flatten(1, 2)
            return torch.cat([past, self.requests(new)], 1).transpose(1, 2).contiguous()

        q = self.requests(self.q).transpose(1, 2).contiguous()
        return q, whole(self.k_cache, self.k), whole(self.v_cache, self.v)

    def requests(self, packed: torch.Tensor) -> torch.Tensor:
        return packed.unflatten(0, (self.batch, -1))

    def additive(self) -> torch.Tensor:
        zeros = torch.zeros(self.mask.shape, dtype=self.q.dtype, device=self.q.device)
        return zeros.masked_fill_(~self.mask, -torch.inf)


def inputs(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Inputs:
    layout, branches = layout_of(parameters)
    prefixes = lengths(parameters)
    longest = max(prefixes)
    normal = Normal(dtype, device)
    i32 = dict(dtype=torch.int32, device=device)
    rows = layout.pack(
        torch.tensor(prefixes, **i32),
        torch.full((len(prefixes),), layout.K, **i32),
        torch.tensor([branches] * len(prefixes), **i32).reshape(len(prefixes), -1),
        longest,
    )
    q, k, v = (normal(len(prefixes) * layout.rows, heads, DIM) for heads in (HQ, HK, HK))
    counts = [-(-prefix // PAGE) for prefix in prefixes]
    k_cache = normal(sum(counts), PAGE, HK, DIM)
    v_cache = normal(sum(counts), PAGE, HK, DIM)
    pages = torch.randperm(sum(counts), generator=normal.generator).int().split(counts)
    table = torch.nn.utils.rnn.pad_sequence(list(pages), batch_first=True).to(device)
    # If all prefixes are equal, the requests share one mask.
    masks = [padded_mask(layout, n, branches, longest) for n in sorted({*prefixes})]
    if len(masks) > 1:
        masks = [padded_mask(layout, n, branches, longest) for n in prefixes]
    mask = torch.stack(masks)[:, None].to(device)
    return Inputs(q, k, v, k_cache, v_cache, table, rows, mask)


def padded_mask(
    layout: BlockLayout, prefix: int, branches: list[int], longest: int
) -> torch.Tensor:
    """The mask of one request, with its prefix padded to the longest."""
    past, own = layout.dense_mask(prefix, branches).split([prefix, layout.rows], 1)
    return torch.cat([F.pad(past, (0, longest - prefix)), own], 1)


def packed(result: torch.Tensor) -> torch.Tensor:
    return result.transpose(1, 2).flatten(0, 1)


def sdpa(data: Inputs, additive: bool):
    q, k, v = data.contiguous()
    bias = data.additive() if additive else data.mask
    return lambda: packed(F.scaled_dot_product_attention(q, k, v, bias, enable_gqa=True))


def folded(data: Inputs):
    """The query heads of a group become rows of their KV head, so that K and V are read once for
    all of them."""
    q, k, v = data.contiguous()
    shape = q.shape
    q = q.reshape(data.batch, HK, -1, DIM)
    bias = data.additive().repeat(1, 1, GROUP, 1)
    return lambda: packed(F.scaled_dot_product_attention(q, k, v, bias).reshape(shape))


def flex(data: Inputs):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = data.contiguous()
    mask = data.mask[:, 0]
    if len(mask) == 1:
        mask = mask[0]
        block_mask = create_block_mask(
            lambda b, h, r, c: mask[r, c], None, None, *mask.shape, device=q.device
        )
    else:
        block_mask = create_block_mask(
            lambda b, h, r, c: mask[b, r, c], len(mask), None, *mask.shape[1:], device=q.device
        )
    run = torch.compile(flex_attention, dynamic=False)
    run(q, k, v, block_mask=block_mask, enable_gqa=True)
    return lambda: packed(run(q, k, v, block_mask=block_mask, enable_gqa=True))


def eager(data: Inputs):
    q, k, v = data.contiguous()

    def run() -> torch.Tensor:
        keys = k.repeat_interleave(GROUP, 1)
        values = v.repeat_interleave(GROUP, 1)
        scores = (q @ keys.transpose(2, 3)) * DIM**-0.5
        weights = scores.masked_fill(~data.mask, -torch.inf).softmax(-1, dtype=torch.float32)
        return packed(weights.to(q.dtype) @ values)

    return run


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    data = inputs(parameters, dtype, device)
    out = torch.empty_like(data.q)
    caches, scales = (data.k_cache, data.v_cache), {}
    if "cache" in parameters:
        scale = torch.full((1,), 2.0**-6, device=device)
        scales = dict(k_scale=scale, v_scale=scale)
        caches = tuple((t.float() / scale).to(fp8_types(t.device)[0]) for t in caches)
        k_cache, v_cache = ((t.float() * scale).to(dtype) for t in caches)
        data = replace(data, k_cache=k_cache, v_cache=v_cache)

    def ours(backend: str, caches=caches, scales=scales) -> torch.Tensor:
        arguments = (data.q, data.k, data.v, *caches, data.table, data.rows)
        return ops.block_attention(*arguments, **scales, out=out, backend=backend)

    @cache
    def expected() -> torch.Tensor:
        # the reference's fp32 sums over ten thousands of keys err more than what is compared
        q, k, v = (t.double() for t in data.contiguous())
        return packed(F.scaled_dot_product_attention(q, k, v, data.mask, enable_gqa=True))

    peers = [
        Implementation("sdpa bool mask", lambda: sdpa(data, additive=False)),
        Implementation("sdpa additive mask", lambda: sdpa(data, additive=True)),
        Implementation("sdpa heads folded", lambda: folded(data)),
        Implementation("flex compiled", lambda: flex(data)),
        Implementation("eager", lambda: eager(data)),
    ]
    mine = backends("block_attention", ours, out)
    if scales:
        plain = (data.k_cache, data.v_cache)
        mine.append(unstored("cache", dtype, lambda: ours("cpp", plain, {}), out))
    return Prepared(
        mine + peers,
        lambda result, slack: assert_close(result, expected(), dtype, slack=slack),
    )
