"""What a batch of requests keeps between passes: paged K/V, convolution state, delayed values,
prefix lengths."""

import torch

from .config import ZayaConfig


class PagedCache:
    """K/V pages [L,pages,page,Hk,Dh], conv_state [L,S,taps-1,C], late_state [L,S,Hk*Dh/2] and the
    tables of B requests.

    Pages are given out once, for each request's own maximum; request b owns state slot b.
    """

    def __init__(
        self,
        config: ZayaConfig,
        max_tokens: list[int],
        dtype: torch.dtype,
        device="cpu",
        page: int = 16,
    ):
        if not max_tokens:
            raise ValueError(
                "PagedCache: max_tokens: expected one entry per request, got an empty batch"
            )
        if page < 8 or page & (page - 1):
            raise ValueError(f"PagedCache: page: expected a power of two >= 8, got {page}")
        counts = [-(-tokens // page) for tokens in max_tokens]
        batch, layers = len(counts), config.num_hidden_layers
        on = dict(dtype=dtype, device=device)
        shape = (layers, sum(counts), page, config.num_key_value_heads, config.head_dim)
        self.k, self.v = torch.zeros(shape, **on), torch.zeros(shape, **on)
        table = torch.zeros(batch, max(counts), dtype=torch.int32)
        first = 0
        for b, count in enumerate(counts):
            table[b, :count] = torch.arange(first, first + count)
            first += count
        self.block_table = table.to(device)
        self.conv_state = torch.zeros(layers, batch, config.conv_depth, config.conv_channels, **on)
        self.late_state = torch.zeros(layers, batch, config.late_channels, **on)
        self.prefix_lens = torch.zeros(batch, dtype=torch.int32, device=device)
        self.slots = torch.arange(batch, dtype=torch.int32, device=device)
        self.max_tokens = max(max_tokens)
        # [L,T,...]: the last pass's projections, from which `commit` takes the new state
        self.projected = None
