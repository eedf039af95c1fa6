"""Models by name, or by the config.json of any ZAYA."""

from pathlib import Path

from ..models.config import ZayaConfig
from .costs import active_weights

MODELS = {
    "ZAYA1-8B": ZayaConfig(),
    # The router's width is not published apart from the weights: that of the 8B is assumed
    "ZAYA1-74B": ZayaConfig(
        hidden_size=4096,
        num_hidden_layers=60,
        num_attention_heads=16,
        num_experts=24,
        moe_intermediate_size=4096,
        sliding_window=4097,
        layer_types=("hybrid", "hybrid_sliding") * 30,
    ),
}
UNCONFIRMED = {"ZAYA1-74B": "router_hidden_size = 256"}


def find(name: str) -> ZayaConfig:
    """A named model, whatever its case, or the config.json in a folder (or that file itself)."""
    for known, config in MODELS.items():
        if known.lower() == name.lower():
            return config
    path = Path(name)
    if path.name == "config.json" and path.is_file():
        return ZayaConfig.load(path.parent)
    if path.is_dir():
        return ZayaConfig.load(path)
    raise ValueError(
        f"model: expected one of {', '.join(MODELS)}, or a folder with a ZAYA config.json, "
        f"got {name!r}"
    )


def title(name: str) -> str:
    """The name as it is printed, with what nobody confirmed."""
    known = next((model for model in MODELS if model.lower() == name.lower()), Path(name).name)
    return f"{known} ({UNCONFIRMED[known]} unconfirmed)" if known in UNCONFIRMED else known


def weight_parts(config: ZayaConfig) -> tuple[int, int, int, int]:
    """All parameters but norms and biases: of the LM head (which the embedding shares), of the
    projections, of the experts, and the rest."""
    hidden = config.hidden_size
    layers = config.num_hidden_layers
    head = hidden * config.vocab_size
    channels = config.conv_channels + 2 * config.late_channels
    projections = layers * hidden * (channels + config.num_attention_heads * config.head_dim)
    experts = 3 * layers * config.num_experts * hidden * config.moe_intermediate_size
    return head, projections, experts, weight_count(config) - head - projections - experts


def weight_count(config: ZayaConfig) -> int:
    """All parameters but norms and biases."""
    idle_experts = config.num_experts - 1
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    return active_weights(config) + config.num_hidden_layers * idle_experts * expert
