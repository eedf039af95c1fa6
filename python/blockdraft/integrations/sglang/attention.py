"""Attention over SGLang's pages, causal and of drafts; imported when the backend is asked for."""

from typing import Any, NamedTuple

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from ... import ops
from ...contract import Check
from ...types import Rows
from ..paged import rows_of
from .inputs import VerifyInput

CHECK = Check("blockdraft for SGLang")


class Metadata(NamedTuple):
    rows: Rows
    block_table: torch.Tensor


class Backend(AttentionBackend):
    def __init__(self, model_runner: Any) -> None:
        super().__init__()
        page = model_runner.page_size
        CHECK.need(page >= 8 and page & (page - 1) == 0, "--page-size", "8, 16, 32, ...", page)
        self.page = page
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Of a batch of decode steps, or of chunks of prompts."""
        rows = batch_rows(forward_batch)
        tokens = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices]
        table = tokens[:, : rows.max_prefix : self.page] // self.page
        self.forward_metadata = Metadata(rows, table.int().contiguous())

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        _refuse(layer, k, kwargs)
        rows, table = self.forward_metadata
        pool, last = self.token_to_kv_pool, q.shape[-1]
        buffers = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        full = len(buffers[0]) // self.page * self.page
        pages = [t[:full].unflatten(0, (-1, self.page)) for t in buffers]
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        keys, values = (t.view(-1, layer.tp_k_head_num, layer.qk_head_dim) for t in (k, v))
        window = max(layer.sliding_window_size + 1, 0)  # SGLang's excludes the query itself
        out = ops.block_attention(
            queries, keys, values, *pages, table, rows, scale=layer.scaling, window=window
        )
        if save_kv_cache:
            where = KVWriteLoc(forward_batch.out_cache_loc, None)
            pool.set_kv_buffer(layer, where, keys, values)
        return out.view(*q.shape[:-1], last) if q.dim() == 2 else out

    forward_extend = forward_decode


def batch_rows(forward_batch: Any) -> Rows:
    """A row for each request that decodes, those of its chunk, or of its drafts and proposals."""
    mode, lengths = forward_batch.forward_mode, forward_batch.seq_lens
    if mode.is_target_verify():
        info = forward_batch.spec_info
        kind = type(info).__name__
        CHECK.need(isinstance(info, VerifyInput), "spec_info", "of BLOCKDRAFT's worker", kind)
        return info.rows
    longest = int(forward_batch.seq_lens_cpu.max())
    if mode.is_decode():
        starts = torch.arange(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
        return rows_of(starts, lengths, 1, longest)
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    starts[1:] = forward_batch.extend_seq_lens.cumsum(0)
    return rows_of(starts, lengths, max(forward_batch.extend_seq_lens_cpu), longest)


def _refuse(layer: Any, k: torch.Tensor | None, extra: dict) -> None:
    CHECK.need(k is not None, "k", "keys of this layer's own", None)
    CHECK.need(not layer.logit_cap, "logit_cap", "0", layer.logit_cap)
    CHECK.need(not layer.is_cross_attention, "layer", "self-attention", "cross-attention")
    causal = getattr(layer.attn_type, "value", layer.attn_type) == "decoder"
    CHECK.need(causal, "attn_type", "decoder", layer.attn_type)
    CHECK.need(layer.v_head_dim == layer.qk_head_dim, "v_head_dim", "qk_head_dim", layer.v_head_dim)
    given = sorted(name for name, value in extra.items() if value is not None)
    CHECK.need(not given, "forward's arguments", "no others", ", ".join(given))
