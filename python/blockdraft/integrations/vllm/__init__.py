"""vLLM 0.33: an attention backend for its V1 engine, and ZAYA decoded by blocks. A plugin.

    vllm serve MODEL --attention-backend CUSTOM

    VLLM_USE_V2_MODEL_RUNNER=1 vllm serve ZAYA --diffusion-config '{"canvas_length": 15}' \\
        --additional-config '{"proposals": 4}' --enforce-eager --no-enable-prefix-caching

vLLM calls `register` in every process (entry point vllm.general_plugins). Causal decoders with a
cache of the model's dtype are served by the attention; draft blocks are, where a ModelState names
them (see `attention.Builder.build`). `ZayaForCausalLM` is blockdraft's own runner over vLLM's
cache, on one GPU: K = canvas_length drafts and so many proposals a pass; without a
--diffusion-config it decodes token by token. Penalties, biases, log-probabilities and grammars are
refused there.
"""

__all__ = ["register"]


def register() -> None:
    """Make known to vLLM blockdraft's attention, as CUSTOM, used where it is asked for, and its
    ZAYA."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, f"{__name__}.attention.Backend")
    ModelRegistry.register_model("ZayaForCausalLM", f"{__name__}.model:ZayaForCausalLM")
