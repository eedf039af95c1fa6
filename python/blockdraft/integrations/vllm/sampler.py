"""Acceptance and drafting in the place of vLLM's sampler."""

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from ...contract import Check
from ...types import Sampling

if TYPE_CHECKING:
    from .state import BlockState

CHECK = Check("blockdraft's sampler for vLLM")
OFF = dict(
    frequency_penalty=0.0,
    presence_penalty=0.0,
    repetition_penalty=1.0,
    min_tokens=0,
    logprobs=None,
    logit_bias=None,
    bad_words=None,
    structured_outputs=None,
)


class BlockSampler:
    """vLLM's own sampler keeps the requests' parameters. What it would apply beyond temperature,
    top-k, top-p and min-p is refused."""

    def __init__(self, sampler: Any, state: "BlockState") -> None:
        self.sampler, self.state = sampler, state

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["sampler"], name)

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        for name, off in OFF.items():
            value = getattr(sampling_params, name)
            CHECK.need(value == off or not value and not off, name, repr(off), value)
        self.sampler.add_request(req_idx, sampling_params)

    def __call__(
        self, logits: torch.Tensor, input_batch: Any, draft_logits: torch.Tensor | None = None
    ) -> Any:
        """The last row of a prompt yields a token, the verify rows of a request up to V. A request
        whose logits are NaN gets its end token, and counts in num_nans."""
        model, drafts = self.state.model, self.state.drafts
        step, V = model.step, drafts.layout.V
        if step is None or step.batch is not input_batch:  # vLLM measures memory
            return self.sampler(logits, input_batch)
        model.step = None
        first = input_batch.cu_num_logits[: len(step.slots)].long()
        given = input_batch.cu_num_logits[: len(step.slots) + 1].diff()
        column = torch.arange(V, device=logits.device)
        target = logits[first[:, None] + torch.minimum(column, given[:, None] - 1)]
        rows, size = step.rows, (step.masks - step.rows.cu_rows[:-1]).int()
        last = rows.prefix_lens + size - 1
        position = torch.where(step.prefill, last, rows.prefix_lens)
        s = drafts.load(step.slots, position, torch.zeros_like(position))
        s.draft_len.copy_(rows.draft_len.masked_fill(step.prefill, 0))
        s.branch.fill_(-1)
        s.branch[:, : rows.branch.shape[1]] = rows.branch
        choice = self._seeds(step.slots), self._sampling(step.slots, input_batch.idx_mapping_np)
        v = drafts.accept(s, target, *choice)
        step.keep(torch.where(step.prefill, size - 1, v.accepted))
        sampled = s.emitted_tokens().clamp(min=0).long()
        invalid = v.status != 0
        sampled[:, 0] = torch.where(invalid, self._end_token(), sampled[:, 0])
        count = (v.accepted + 1).masked_fill(invalid, 1).masked_fill(step.chunked, 0)
        rejected = (given - count).masked_fill(step.chunked, 0)
        self._draft(step, s, choice)
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=None,
            num_nans=invalid.int(),
            num_sampled=count,
            num_rejected=rejected,
        )

    def _draft(self, step: Any, s: Any, choice: tuple[torch.Tensor, Sampling]) -> None:
        drafts, head = self.state.drafts, self.state.model.compute_logits
        if step.rows.branch.shape[1] > 0:
            drafts.draft(step.slots, s, step.hidden, step.masks, head, *choice)
        drafts.start(step.fresh)
        tokens = self.sampler.req_states.draft_tokens
        K = drafts.layout.K
        tokens[step.slots, :K] = drafts.fields["drafts"][step.slots].clamp(min=0).to(tokens.dtype)

    def _seeds(self, slots: torch.Tensor) -> torch.Tensor:
        return self.sampler.sampling_states.seeds.gpu[slots]

    def _sampling(self, slots: torch.Tensor, slots_np: Any) -> Sampling:
        states, slots_np = self.sampler.sampling_states, slots_np[: len(slots)]
        off = dict(top_k=states.vocab_size, top_p=1.0, min_p=0.0)
        return Sampling(
            states.temperature.gpu[slots],
            *(
                getattr(states, name).gpu[slots]
                if (getattr(states, name).np[slots_np] != value).any()
                else None
                for name, value in off.items()
            ),
        )

    def _end_token(self) -> int:
        end = self.state.model.config.eos_token_id
        return (end[0] if isinstance(end, tuple) else end) or 0
