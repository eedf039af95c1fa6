"""ZAYA for vLLM, which imports this module by name: blockdraft's own runner, over vLLM's cache."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention

from ... import ops
from ...contract import Check
from ...models.config import ZayaConfig
from ...models.weights import assemble
from ...models.zaya import ZayaModel
from ...types import Rows
from .attention import Backend
from .state import BlockState, Step

CHECK = Check("blockdraft's ZAYA for vLLM")


class ZayaForCausalLM(torch.nn.Module):
    """Its layers of vLLM's attention only declare the cache, which vLLM binds to them. Experts and
    all else are `ZayaModel`'s. The state sets `step` before a pass; without one, vLLM measures
    memory."""

    step: Step | None = None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        _refuse(vllm_config)
        model_config = vllm_config.model_config
        self.config = ZayaConfig.of(model_config.hf_config.to_dict())
        self.dtype = model_config.dtype
        c = self.config
        self.attention = torch.nn.ModuleList(
            Attention(
                c.num_attention_heads,
                c.head_dim,
                c.head_dim**-0.5,
                num_kv_heads=c.num_key_value_heads,
                cache_config=vllm_config.cache_config,
                prefix=f"{prefix}.layers.{i}.attn".lstrip("."),
                attn_backend=Backend,
            )
            for i in range(c.num_hidden_layers)
        )

    @staticmethod
    def get_model_state_cls() -> type[BlockState]:
        return BlockState

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """A Hugging Face checkpoint's."""
        device = torch.get_default_device()
        tensors = {
            name: t.to(device, t.dtype if name.endswith("balancing_biases") else self.dtype)
            for name, t in weights
        }
        self.zaya = ZayaModel(self.config, assemble(self.config, tensors))
        return set(tensors)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.zaya.weights.embedding[input_ids]

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final hidden states of the scheduled tokens. Those of mask rows stay with the step."""
        CHECK.need(inputs_embeds is None, "inputs_embeds", "None", "embeddings")
        step = self.step
        if step is None:
            empty = torch.zeros(1, dtype=torch.int32, device=input_ids.device)
            rows = Rows.prefill(empty, [len(input_ids)], 0)
            return self.zaya.forward(input_ids.int(), rows)
        mask = max(self.config.mask_token_id or 0, 0)
        tokens = input_ids.new_full((step.total,), mask, dtype=torch.int32)
        tokens[step.places] = input_ids[: len(step.places)].int().clamp(min=0)
        pages = [layer.kv_cache.transpose(1, 2).chunk(2, -1) for layer in self.attention]
        cache = SimpleNamespace(
            k=[k for k, _ in pages],
            v=[v for _, v in pages],
            scales=[{}] * len(pages),
            block_table=step.block_table,
            conv_state=step.conv_state,
            late_state=step.late_state,
            slots=step.slots.int(),
        )
        step.hidden = self.zaya.forward(tokens, step.rows, cache)
        step.keep = lambda accepted: self.zaya.commit(accepted, step.rows, cache)
        return step.hidden[step.places]

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.zaya.head(ops, hidden_states)


def _refuse(vllm_config: Any) -> None:
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        CHECK.need(getattr(parallel, name) == 1, name, "1", getattr(parallel, name))
    reuse = cache.enable_prefix_caching
    CHECK.need(not reuse, "--no-enable-prefix-caching", "given, since CCA has a state", "not")
    CHECK.need(vllm_config.model_config.enforce_eager, "--enforce-eager", "given", "not")
    for name in ("quant_config", "lora_config"):
        CHECK.need(getattr(vllm_config, name) is None, name, "None", getattr(vllm_config, name))
