"""What one call of `BlockDecoder.generate` works on: the requests' parameters, and their state."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .types import Accepted, Completion, Request, Sampling


@dataclass(frozen=True, eq=False, kw_only=True)
class Parameters:
    """What the requests of a batch ask for, as tensors on the model's device.

    seed              int64 [B]
    max_new_tokens    int32 [B]
    stop              int32 [B,S], filled up with -1, which is no token
    target_sampling   how the model's logits become p
    drafter_sampling  how the drafter's become q
    mix               float32 [B], or None where every request has 1
    branches          int32 [P], the decoder's; not used where each pass plans its own
    """

    seed: torch.Tensor
    max_new_tokens: torch.Tensor
    stop: torch.Tensor
    target_sampling: Sampling
    drafter_sampling: Sampling
    mix: torch.Tensor | None
    branches: torch.Tensor

    @staticmethod
    def of(requests: Sequence[Request], branches: list[int], device: torch.device) -> "Parameters":
        """Gather the parameters of all requests; draws the seeds that they leave open."""

        def column(values: list, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        def column_unless(off: float, name: str, dtype: torch.dtype) -> torch.Tensor | None:
            """None where every request leaves an option off: the ops then skip its work."""
            values = [getattr(r, name) for r in requests]
            return None if all(value == off for value in values) else column(values, dtype)

        seeds = [secrets.randbits(64) - 2**63 if r.seed is None else r.seed for r in requests]
        drafting = [
            r.temperature if r.draft_temperature is None else r.draft_temperature for r in requests
        ]
        width = max(1, max(len(r.stop) for r in requests))
        stop = [[*r.stop] + [-1] * (width - len(r.stop)) for r in requests]
        top_k = column_unless(0, "top_k", torch.int32)
        top_p = column_unless(1, "top_p", torch.float32)
        temperature = column([r.temperature for r in requests], torch.float32)
        return Parameters(
            seed=column(seeds, torch.int64),
            max_new_tokens=column([r.max_new_tokens for r in requests], torch.int32),
            stop=column(stop, torch.int32),
            target_sampling=Sampling(temperature, top_k, top_p),
            drafter_sampling=Sampling(column(drafting, torch.float32), top_k, top_p),
            mix=column_unless(1, "mix", torch.float32),
            branches=column(branches, torch.int32),
        )


@dataclass(eq=False, kw_only=True)
class State:
    """Where a batch stands between two passes; drafts are those under test in the next one.

    cache         the model's own; the decoder reads its `prefix_lens` and `max_tokens`
    anchor        int32 [B], the last token emitted, or of the prompt
    drafts        int32 [B,K], -1 where there is none
    draft_len     int32 [B], drafts in use; -1: the request has ended
    draft_logits  [B,K,vocab] from which the drafts were drawn
    draft_lse     [B,K], their log-normalisers
    shift         int32 [B]: draft i came from mask shift + 1 + i of its proposal
    branch        int32 [B,P], branches of the next pass's proposals; -1: none
    emitted       int32 [B], tokens emitted so far
    stopped       bool [B], whether a stop token was emitted
    status        int32 [B], not 0 where the logits were invalid (see Accepted)
    tokens        int32 [B, most tokens + V], valid up to `emitted`
    logprobs      float32, likewise
    committed     for each pass int32 [B], tokens that it yielded, before a cut at a stop token
    tried, kept   float64 [M], how many drafts of each mask offset were judged, and accepted
    """

    parameters: Parameters
    cache: Any
    anchor: torch.Tensor
    drafts: torch.Tensor
    draft_len: torch.Tensor
    draft_logits: torch.Tensor
    draft_lse: torch.Tensor
    shift: torch.Tensor
    branch: torch.Tensor
    emitted: torch.Tensor
    stopped: torch.Tensor
    status: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor
    committed: list[torch.Tensor]
    tried: torch.Tensor
    kept: torch.Tensor

    def running(self) -> bool:
        """Whether any request still has tokens to emit; waits for the device."""
        return bool((self.draft_len >= 0).any())

    def emit(self, verdict: Accepted) -> None:
        """Append the accepted drafts and the next token, cut after the first stop token."""
        accepted = verdict.accepted[:, None]
        next_token = verdict.next_token[:, None]
        column = torch.arange(self.drafts.shape[1] + 1, device=self.drafts.device)
        tokens = torch.cat([self.drafts, next_token], 1)
        tokens = torch.where(column == accepted, next_token, tokens)
        is_stop = (tokens[..., None] == self.parameters.stop[:, None]).any(-1)
        is_stop &= column <= accepted
        stops = is_stop.any(1)
        count = torch.where(stops, is_stop.int().argmax(1) + 1, verdict.accepted + 1).int()
        # A pass writes all V columns, which is why the buffers are longer by V. The next pass
        # overwrites those beyond `count`, or nothing ever reads them.
        place = (self.emitted[:, None] + column).long()
        self.tokens.scatter_(1, place, tokens)
        self.logprobs.scatter_(1, place, verdict.target_logprob)
        self.committed.append(verdict.accepted + 1)
        self.emitted += count
        self.stopped |= stops
        self.status = torch.where(verdict.status != 0, verdict.status, self.status)
        self.anchor = verdict.next_token

    def measure(self, accepted: torch.Tensor) -> None:
        """Count the drafts of this pass that were judged and kept, by the mask they came from."""
        draft = torch.arange(self.drafts.shape[1], device=accepted.device)
        # the first draft that is not kept was judged, the ones after it were not
        tried = draft < torch.minimum(accepted + 1, self.draft_len)[:, None]
        kept = tried & (draft < accepted[:, None])
        offset = (self.shift[:, None] + 1 + draft).clamp(max=len(self.tried) - 1).flatten()
        self.tried.index_add_(0, offset, tried.flatten().double())
        self.kept.index_add_(0, offset, kept.flatten().double())

    def completions(self) -> list[Completion]:
        """What each request came to."""
        columns = (self.tokens, self.logprobs, self.emitted, self.status, self.stopped)
        committed = torch.stack(self.committed, 1)
        requests = zip(*(column.tolist() for column in columns), committed.tolist())
        return [
            Completion(
                tokens=tokens[:count],
                logprobs=logprobs[:count],
                reason="invalid" if status else "stop" if stopped else "length",
                committed=[yielded for yielded in passes if yielded],
            )
            for tokens, logprobs, count, status, stopped, passes in requests
        ]
