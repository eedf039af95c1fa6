"""The classes that vLLM's attention layers ask for; it imports this module by name."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
)

from ... import ops
from ...contract import Check
from ...types import Rows
from ..paged import rows_of

CHECK = Check("blockdraft for vLLM")


@dataclass
class Metadata:
    """Of a batch, whose first `tokens` rows are real; row stored[i] goes to slot slots[i]."""

    rows: Rows
    block_table: torch.Tensor
    stored: torch.Tensor
    slots: torch.Tensor
    tokens: int


class Builder(AttentionMetadataBuilder):
    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: Any,
        fast_build: bool = False,
        draft_len: torch.Tensor | None = None,
        branch: torch.Tensor | None = None,
        mask_rows: int = 1,
    ) -> Metadata:
        """Causal rows, or draft blocks: what a ModelState's get_extra_attn_kwargs gives for them
        are the fields of Rows. The slots of mask rows are -1, and seq_lens do not count them."""
        common = common_attn_metadata
        CHECK.need(common.causal is True, "causal", "True", common.causal)
        count = common.num_reqs
        rows = rows_of(
            common.query_start_loc[: count + 1],
            common.seq_lens[:count],
            common.max_query_len,
            common.max_seq_len,
            draft_len,
            branch,
            mask_rows,
        )
        tokens = common.num_actual_tokens
        slots = common.slot_mapping[:tokens]
        stored = (slots >= 0).nonzero()[:, 0]
        return Metadata(rows, common.block_table_tensor[:count], stored, slots[stored], tokens)


class Impl(AttentionImpl):
    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        CHECK.need(alibi_slopes is None, "alibi_slopes", "None", alibi_slopes)
        CHECK.need(not logits_soft_cap, "logits_soft_cap", "none", logits_soft_cap)
        CHECK.need(attn_type == "decoder", "attn_type", "decoder", attn_type)
        own = kv_sharing_target_layer_name is None
        CHECK.need(own, "kv_sharing_target_layer_name", "None", kv_sharing_target_layer_name)
        plain = kv_cache_dtype in ("auto", "float16", "bfloat16")
        CHECK.need(plain, "kv_cache_dtype", "the model's dtype", kv_cache_dtype)
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale
        self.num_kv_heads = num_kv_heads or num_heads
        self.sliding_window, self.kv_cache_dtype = sliding_window, kv_cache_dtype

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Metadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Of query [T,Hq,Dh] and key, value [T,Hk,Dh], which are stored in kv_cache
        [pages,Hk,page,2*Dh] too, into output [T,Hq*Dh] or [T,Hq,Dh]."""
        plain = output_scale is None and output_block_scale is None
        CHECK.need(plain, "output_scale, output_block_scale", "None", "a scale")
        if attn_metadata is None:  # vLLM measures memory
            return output.fill_(0)
        batch = attn_metadata
        query, key, value = (t[: batch.tokens] for t in (query, key, value))
        caches = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        ops.block_attention(
            query,
            key,
            value,
            *caches,
            batch.block_table,
            batch.rows,
            scale=self.scale,
            window=self.sliding_window or 0,
            out=output[: batch.tokens].view(query.shape),
        )
        page = kv_cache.shape[2]
        for t, cache in zip((key, value), caches):
            cache[batch.slots // page, batch.slots % page] = t[batch.stored]
        return output


class Backend(AttentionBackend):
    supported_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    forward_includes_kv_cache_update = True

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[Impl]:
        return Impl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return [8, 16, 32, 64, 128]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return [64, 128]

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True
