"""What a batch of requests keeps between passes: paged keys and values, convolution state, delayed
values, prefix lengths."""

from typing import NamedTuple

import torch

from ..contract import FLOATS, FP8
from .decoder_config import DecoderConfig
from .values import brief, is_whole

_MOST = 2**31 - 1  # pages and positions are int32


def _need(ok: bool, name: str, expected: str, got) -> None:
    if not ok:
        raise ValueError(f"PagedCache: {name}: expected {expected}, got {brief(got)}")


class OutOfPages(RuntimeError):
    """A request needs more pages than are free. Nothing was changed."""


class CacheFormat(NamedTuple):
    """Keys and values in fp8 (`dtype`): numbers to be multiplied by the scale of their layer and
    head, k_scale and v_scale, float32 [L,Hk]. See models.quantize.cache_format."""

    dtype: torch.dtype
    k_scale: torch.Tensor
    v_scale: torch.Tensor


class PagedCache:
    """The state of up to B requests in L layers.

    k, v         [L,pages,page,Hk,Dh]; request b's pages are the first of row b of block_table,
                 int32 [B,max_pages], taken by `open` and given back by `close`
    scales       of each layer, k_scale and v_scale by name; empty unless k and v are fp8
    conv_state   [L,B,taps-1,C], late_state [L,B,Hk*Dh/2]; request b owns slot b
    prefix_lens  int32 [B], tokens whose K/V are cached
    max_tokens   of a request, the host's bound on its prefix
    projected    [L,T,...], projections of the last pass, from which `Runner.commit` takes the
                 new state; None before the first pass
    """

    def __init__(
        self,
        config: DecoderConfig,
        requests: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        page: int = 16,
        pages: int | None = None,
        format: CacheFormat | None = None,
    ) -> None:
        _need(isinstance(config, DecoderConfig), "config", "a DecoderConfig", config)
        _need(is_whole(requests, 1, _MOST), "requests", f"an integer in 1..{_MOST}", requests)
        _need(is_whole(max_tokens, 0, _MOST), "max_tokens", f"an integer in 0..{_MOST}", max_tokens)
        _need(dtype in FLOATS, "dtype", "bfloat16, float16 or float32", dtype)
        whole = is_whole(page, 8, _MOST)
        _need(whole and page & (page - 1) == 0, "page", "a power of two >= 8", page)
        width = -(-max_tokens // page)
        pages = requests * width if pages is None else pages
        _need(is_whole(pages, 0, _MOST), "pages", f"an integer in 0..{_MOST}", pages)

        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        _need(format is None or isinstance(format, CacheFormat), "format", "a CacheFormat", format)
        if format is not None:
            _need(format.dtype in FP8, "format.dtype", f"one of {FP8}", format.dtype)
            for name in ("k_scale", "v_scale"):
                shape = list(getattr(format, name).shape)
                _need(shape == [layers, heads], f"format.{name}", f"[{layers}, {heads}]", shape)

        on = dict(dtype=dtype, device=device)
        shape = (layers, pages, page, heads, config.head_dim)
        stored = dtype if format is None else format.dtype
        self.k = torch.zeros(shape, dtype=stored, device=device)
        self.v = torch.zeros(shape, dtype=stored, device=device)
        self.scales: list[dict[str, torch.Tensor]] = [
            dict(k_scale=format.k_scale[i].to(device), v_scale=format.v_scale[i].to(device))
            if format
            else {}
            for i in range(layers)
        ]
        self.block_table = torch.zeros(requests, width, dtype=torch.int32, device=device)
        self.conv_state = torch.zeros(
            layers, requests, config.conv_depth, config.conv_channels, **on
        )
        self.late_state = torch.zeros(layers, requests, config.late_channels, **on)
        self.prefix_lens = torch.zeros(requests, dtype=torch.int32, device=device)
        self.slots = torch.arange(requests, dtype=torch.int32, device=device)
        self.max_tokens = max_tokens
        self.projected: torch.Tensor | None = None
        self._page = page
        self._free = list(range(pages))[::-1]
        self._pages: dict[int, list[int]] = {}

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def open(self, request: int, tokens: int) -> None:
        """Give request b an empty prefix and pages for `tokens` tokens. Raises OutOfPages."""
        most = self.max_tokens
        _need(is_whole(tokens, 0, most), "tokens", f"an integer in 0..{most}", tokens)
        last = len(self.prefix_lens) - 1
        _need(is_whole(request, 0, last), "request", f"an integer in 0..{last}", request)
        _need(request not in self._pages, "request", "one that is closed", request)
        count = -(-tokens // self._page)
        if count > len(self._free):
            raise OutOfPages(
                f"PagedCache: tokens: expected at most {len(self._free)} free pages of "
                f"{self._page}, got {tokens}, which need {count}"
            )
        pages = [self._free.pop() for _ in range(count)]
        self._pages[request] = pages
        self.block_table[request, :count] = torch.tensor(pages, dtype=torch.int32)
        self.prefix_lens[request] = 0

    def close(self, request: int) -> None:
        """Take the pages of request b back; its prefix is empty then."""
        _need(request in self._pages, "request", "one that is open", request)
        self._free += self._pages.pop(request)[::-1]
        self.block_table[request] = 0
        self.prefix_lens[request] = 0
