"""Checks shared by the public ops: each failure names the argument, what was expected and what came."""

from typing import NamedTuple

import torch

from . import env
from .layout import Rows

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
F32, I32, I64, BOOL = (torch.float32,), (torch.int32,), (torch.int64,), (torch.bool,)


class Sampling(NamedTuple):
    """How a request turns logits into a law; tensors of shape [B] on the logits' device.

    temperature float32 >= 0 (0: greedy); top_k int32 (0: off) or None; top_p float32 in (0, 1] (1: off) or None.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None


class Check:
    """Checks of one call. Names in shapes ("T Hq Dh") bind on first use and must agree afterwards; "B+1" is B plus one."""

    def __init__(self, op: str):
        self.op, self.dims, self.device = op, {}, None

    def fail(self, name: str, expected: str, got, kind=ValueError):
        raise kind(f"{self.op}: {name}: expected {expected}, got {got}")

    def need(self, ok: bool, name: str, expected: str, got) -> None:
        if not ok:
            self.fail(name, expected, got)

    def tensor(self, name: str, t, shape: str, dtypes=FLOATS, optional: bool = False, contiguous: bool = False) -> None:
        """Type, dtype, device, shape; rows may be strided but the last dimension is contiguous (`contiguous`: all are)."""
        if t is None and optional:
            return
        if not isinstance(t, torch.Tensor):
            self.fail(name, "a tensor", type(t).__name__, TypeError)
        if t.dtype not in dtypes:
            self.fail(name, " or ".join(str(d).removeprefix("torch.") for d in dtypes),
                      str(t.dtype).removeprefix("torch."), TypeError)
        self.device = self.device or t.device
        self.need(t.device == self.device, name, f"device {self.device}", t.device)
        words = shape.split()
        sizes = [self._size(word, got) for word, got in zip(words, t.shape)] if t.dim() == len(words) else None
        if sizes != list(t.shape):
            known = " ".join(str(self.dims.get(word, word)) for word in words)
            self.fail(name, f"shape [{shape}]" + (f" = [{known}]" if known != shape else ""), list(t.shape))
        inner = t.is_contiguous() if contiguous else t.dim() == 0 or t.shape[-1] <= 1 or t.stride(-1) == 1
        self.need(inner, name, "contiguous memory" if contiguous else "a contiguous last dimension", f"strides {t.stride()}")

    def _size(self, word: str, got: int) -> int:
        if word.isdigit():
            return int(word)
        base, _, extra = word.partition("+")
        return self.dims.setdefault(base, got - int(extra or 0)) + int(extra or 0)

    def choice(self, name: str, value, choices) -> None:
        self.need(value in choices, name, " or ".join(map(repr, choices)), repr(value))

    @staticmethod
    def readable(t: torch.Tensor) -> bool:
        """Whether values may be looked at: no device synchronisation (see `env.check_values`), and not while compiling."""
        return not torch.compiler.is_compiling() and (t.device.type == "cpu" or env.check_values())

    def values(self, name: str, t, ok, expected: str) -> None:
        if t is None or t.numel() == 0 or not self.readable(t):
            return
        good = ok(t)
        if not bool(good.all()):
            self.fail(name, expected, t[~good].flatten()[0].item())

    def rows(self, rows: Rows, total: int) -> None:
        if not isinstance(rows, Rows):
            self.fail("rows", "blockdraft.Rows", type(rows).__name__, TypeError)
        self.tensor("rows.prefix_lens", rows.prefix_lens, "B", I32)
        self.need(len(rows.prefix_lens) > 0, "rows.prefix_lens", "at least one request", "an empty batch")
        self.tensor("rows.cu_rows", rows.cu_rows, "B+1", I32)
        self.tensor("rows.draft_len", rows.draft_len, "B", I32)
        self.tensor("rows.branch", rows.branch, "B P", I32)
        for name, least in (("mask_rows", 1), ("max_rows", 0), ("max_prefix", 0)):
            value = getattr(rows, name)
            self.need(isinstance(value, int) and value >= least, f"rows.{name}", f"an integer of at least {least}", value)
        cu, masks = rows.cu_rows, rows.branch.shape[1] * rows.mask_rows
        if self.readable(cu):
            self.need(int(cu[0]) == 0 and int(cu[-1]) == total, "rows.cu_rows", f"0 .. T = {total}", cu.tolist())
        verify = cu.diff() - masks
        self.values("rows.cu_rows", cu.diff(), lambda t: (t >= masks) & (t <= rows.max_rows),
                    f"{masks} mask rows .. max_rows = {rows.max_rows} for each request")
        self.values("rows.prefix_lens", rows.prefix_lens, lambda t: (t >= 0) & (t <= rows.max_prefix),
                    f"0 .. max_prefix = {rows.max_prefix}")
        self.values("rows.draft_len", rows.draft_len, lambda t: (t >= -1) & (t < verify.clamp(min=0)),
                    "-1 .. verify rows - 1 for each request")
        self.values("rows.branch", rows.branch,
                    lambda t: (t == -1) | (t >= 1) & (t <= rows.draft_len[:, None] + 1), "-1 or 1 .. draft_len + 1")

    def pages(self, k_cache, v_cache, block_table, rows: Rows, dtype: torch.dtype, stores: bool = False) -> None:
        """The paged K/V cache and its table, as far as the prefix reaches (`stores`: and the live verify rows after it)."""
        given = [t is not None for t in (k_cache, v_cache, block_table)]
        if not all(given):
            self.need(not any(given), "k_cache, v_cache, block_table", "all three or none", f"{sum(given)} of them")
            self.need(stores or rows.max_prefix == 0, "k_cache", "a cache, since max_prefix is not 0", None)
            return
        self.tensor("k_cache", k_cache, "pages page Hk Dh", (dtype,))
        self.tensor("v_cache", v_cache, "pages page Hk Dh", (dtype,))
        self.tensor("block_table", block_table, "B max_pages", I32)
        page = self.dims["page"]
        self.need(page >= 8 and page & (page - 1) == 0, "k_cache", "pages of a power of two >= 8 tokens", page)
        if self.readable(block_table):
            tokens = rows.prefix_lens.long() + (rows.draft_len + 1 if stores else 0)
            used = -(-tokens // page)
            self.need(int(used.max()) <= block_table.shape[1], "block_table",
                      f"at least {int(used.max())} pages of {page} tokens", block_table.shape[1])
            reached = torch.arange(block_table.shape[1], device=used.device) < used[:, None]
            self.values("block_table", torch.where(reached, block_table, 0),
                        lambda t: (t >= 0) & (t < len(k_cache)), f"page numbers 0 .. {len(k_cache) - 1}")

    def vocabulary(self, num_valid_vocab: int | None, mask_token: int) -> int:
        """How many ids are valid (None: all of the logits' "vocab"), after checking both."""
        vocab = self.dims["vocab"]
        num_valid_vocab = vocab if num_valid_vocab is None else num_valid_vocab
        self.need(1 <= num_valid_vocab <= vocab, "num_valid_vocab", f"1 .. {vocab}", num_valid_vocab)
        self.need(-1 <= mask_token < vocab, "mask_token", f"-1 .. {vocab - 1}", mask_token)
        return num_valid_vocab

    def sampling(self, name: str, sampling: Sampling) -> None:
        if not isinstance(sampling, Sampling):
            self.fail(name, "blockdraft.Sampling", type(sampling).__name__, TypeError)
        self.tensor(f"{name}.temperature", sampling.temperature, "B", F32)
        self.tensor(f"{name}.top_k", sampling.top_k, "B", I32, optional=True)
        self.tensor(f"{name}.top_p", sampling.top_p, "B", F32, optional=True)
        self.values(f"{name}.temperature", sampling.temperature, lambda t: (t >= 0) & t.isfinite(), "a finite number >= 0")
        self.values(f"{name}.top_k", sampling.top_k, lambda t: t >= 0, "0 (off) or more")
        self.values(f"{name}.top_p", sampling.top_p, lambda t: (t > 0) & (t <= 1), "more than 0, at most 1")
