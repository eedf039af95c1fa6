"""What the worker keeps of SGLang's requests between two steps, and which it cannot serve."""

from collections.abc import Sequence
from typing import Any

import torch

from ...decode_state import State
from ...layout import BlockLayout


class Drafts:
    """By a request's row in SGLang's pool: what `State` calls so, and its seed."""

    FIELDS = ("drafts", "draft_len", "branch")

    def __init__(self, requests: int, layout: BlockLayout, device: torch.device | str) -> None:
        def full(*shape: int, value: int = -1, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.full((requests, *shape), value, dtype=dtype, device=device)

        self.drafts, self.draft_len, self.branch = full(layout.K), full(), full(layout.P)
        self.seed = full(value=0, dtype=torch.int64)

    def start(self, slots: torch.Tensor, seeds: Sequence[int]) -> None:
        """Nothing is drafted yet: the first step has one proposal, which continues the anchor."""
        self.drafts[slots] = -1
        self.draft_len[slots] = 0
        self.branch[slots] = -1
        self.branch[slots, :1] = 1
        self.seed[slots] = torch.tensor(seeds, dtype=torch.int64).to(slots.device)

    def load(self, slots: torch.Tensor, state: State) -> None:
        for name in self.FIELDS:
            getattr(state, name).copy_(getattr(self, name)[slots])

    def store(self, slots: torch.Tensor, state: State) -> None:
        for name in self.FIELDS:
            getattr(self, name)[slots] = getattr(state, name)


def unsupported(request: Any) -> str | None:
    """What a request asks for that a step of drafts does not do, or None."""
    params = request.sampling_params
    off = dict(frequency_penalty=0, presence_penalty=0, repetition_penalty=1, min_new_tokens=0)
    for name, value in off.items():
        if getattr(params, name) != value:
            return name
    for owner, name in (
        (params, "logit_bias"),
        (request, "grammar"),
        (request, "custom_logit_processor"),
        (request, "lora_id"),
        (request, "return_logprob"),
        (request, "return_hidden_states"),
    ):
        if getattr(owner, name, None):
            return name
    return None
