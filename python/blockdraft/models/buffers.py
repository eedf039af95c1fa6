"""What the layers of a pass write, each in turn, so that it stays in the caches and is allocated
once."""

from typing import NamedTuple

import torch

from ..ops import block_attention_workspace
from ..types import MoeWorkspace, Rows
from .decoder_config import DecoderConfig

Tensors = tuple[torch.Tensor, ...]


class Buffers(NamedTuple):
    """For T rows of a model.

    norm, y     [T,H], what a block reads and what it yields; stream float32 [T,H], the residual
    projected   [L,T,...], the attention's projections, of which a commit keeps a row in each layer;
                of one layer, where it keeps none
    qkv         the results of cca_qkv; attended [T,Hq,Dh]
    routing     the results of zaya_router, for even and for odd layers: a router reads the state of
                the layer below
    attention, moe  workspaces
    """

    norm: torch.Tensor
    y: torch.Tensor
    stream: torch.Tensor
    projected: torch.Tensor
    qkv: Tensors
    attended: torch.Tensor
    routing: tuple[Tensors, Tensors]
    attention: torch.Tensor | None
    moe: MoeWorkspace

    @classmethod
    def new(
        cls, config: DecoderConfig, total: int, rows: Rows, dtype: torch.dtype, device: torch.device
    ) -> "Buffers":
        def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width = (heads + 2 * kv_heads) * config.head_dim
        q, k, v = (empty(total, n, config.head_dim) for n in (heads, kv_heads, kv_heads))
        norm = empty(total, config.hidden_size)
        experts = empty(total, 1, dtype=torch.int32)
        shared = empty(total, 1, dtype=torch.float32), experts, empty(total, dtype=torch.float32)
        routing = tuple((*shared, empty(total, config.router_hidden_size)) for _ in range(2))
        workspace = block_attention_workspace(q, rows)
        return cls(
            norm=norm,
            y=empty(total, config.hidden_size),
            stream=empty(total, config.hidden_size, dtype=torch.float32),
            projected=empty(config.committed_layers, total, width),
            qkv=(q, k, v),
            attended=empty(total, heads, config.head_dim),
            routing=routing,
            attention=empty(*workspace, dtype=torch.float32) if 0 not in workspace else None,
            moe=MoeWorkspace.new(norm, experts, config.num_experts, config.moe_intermediate_size),
        )
