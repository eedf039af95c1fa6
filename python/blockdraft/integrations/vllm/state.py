"""The ModelState of blockdraft's ZAYA: what a pass is, and what requests keep between two."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.model_states.interface import ModelState

from ...contract import Check
from ...layout import BlockLayout
from ...types import Rows
from ..drafts import Drafts
from .sampler import BlockSampler

CHECK = Check("blockdraft's ModelState for vLLM")


@dataclass
class Step:
    """One pass. vLLM schedules prompts' chunks and verify rows, `places` in `rows`; each request's
    mask rows stand after its own, `masks` is the first of them.

    The pass leaves `hidden`, of all rows, and `keep`, which commits rows 0..accepted[b].
    """

    batch: Any
    rows: Rows
    places: torch.Tensor
    masks: torch.Tensor
    slots: torch.Tensor
    prefill: torch.Tensor  # bool [B]: a chunk of a prompt
    chunked: torch.Tensor  # bool [B]: and not its last
    fresh: torch.Tensor  # slots of those with chunks
    conv_state: torch.Tensor
    late_state: torch.Tensor
    total: int
    block_table: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    keep: Callable[[torch.Tensor], None] | None = None


class BlockState(ModelState):
    """vLLM schedules the last token and K drafts of each request, K being the canvas_length of
    --diffusion-config. The number of proposals is "proposals" of --additional-config (default:
    K + 1)."""

    def __init__(
        self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        config, drafts = model.config, vllm_config.num_speculative_tokens
        proposals = (vllm_config.additional_config or {}).get("proposals", drafts + 1)
        masked = config.mask_token_id is not None or drafts == 0
        CHECK.need(masked, "config.json", "a mask_token_id, to draft with", None)
        self.layout = BlockLayout.tidar(drafts + 1, P=proposals if drafts else 0)
        mask = -1 if config.mask_token_id is None else config.mask_token_id
        valid = config.num_valid_vocab
        self.drafts = Drafts(self.max_num_reqs, self.layout, mask, valid, device)
        sizes = [config.conv_depth, config.conv_channels], [config.late_channels]
        self.conv_state, self.late_state = (
            torch.zeros(
                config.num_hidden_layers, self.max_num_reqs, *size, dtype=self.dtype, device=device
            )
            for size in sizes
        )

    def prepare_inputs_embeds(
        self, scheduled_encoder_inputs: dict[str, list[int]], input_batch: Any, req_states: Any
    ) -> None:
        return None

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Nothing of vLLM's is replaced: the model reads the step."""
        if self.model.step is not None and self.model.step.batch is not input_batch:
            self.model.step = None  # of a pass before; this one has no attention
        return {}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {}

    def prepare_attn(
        self,
        input_batch: Any,
        cudagraph_mode: Any,
        block_tables: Any,
        slot_mappings: torch.Tensor,
        attn_groups: Any,
        kv_cache_config: Any,
        for_capture: bool = False,
        ubatch_idx: int = 0,
    ) -> dict[str, Any]:
        CHECK.need(not for_capture, "--enforce-eager", "given", "a graph to capture")
        CHECK.need(ubatch_idx == 0, "ubatch_idx", "0", ubatch_idx)
        n = input_batch.num_reqs
        starts = torch.from_numpy(input_batch.query_start_loc_np[: n + 1])
        step = self._step(input_batch)
        metadata = build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=n,
            num_tokens=input_batch.num_tokens,
            query_start_loc_gpu=input_batch.query_start_loc[: n + 1],
            query_start_loc_cpu=starts,
            max_query_len=int(starts.diff().max()),
            seq_lens=input_batch.seq_lens,
            max_seq_len=step.rows.max_prefix,
            block_tables=block_tables,
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
        )
        tables = [m.block_table for m in metadata.values()]
        one = all(t is tables[0] or torch.equal(t, tables[0]) for t in tables[1:])
        CHECK.need(one, "KV cache", "one group of layers", "several")
        step.block_table = tables[0]
        self.model.step = step
        return metadata

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        return BlockSampler(sampler, self), None

    def _step(self, batch: Any) -> Step:
        n, layout = batch.num_reqs, self.layout
        counts = np.diff(batch.query_start_loc_np[: n + 1])
        prefilling = batch.is_prefilling_np[:n]
        ended = batch.num_computed_prefill_tokens_np[:n] + counts >= batch.prefill_len_np[:n]
        prefill, chunked = (
            torch.from_numpy(np.ascontiguousarray(t)).to(self.device)
            for t in (prefilling, prefilling & ~ended)
        )
        proposals = 0 if prefilling.all() else layout.P
        masks = proposals * layout.M
        starts = batch.query_start_loc[: n + 1].int()
        size, request = starts.diff(), torch.arange(n + 1, device=self.device)
        slots = batch.idx_mapping[:n].long()
        drafted = torch.minimum(self.drafts.fields["draft_len"][slots], size - 1)
        draft_len = torch.where(prefill, size - 1, drafted)
        branch = self.drafts.fields["branch"][slots, :proposals]
        dead = prefill[:, None] | (branch > draft_len[:, None] + 1)
        cu_rows = starts + (request * masks).int()
        tokens = torch.arange(batch.num_tokens, device=self.device)
        of = request[:n].repeat_interleave(size, output_size=batch.num_tokens)
        rows = Rows(
            cu_rows=cu_rows,
            prefix_lens=batch.seq_lens[:n].int() - size,
            draft_len=draft_len,
            branch=branch.masked_fill(dead, -1),
            mask_rows=layout.M,
            bidirectional=layout.bidirectional,
            max_rows=int(counts.max()) + masks,
            max_prefix=int(batch.seq_lens_cpu_upper_bound[:n].max()),
        )
        return Step(
            batch=batch,
            rows=rows,
            places=tokens + of * masks,
            masks=cu_rows[1:].long() - masks,
            slots=slots,
            prefill=prefill,
            chunked=chunked,
            fresh=torch.from_numpy(batch.idx_mapping_np[:n][prefilling]).to(self.device).long(),
            conv_state=self.conv_state,
            late_state=self.late_state,
            total=batch.num_tokens + n * masks,
        )
