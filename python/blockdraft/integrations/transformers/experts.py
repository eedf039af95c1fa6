"""SwiGLU experts of transformers' models."""

from weakref import WeakSet

import torch

from ... import ops
from ...contract import Check
from ...ops.fused_moe import unchecked
from .attention import check_inference

CHECK = Check("blockdraft experts")
_KNOWN: WeakSet[torch.nn.Module] = WeakSet()  # modules whose weights have passed the op's checks


def experts(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Of hidden_states [T,H]; choices [T,k]. A choice of weight 0, or of an expert beyond the last,
    is a skip: ZAYA's router spells it as expert 0 with weight 0, a shard's as num_experts."""
    check_inference(CHECK, hidden_states)
    gate_up, down = self.gate_up_proj, self.down_proj
    kept = (top_k_index < self.num_experts) & (top_k_index >= 0) & (top_k_weights != 0)
    choices = torch.where(kept, top_k_index, -1).int()
    given = hidden_states, choices, top_k_weights.float(), gate_up, down
    if self in _KNOWN and _alike(*given):
        return unchecked(*given)
    _refuse(self)
    y = ops.fused_moe(*given)
    _KNOWN.add(self)
    return y


def _alike(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> bool:
    """Whether these fit the module's weights. Where they do not, the op says why."""
    alike = x.dtype == gate_up.dtype == down.dtype and x.device == gate_up.device == down.device
    count, inner, hidden = gate_up.shape
    fits = x.shape == (len(x), hidden) and down.shape == (count, hidden, inner // 2)
    choices = experts.shape == weights.shape == (len(x), weights.shape[-1])
    strided = all(t.is_contiguous() for t in (x, experts, weights, gate_up, down))
    return alike and fits and choices and strided


def _refuse(self: torch.nn.Module) -> None:
    kind = [getattr(self, name, None) for name in ("has_gate", "has_bias", "is_transposed")]
    CHECK.need(kind == [True, False, False], "module", "gated experts without biases", kind)
    concatenated = getattr(self, "is_concatenated", True)
    CHECK.need(concatenated, "module", "gate rows, then up rows", "interleaved ones")
    post_norm = getattr(self, "has_post_expert_norm", False)
    CHECK.need(not post_norm, "module", "no norm after an expert", "one")
    activation = type(self.act_fn).__name__
    CHECK.need(activation in ("SiLU", "SiLUActivation"), "module", "SwiGLU", activation)
