"""SwiGLU experts of transformers' models."""

import torch

from ... import ops
from ...contract import Check
from .attention import check_inference

CHECK = Check("blockdraft experts")


def experts(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Of hidden_states [T,H]; choices [T,k]. A choice of weight 0, or of an expert beyond the last,
    is a skip: ZAYA's router spells it as expert 0 with weight 0, a shard's as num_experts."""
    check_inference(CHECK, hidden_states)
    kind = [getattr(self, name, None) for name in ("has_gate", "has_bias", "is_transposed")]
    CHECK.need(kind == [True, False, False], "module", "gated experts without biases", kind)
    concatenated = getattr(self, "is_concatenated", True)
    CHECK.need(concatenated, "module", "gate rows, then up rows", "interleaved ones")
    post_norm = getattr(self, "has_post_expert_norm", False)
    CHECK.need(not post_norm, "module", "no norm after an expert", "one")
    activation = type(self.act_fn).__name__
    CHECK.need(activation in ("SiLU", "SiLUActivation"), "module", "SwiGLU", activation)
    skipped = (top_k_index >= self.num_experts) | (top_k_weights == 0)
    return ops.fused_moe(
        hidden_states,
        top_k_index.masked_fill(skipped, -1).int(),
        top_k_weights.float(),
        self.gate_up_proj,
        self.down_proj,
    )
