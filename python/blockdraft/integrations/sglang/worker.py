"""The worker that SGLang's scheduler runs in place of its own: each decode step is one pass, which
verifies the last drafts and draws the next ones."""

import dataclasses
import zlib
from collections import deque
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker

from ...contract import Check
from ...decode_state import State
from ...layout import BlockLayout
from ...types import Sampling
from ..drafts import Drafts
from .algorithm import layout
from .cca import commit
from .inputs import DraftInput, VerifyInput
from .requests import unsupported

CHECK = Check("blockdraft for SGLang")


class Worker(BaseSpecWorker):
    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        super().__init__()
        self._target_worker, self._draft_worker = target_worker, None
        self.model_runner = target_worker.model_runner
        self.device = target_worker.device
        config = self.model_runner.model_config.hf_config
        self.mask_token = getattr(config, "mask_token_id", None)
        CHECK.need(self.mask_token is not None, "config.json", "a mask_token_id", None)
        self.num_valid_vocab = getattr(config, "num_valid_vocab", None)
        spec = get_spec()
        self.layout = layout(spec.speculative_num_draft_tokens, spec.speculative_eagle_topk)
        self.speculative_num_draft_tokens = self.layout.V
        self._unread: deque[tuple[list[Any], torch.Tensor]] = deque()

    @property
    def draft_worker(self) -> None:
        return None  # the target drafts

    def alloc_memory_pool(
        self,
        memory_pool_config: Any = None,
        req_to_token_pool: Any = None,
        token_to_kv_pool_allocator: Any = None,
    ) -> None:
        super().alloc_memory_pool(memory_pool_config, req_to_token_pool, token_to_kv_pool_allocator)
        requests = len(req_to_token_pool.req_to_token)
        vocabulary = self.mask_token, self.num_valid_vocab
        self.drafts = Drafts(requests, self.layout, *vocabulary, self.device)
        self.seeds = torch.zeros(requests, dtype=torch.int64, device=self.device)

    def forward_batch_generation(
        self, batch: Any, on_publish: Any = None, pp_proxy_tensors: Any = None
    ) -> Any:
        """A chunk of prompts, or a step of every request. `on_publish` is told the lengths of what
        is cached then."""
        CHECK.need(not batch.forward_mode.is_idle(), "batch", "one with requests", "an idle one")
        if batch.forward_mode.is_extend():
            result = self._prefill(batch)
        else:
            result = self._step(batch)
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        return result

    def on_verify_complete_cpu(
        self, num_correct_drafts_per_req: list[int], batch_size: int = 0
    ) -> None:
        """SGLang reads a step's results: requests whose logits were NaN end here."""
        requests, status = self._unread.popleft()
        for request, invalid in zip(requests, status.tolist()):
            if invalid:
                request.to_finish = FINISH_ABORT("blockdraft: NaN or nothing finite in the logits")

    def _prefill(self, batch: Any) -> Any:
        """SGLang samples the first token. Requests that ask for what a step cannot do end there."""
        for request in batch.reqs:
            reason = unsupported(request)
            if reason is not None:
                request.to_finish = FINISH_ABORT(f"blockdraft does not decode with {reason}")
        result = self.target_worker.forward_batch_generation(batch)
        slots, seeds = batch.req_pool_indices.long(), [_seed(request) for request in batch.reqs]
        self.seeds[slots] = torch.tensor(seeds, dtype=torch.int64).to(self.device)
        self.drafts.start(slots)
        result.new_seq_lens = batch.seq_lens
        result.next_draft_input = DraftInput(result.next_token_ids.flatten(), batch.seq_lens)
        return result

    def _step(self, batch: Any) -> Any:
        slots = batch.req_pool_indices.long()
        s = self.drafts.load(slots, batch.seq_lens, batch.spec_info.bonus_tokens)
        s.begin(s.prefix_lens)
        info = self._verify_input(batch, s)
        forward = self._forward_batch(batch, slots, s.inputs.tokens, info)
        result = self.target_worker.forward_batch_generation(
            batch=None, forward_batch=forward, is_verify=True
        )
        logits = result.logits_output.next_token_logits.unflatten(0, (-1, self.layout.V))
        choice = self.seeds[slots], _sampling(batch.sampling_info)
        v = self.drafts.accept(s, logits, *choice)
        if info.projected:
            commit(info.projected, v.accepted, info.kept)
        emitted = s.emitted_tokens().clamp(min=0).long()
        counts = v.accepted.clamp(min=0) + 1  # an invalid request's is not looked at
        self._unread.append((list(batch.reqs), v.status.clone()))
        masks = info.rows.cu_rows[:-1] + self.layout.V
        self.drafts.draft(slots, s, info.hidden, masks, info.head, *choice)
        lengths = batch.seq_lens + counts.to(batch.seq_lens.dtype)
        last = emitted.gather(1, counts[:, None].long() - 1)[:, 0]
        return GenerationBatchResult(
            logits_output=result.logits_output,
            next_token_ids=emitted.flatten(),
            accept_lens=counts,
            new_seq_lens=lengths,
            next_draft_input=DraftInput(last, lengths),
            speculative_num_draft_tokens=self.layout.V,
            can_run_cuda_graph=False,
        )

    def _verify_input(self, batch: Any, s: State) -> VerifyInput:
        longest = int(batch.seq_lens_cpu.max())
        rows = dataclasses.replace(s.inputs.rows, max_prefix=longest)
        verify = BlockLayout(self.layout.K, 1, 0)
        kept = verify.pack(s.prefix_lens, s.draft_len, s.branch[:, :0], longest)
        return VerifyInput(rows, kept, s.inputs.verify_rows.flatten().long())

    def _forward_batch(
        self, batch: Any, slots: torch.Tensor, tokens: torch.Tensor, info: VerifyInput
    ) -> Any:
        """Keys and values of mask rows and dead rows go to slot 0, which SGLang leaves unused."""
        table = info.table
        kept = table.live & (table.proposal < 0)
        place = self.req_to_token_pool.req_to_token[slots[table.request], table.position]
        forward = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=len(slots),
            input_ids=tokens.long(),
            req_pool_indices=batch.req_pool_indices,
            seq_lens=batch.seq_lens,
            out_cache_loc=torch.where(kept, place, 0).long(),
            seq_lens_sum=batch.seq_lens_sum,
            seq_lens_cpu=batch.seq_lens_cpu,
            positions=table.position,
            spec_algorithm=batch.spec_algorithm,
            spec_info=info,
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        self.model_runner.kv_index_translator.bind_own_plan(forward)
        return forward


def _sampling(info: Any) -> Sampling:
    """SGLang spells a greedy request as top_k 1."""
    top_k = info.top_ks.int()
    temperature = info.temperatures.flatten().float().masked_fill(top_k == 1, 0)
    return Sampling(
        temperature,
        top_k if info.need_top_k_sampling else None,
        info.top_ps.float() if info.need_top_p_sampling else None,
        info.min_ps.float() if info.need_min_p_sampling else None,
    )


def _seed(request: Any) -> int:
    """The same on all ranks, since each decides for itself."""
    seed = request.sampling_params.sampling_seed
    return zlib.crc32(str(request.rid).encode()) if seed is None else seed
