"""Where packed rows stand, and how a head of them is rotated and stored: of cca_qkv and
rope_qkv."""

from typing import NamedTuple

import triton
import triton.language as tl

from . import fp8


@triton.jit
def find_rows(
    row,
    cu_rows,
    prefix_lens,
    draft_len,
    branch,
    branch_row,
    batch,
    MASKS: tl.constexpr,
    P: tl.constexpr,
):
    """Of packed rows: request, first row of it, index in its run, branch (0: a verify row), prefix
    and whether it lives. A run is the verify rows or a proposal."""
    request = tl.zeros_like(row)
    for start in range(0, batch, 64):
        b = start + tl.arange(0, 64)
        end = tl.load(cu_rows + b + 1, mask=b < batch, other=2147483647)
        request += tl.sum((end[None, :] <= row[:, None]).to(tl.int32), 1)
    exists = request < batch
    request = tl.minimum(request, batch - 1)
    first = tl.load(cu_rows + request)
    index = row - first
    prefix = tl.load(prefix_lens + request)
    drafts = tl.load(draft_len + request)
    own = tl.zeros_like(row)
    live = index <= drafts
    if P > 0:
        masked = index - (tl.load(cu_rows + request + 1) - first - MASKS * P)
        is_mask = masked >= 0
        proposal = tl.maximum(masked, 0) // MASKS
        at = branch + request.to(tl.int64) * branch_row + tl.minimum(proposal, P - 1)
        own = tl.where(is_mask, tl.load(at), 0)
        index = tl.where(is_mask, masked % MASKS, index)
        live = tl.where(is_mask, (own >= 1) & (own <= drafts + 1), live)
    return request, first, index, own, prefix, live & exists


@triton.jit
def halves(DIM: tl.constexpr, HALF_ROTARY: tl.constexpr, ROTATED: tl.constexpr):
    """The channels of both halves that are rotated; DIM where ROTATED pads them."""
    low = tl.arange(0, ROTATED)
    high = tl.where(low < HALF_ROTARY, HALF_ROTARY + low, DIM)
    return tl.where(low < HALF_ROTARY, low, DIM), high


@triton.jit
def cos_and_sin(angle, low, live, DIM: tl.constexpr, HALF_ROTARY: tl.constexpr):
    """Of the channels `low` of the lower half. angle: pointers to the rows' cosines."""
    at = angle[None, :] + tl.where(low < DIM, low, 0)[:, None]
    turned = live[None, :] & (low < DIM)[:, None]
    return tl.load(at, mask=turned, other=0), tl.load(at + HALF_ROTARY, mask=turned, other=0)


class Target(NamedTuple):
    """Where a head of some rows goes. out: pointers to their outputs, of those that exist. kept:
    pointers to their places in the cache, for those that `keep` names, or None. step: what fp8 is
    divided by there, or None."""

    out: tl.tensor
    exists: tl.tensor
    kept: tl.tensor
    keep: tl.tensor
    step: tl.tensor


@triton.jit
def store_head(x, channel, DIM: tl.constexpr, to, FNUZ: tl.constexpr):
    """To the output, and to the cache where a row is kept. Then the output is what was stored."""
    inside = (channel < DIM)[:, None]
    if to.kept is not None:
        at = to.kept[None, :] + channel[:, None]
        if to.step is None:
            tl.store(at, x.to(to.kept.dtype.element_ty), mask=inside & to.keep[None, :])
        else:
            codes, near = fp8.rounded(tl.div_rn(x.to(tl.float32), to.step[None, :]), FNUZ)
            tl.store(at, codes, mask=inside & to.keep[None, :])
            x = tl.where(to.keep[None, :], near * to.step[None, :], x)
    at = to.out[None, :] + channel[:, None]
    tl.store(at, x.to(to.out.dtype.element_ty), mask=inside & to.exists[None, :])


CACHE = "K_PAGE K_TOKEN K_HEAD V_PAGE V_TOKEN V_HEAD".split()  # strides, which a model keeps
CACHE += "K_SCALE_PAGE K_SCALE_HEAD V_SCALE_PAGE V_SCALE_HEAD".split()


def strides(t, count: int) -> tuple[int, ...]:
    return (0,) * count if t is None else t.stride()[:count]


def cache_strides(args) -> dict[str, int]:
    """By the names of CACHE."""
    caches, scales = (args.k_cache, args.v_cache), (args.k_scale, args.v_scale)
    parts = [strides(t, 3) for t in caches] + [strides(t, 2) for t in scales]
    return dict(zip(CACHE, sum(parts, ())))
