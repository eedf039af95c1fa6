"""Small ZAYAs with random weights: of blockdraft, and of transformers' configs."""

import itertools

import torch

from blockdraft.models.config import ZayaConfig
from blockdraft.models.weights import assemble, is_scale, shapes
from blockdraft.models.zaya import ZayaModel


def random_model(seed=0, **given):
    """Every tensor is random; `given` is of its config. The vocabulary is small, so that some
    drafts are accepted."""
    config = dict(
        vocab_size=9,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        moe_intermediate_size=16,
        num_experts=3,
        router_hidden_size=8,
        max_position_embeddings=2048,
        mask_token_id=8,
        sliding_window=40,
        layer_types=["hybrid", "hybrid_sliding"],
    )
    config = ZayaConfig(**(config | given))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = (
            1 + 0.2 * noise
            if is_scale(name)
            else noise * (0.1 if len(shape) == 1 else 2 * noise[0].numel() ** -0.5)
        )
    return ZayaModel(config, assemble(config, tensors))


# transformers' ZayaConfig(**SMALL, **VARIANTS[name])
SMALL = dict(
    vocab_size=67,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    moe_intermediate_size=24,
    num_experts=3,
    router_hidden_size=12,
    max_position_embeddings=512,
    pad_token_id=None,
)
VARIANTS = {
    "plain": {},
    "groups of 8": dict(num_key_value_heads=1, hidden_size=40),
    "kernels 3 and 2": dict(cca_time0=3, cca_time1=2),
    "kernels 2 and 4": dict(cca_time0=2, cca_time1=4, num_key_value_heads=4),
    "biases": dict(attention_bias=True, lm_head_bias=True),
    "untied": dict(tie_word_embeddings=False),
    "sliding": dict(
        layer_types=["hybrid", "hybrid_sliding", "hybrid_sliding"],
        sliding_window=9,
        rope_parameters={
            "hybrid": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
            "hybrid_sliding": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
}


def randomise(model, seed, skip_bias=0.15):
    """Every parameter and buffer away from its blind initial value (temp 0, unit scales, zero
    biases)."""
    generator = torch.Generator().manual_seed(seed)
    for name, t in itertools.chain(model.named_parameters(), model.named_buffers()):
        if "inv_freq" in name:
            continue
        noise = torch.randn(t.shape, generator=generator)
        scale = 0.1 if t.dim() == 1 else 2 * t[0].numel() ** -0.5
        # tokens differ, and so does their routing
        scale *= 4 if "embed" in name or "router_mlp.out_proj" in name else 1
        t.data.copy_(1 + 0.3 * noise if is_scale(name) else scale * noise)
        if name.endswith("balancing_biases"):
            t[-1] = skip_bias
