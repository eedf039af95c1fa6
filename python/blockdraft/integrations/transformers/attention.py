"""Causal attention of transformers' models, windows and left padding included."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from ...contract import FLOATS, Check
from ...ops.block_attention import unchecked
from ...types import Rows

PAGE = 16
CHECK = Check("blockdraft attention")


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: torch.Tensor | None = None,
    config: Any = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """bool [B,kv_length]: which keys are tokens, those on the left being padding; None: all are.

    What the tokens see must follow from their order: all before them, or a window. Anything else
    that a model or its caller asks for is refused, not ignored.
    """
    from transformers.masking_utils import causal_mask_function

    end = kv_offset + kv_length
    CHECK.need(end == q_offset + q_length, "cache", "one that grows (no static cache)", end)
    if mask_function not in (None, causal_mask_function):
        edges = q_offset + torch.tensor([0, q_length - 1], device=device)[None, :, None]
        keys = torch.arange(kv_offset, end, device=device)
        request = torch.arange(batch_size, device=device)[:, None, None]
        seen = mask_function(request, 0, edges, keys).expand(batch_size, 2, kv_length)
        causal = keys <= edges
        window = causal & (keys > edges - (getattr(config, "sliding_window", None) or end))
        plain = all((seen == causal).flatten(1).all(1) | (seen == window).flatten(1).all(1))
        CHECK.need(plain, "mask", "a causal one, or a window", "another pattern")
    if attention_mask is None:
        return None
    real = attention_mask[:, -kv_length:].bool()
    return None if real.all() else real


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Of query [B,Hq,q,Dh] at the end of key and value [B,Hk,kv,Dh]; the result is [B,q,Hq,Dh]."""
    _refuse(module, query, dropout, kwargs)
    _agree(query, key, value)
    (B, _, q_length, _), kv_length = query.shape, key.shape[2]
    past, window = kv_length - q_length, sliding_window or 0
    if kv_length <= window:
        window = 0  # which would exclude nothing
    starts = (0,) * B
    if attention_mask is not None:
        starts = _starts(attention_mask, kv_length, any_order=not past and not window)
    own = attention_mask[:, past:] if max(starts) > past else None
    if own is None and q_length == 1:
        packed = [t[:, :, -1] for t in (query, key, value)]
    else:
        packed = [t[:, :, -q_length:].transpose(1, 2) for t in (query, key, value)]
        packed = [t.flatten(0, 1) if own is None else t[own] for t in packed]
    pages = _pages(key, value, past, starts, bool(window)) if past else (None, None, None)
    rows = _rows(query.device, past, q_length, starts)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = unchecked(*packed, *pages, rows, scale=scale, window=window)
    if own is None:
        return out.view(B, q_length, *out.shape[1:]), None
    padded = out.new_zeros(B, q_length, *out.shape[1:])
    padded[own] = out
    return padded, None


def _refuse(module: torch.nn.Module, query: torch.Tensor, dropout: float, extra: dict) -> None:
    check_inference(CHECK, query)
    CHECK.need(dropout == 0, "dropout", "0, for inference", dropout)
    causal = extra.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    CHECK.need(bool(causal), "module", "a causal one", type(module).__name__)
    for name in ("softcap", "s_aux", "position_bias", "cu_seq_lens_q"):
        CHECK.need(extra.get(name) is None, name, "None", extra.get(name))


def _agree(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """What the op would check of them: it is called without its checks, which took longer than the
    kernel of a small model."""
    (B, heads, rows, depth), (dtype, device) = query.shape, (query.dtype, query.device)
    Hk, length = key.shape[1:3]
    fits = key.shape == value.shape == (B, Hk, length, depth)
    fits = fits and heads % Hk == 0 and rows <= length and dtype in FLOATS
    for t in (query, key, value):
        fits = fits and t.stride(-1) == 1 and t.dtype == dtype and t.device == device
    if not fits:
        got = "; ".join(f"{list(t.shape)} {t.dtype} {t.device}" for t in (query, key, value))
        expected = "[B,Hq,q,Dh] and twice [B,Hk,kv,Dh] of one float type, rows contiguous"
        CHECK.fail("query, key, value", expected, got)


def check_inference(check: Check, t: torch.Tensor) -> None:
    tracked = torch.is_grad_enabled() and t.requires_grad
    check.need(not tracked, "inputs", "torch.no_grad(), as there is no backward pass", "gradients")


def _starts(real: torch.Tensor, kv_length: int, any_order: bool) -> tuple[int, ...]:
    """Where each request's tokens begin, or would, with all its padding before them (`any_order`:
    that may lie anywhere)."""
    size = tuple(real.shape[1:])
    CHECK.need(size == (kv_length,), "attention_mask", f"[batch,{kv_length}]", list(real.shape))
    padded = kv_length - real.sum(1)
    if not any_order:
        left = (real == (torch.arange(kv_length, device=real.device) >= padded[:, None])).all()
        expected = "padding on the left only, since there is a cache or a window"
        CHECK.need(bool(left), "attention_mask", expected, "padding elsewhere")
    return tuple(padded.tolist())


def _pages(
    key: torch.Tensor, value: torch.Tensor, past: int, starts: tuple[int, ...], ordered: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first `past` tokens of each request, from its start on, and their block table. Copied
    only if short or ordered: pages are views, one from each token on, and may overlap."""
    needed = (past if ordered else max(starts)) + PAGE
    if needed > key.shape[2]:
        key, value = (F.pad(t, (0, 0, 0, needed - t.shape[2])) for t in (key, value))
    B, heads, length, depth = key.shape
    shape = ((B - 1) * heads + 1) * length - PAGE + 1, PAGE, heads, depth
    strides = depth, depth, length * depth, 1
    views = [t.contiguous().as_strided(shape, strides) for t in (key, value)]
    return *views, _table(key.device, heads * length, past, starts, ordered)


@lru_cache(maxsize=8)
def _table(
    device: torch.device, apart: int, past: int, starts: tuple[int, ...], ordered: bool
) -> torch.Tensor:
    """The token from which each page of a request on begins; requests are `apart`. The last page,
    which is full only if ordered, would end beyond the memory: it holds the first tokens instead,
    as the order of keys does not matter without a window."""
    table = []  # numbers: few, and a tensor's operations cost more
    for i, start in enumerate(starts):
        first, kept = i * apart + start, max(past - start, 0)
        rest = 0 if ordered else kept % PAGE
        whole = [first + rest + begin for begin in range(0, kept - rest, PAGE)]
        table.append(whole + [first] * (-(-past // PAGE) - len(whole)))
    return torch.tensor(table, dtype=torch.int32, device=device)


@lru_cache(maxsize=8)  # the layers of a pass all have the same
def _rows(device: torch.device, past: int, q_length: int, starts: tuple[int, ...]) -> Rows:
    prefixes = [max(past - start, 0) for start in starts]
    lengths = tuple(min(q_length, past + q_length - start) for start in starts)
    prefix_lens = torch.tensor(prefixes, dtype=torch.int32, device=device)
    return replace(_chunks(device, lengths), prefix_lens=prefix_lens, max_prefix=max(prefixes))


@lru_cache(maxsize=8)  # so do most steps of a decode
def _chunks(device: torch.device, lengths: tuple[int, ...]) -> Rows:
    empty = torch.zeros(len(lengths), dtype=torch.int32, device=device)
    return Rows.prefill(empty, list(lengths), 0)
