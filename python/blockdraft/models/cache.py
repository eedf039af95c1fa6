"""What a batch of requests keeps between passes: paged keys and values, convolution state, delayed
values, prefix lengths."""

import torch

from ..contract import FLOATS
from .config import ZayaConfig
from .values import brief, is_whole

_MOST = 2**31 - 1  # pages and positions are int32


def _need(ok: bool, name: str, expected: str, got) -> None:
    if not ok:
        raise ValueError(f"PagedCache: {name}: expected {expected}, got {brief(got)}")


class PagedCache:
    """The state of B requests in L layers.

    k, v         [L,pages,page,Hk,Dh]; the rows of block_table, int32 [B,max_pages], are the pages
                 of each request, enough for its own entry of `max_tokens`
    conv_state   [L,B,taps-1,C], late_state [L,B,Hk*Dh/2]; request b owns slot b
    prefix_lens  int32 [B], tokens whose K/V are cached
    projected    [L,T,...], projections of the last pass, from which `ZayaModel.commit` takes the
                 new state; None before the first pass
    """

    def __init__(
        self,
        config: ZayaConfig,
        max_tokens: list[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        page: int = 16,
    ) -> None:
        _need(isinstance(config, ZayaConfig), "config", "a ZayaConfig", config)
        _need(isinstance(max_tokens, (list, tuple)), "max_tokens", "a list", max_tokens)
        if not max_tokens:
            raise ValueError(
                "PagedCache: max_tokens: expected one entry per request, got an empty batch"
            )
        for tokens in max_tokens:
            _need(is_whole(tokens, 0, _MOST), "max_tokens", f"integers in 0..{_MOST}", tokens)
        _need(dtype in FLOATS, "dtype", "bfloat16, float16 or float32", dtype)
        whole = is_whole(page, 8, _MOST)
        _need(whole and page & (page - 1) == 0, "page", "a power of two >= 8", page)
        counts = [-(-tokens // page) for tokens in max_tokens]
        _need(sum(counts) <= _MOST, "max_tokens", f"at most {_MOST} pages in all", sum(counts))

        batch, layers = len(counts), config.num_hidden_layers
        on = dict(dtype=dtype, device=device)
        shape = (layers, sum(counts), page, config.num_key_value_heads, config.head_dim)
        self.k = torch.zeros(shape, **on)
        self.v = torch.zeros(shape, **on)
        self.block_table = _page_table(counts).to(device)
        self.conv_state = torch.zeros(layers, batch, config.conv_depth, config.conv_channels, **on)
        self.late_state = torch.zeros(layers, batch, config.late_channels, **on)
        self.prefix_lens = torch.zeros(batch, dtype=torch.int32, device=device)
        self.slots = torch.arange(batch, dtype=torch.int32, device=device)
        self.max_tokens = max(max_tokens)
        self.projected: torch.Tensor | None = None


def _page_table(counts: list[int]) -> torch.Tensor:
    """int32 [B,max_pages]: request b owns the next `counts[b]` pages; the rest of its row is 0."""
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    first = 0
    for b, count in enumerate(counts):
        table[b, :count] = torch.arange(first, first + count)
        first += count
    return table
