"""A request of accept_drafts and its rows: 0..K are the target's; the drafter's follow."""

from typing import NamedTuple

import triton
import triton.language as tl

from .distribution import (
    Blend,
    Changed,
    Masked,
    MaskedBlend,
    Row,
    has,
    is_set,
    mixed,
    penalised,
)

ACCEPT, DRAW = tl.constexpr(0), tl.constexpr(1)  # purposes of uniforms


class Sampling(NamedTuple):
    """A request's temperature, and pointers to every request's top_k, top_p and min_p."""

    temperature: tl.tensor
    top_k: tl.tensor
    top_p: tl.tensor
    min_p: tl.tensor


class Request(NamedTuple):
    """A request: its rows, how many drafts a request may have (K) and how many it has (live)."""

    index: tl.tensor
    K: tl.tensor
    live: tl.tensor
    target: tl.tensor  # pointer to its row 0
    target_row: tl.tensor  # stride of rows
    draft: tl.tensor
    draft_row: tl.tensor
    tokens: tl.tensor
    allowed: tl.tensor  # pointer to the words of row 0, or None
    allowed_row: tl.tensor
    draft_allowed: tl.tensor
    draft_allowed_row: tl.tensor
    penalties: tl.tensor  # Penalties, or None
    weight: tl.tensor  # of the target's logits in a mixed row
    sampled: tl.tensor  # whether q has the distribution of the draft logits; else it is a point


@triton.jit
def row_of_target(request, i):
    at = request.target + i.to(tl.int64) * request.target_row
    if request.penalties is not None:
        if request.weight is None:
            return changed(request, at, at, 1.0, request.allowed, request.allowed_row, i, i)
        else:
            other = request.draft + i.to(tl.int64) * request.draft_row
            weight = tl.where(i < request.live, request.weight, 1.0)
            return changed(request, at, other, weight, request.allowed, request.allowed_row, i, i)
    elif request.weight is None:
        if request.allowed is None:
            return Row(at)
        else:
            return Masked(at, request.allowed + i.to(tl.int64) * request.allowed_row)
    else:
        other = request.draft + i.to(tl.int64) * request.draft_row
        weight = tl.where(i < request.live, request.weight, 1.0)
        if request.allowed is None:
            return Blend(at, other, weight)
        else:
            allowed = request.allowed + i.to(tl.int64) * request.allowed_row
            return MaskedBlend(at, other, weight, allowed)


@triton.jit
def changed(request, at, other, weight, allowed, allowed_row, i, drafted):
    p = request.penalties
    if allowed is not None:  # a name for that would be a value that the compiler does not know
        words = allowed + i.to(tl.int64) * allowed_row
        masked = tl.full([], 1, tl.int1)
    else:
        words = p.touched
        masked = tl.full([], 0, tl.int1)
    return Changed(
        at,
        other,
        tl.full([], 1, tl.float32) * weight,
        words,
        masked,
        p.touched,
        p.counts,
        p.repetition,
        p.presence,
        p.frequency,
        p.bias_ids,
        p.bias,
        p.biases,
        p.drafts,
        drafted,
    )


@triton.jit
def as_target(request, i, at):
    """The row at `at`, with the mask and the penalties of target row i."""
    if request.penalties is not None:
        return changed(request, at, at, 1.0, request.allowed, request.allowed_row, i, i)
    elif request.allowed is None:
        return Row(at)
    else:
        return Masked(at, request.allowed + i.to(tl.int64) * request.allowed_row)


@triton.jit
def row_of_draft(request, i):
    at = request.draft + i.to(tl.int64) * request.draft_row
    if request.penalties is not None:
        return changed(
            request, at, at, 1.0, request.draft_allowed, request.draft_allowed_row, i, 0 * i
        )
    elif request.draft_allowed is None:
        return Row(at)
    else:
        return Masked(at, request.draft_allowed + i.to(tl.int64) * request.draft_allowed_row)


@triton.jit
def target_logit(request, i, token, vocabulary):
    """The logits of tokens in target rows i; 0 where there is none."""
    known = has(vocabulary, token) & (i <= request.live)
    x = tl.load(
        request.target + i.to(tl.int64) * request.target_row + token, mask=known, other=0
    ).to(tl.float32)
    if request.weight is not None:
        known &= i < request.live
        y = tl.load(
            request.draft + i.to(tl.int64) * request.draft_row + token, mask=known, other=0
        ).to(tl.float32)
        x = mixed(x, y, tl.where(i < request.live, request.weight, 1.0))
    if request.penalties is not None:
        used = has(vocabulary, token) & (i <= request.live)
        x = penalised(request.penalties, x, token, used, i, request.K)
    if request.allowed is not None:
        used = has(vocabulary, token) & (i <= request.live)
        allowed = is_set(request.allowed + i.to(tl.int64) * request.allowed_row, token, used)
        x = tl.where(allowed, x, float("-inf"))
    return x


@triton.jit
def draft_logit(request, i, token, vocabulary):
    used = has(vocabulary, token) & (i < request.live)
    x = tl.load(request.draft + i.to(tl.int64) * request.draft_row + token, mask=used, other=0).to(
        tl.float32
    )
    if request.penalties is not None:
        x = penalised(request.penalties, x, token, used, 0 * i, 0)
    if request.draft_allowed is not None:
        words = request.draft_allowed + i.to(tl.int64) * request.draft_allowed_row
        x = tl.where(is_set(words, token, used), x, float("-inf"))
    return x
