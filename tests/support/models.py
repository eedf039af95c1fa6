"""A small ZAYA with random weights."""

import torch

from blockdraft.models.config import ZayaConfig
from blockdraft.models.weights import assemble, is_scale, shapes
from blockdraft.models.zaya import ZayaModel


def random_model(seed=0):
    """Every tensor is random. The vocabulary is small, so that some drafts are accepted."""
    config = ZayaConfig(
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
