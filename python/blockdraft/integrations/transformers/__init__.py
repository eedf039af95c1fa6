"""transformers 5.23 and 5.24: a loaded `ZayaForCausalLM` decodes by block diffusion, and plain
decoding uses blockdraft's attention and experts.

    from blockdraft.integrations.transformers import blockdraft_generate, register

    model.generate(**inputs, max_new_tokens=200, custom_generate=blockdraft_generate)

    register()
    model.set_attn_implementation("blockdraft")
    model.set_experts_implementation("blockdraft")
"""

from .attention import attention, attention_mask
from .experts import experts
from .generate import blockdraft_generate, shared_model

__all__ = ["register", "blockdraft_generate", "shared_model"]


def register(name: str = "blockdraft") -> None:
    """Make blockdraft's attention and experts known to transformers under `name`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.moe import ExpertsInterface

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, attention_mask)
    ExpertsInterface.register(name, experts)
