"""ZAYA's config.json (transformers `models/zaya`), checked."""

from dataclasses import dataclass
from typing import Any

from .decoder_config import DecoderConfig
from .values import is_number, is_whole

_ROPE = {
    "hybrid": {"rope_theta": 5e6, "partial_rotary_factor": 0.5},
    "hybrid_sliding": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
}


def _is_plain_rope(rope: Any) -> bool:
    """Whether this is unscaled RoPE over a share of the head, the only kind that ZAYA uses."""
    if not isinstance(rope, dict):
        return False
    share = rope.get("partial_rotary_factor", 1.0)
    return (
        rope.get("rope_type", "default") == "default"
        and is_number(rope.get("rope_theta"), 1, 1e12)
        and is_number(share, 0, 1)
        and share > 0
    )


@dataclass(frozen=True)
class ZayaConfig(DecoderConfig):
    """The fields of config.json that the runner reads. The defaults are ZAYA1-8B's."""

    MODEL_TYPE = "zaya"
    LARGEST = DecoderConfig.LARGEST | {
        "moe_intermediate_size": 2**20,
        "num_experts": 2**16,
        "router_hidden_size": 2**20,
        "cca_time0": 2**10,
        "cca_time1": 2**10,
    }

    vocab_size: int = 262272
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 128
    moe_intermediate_size: int = 2048
    num_experts: int = 16
    num_experts_per_tok: int = 1
    router_hidden_size: int = 256
    cca_time0: int = 2
    cca_time1: int = 2
    max_position_embeddings: int = 131072
    lm_head_bias: bool = False
    tie_word_embeddings: bool = True
    layer_types: tuple[str, ...] = ()  # empty: every layer is 'hybrid'
    eos_token_id: int | tuple[int, ...] | None = 106

    def __post_init__(self) -> None:
        self.check_scalars()
        self._check_own()
        self._fill_defaults()
        self._check_layers()
        self.check_tokens()

    def _check_own(self) -> None:
        self.need(
            is_whole(self.num_experts_per_tok, 1, 1),
            "num_experts_per_tok",
            "1 (ZAYA routes each token to one expert)",
        )
        self.need(isinstance(self.lm_head_bias, bool), "lm_head_bias", "True or False")

    def _fill_defaults(self) -> None:
        if self.layer_types is None or self.layer_types == () or self.layer_types == []:
            self.set("layer_types", ("hybrid",) * self.num_hidden_layers)
        if self.rope_parameters is None:
            self.set("rope_parameters", {kind: dict(rope) for kind, rope in _ROPE.items()})

    def _check_layers(self) -> None:
        self.need(
            isinstance(self.layer_types, (list, tuple))
            and len(self.layer_types) == self.num_hidden_layers
            and all(isinstance(kind, str) and kind in _ROPE for kind in self.layer_types),
            "layer_types",
            f"{self.num_hidden_layers} of 'hybrid' or 'hybrid_sliding'",
        )
        self.set("layer_types", tuple(self.layer_types))
        self.need(
            "hybrid_sliding" not in self.layer_types or bool(self.sliding_window),
            "sliding_window",
            "a positive window, since some layers are 'hybrid_sliding'",
        )
        self.need(
            isinstance(self.rope_parameters, dict)
            and all(_is_plain_rope(self._rope(kind)) for kind in set(self.layer_types)),
            "rope_parameters",
            "rope_type 'default', rope_theta in 1..1e12 and partial_rotary_factor above 0, at most "
            "1, for every layer type in use",
        )

    def _rope(self, layer_type: str) -> Any:
        """RoPE's parameters of a layer type: its own, or those that all types share."""
        return self.rope_parameters.get(layer_type, self.rope_parameters)

    def window(self, layer: int) -> int:
        """Sliding window of a layer, 0 for none."""
        return self.sliding_window if self.layer_types[layer] == "hybrid_sliding" else 0

    def rotary_dim(self, layer: int) -> int:
        """Channels of each head that RoPE rotates."""
        share = self._rope(self.layer_types[layer]).get("partial_rotary_factor", 1.0)
        return int(self.head_dim * share)

    def rope_theta(self, layer: int) -> float:
        """Base of RoPE's wavelengths."""
        return float(self._rope(self.layer_types[layer])["rope_theta"])

    @property
    def committed_layers(self) -> int:
        """Layers whose projections a commit reads."""
        return self.num_hidden_layers

    @property
    def conv_channels(self) -> int:
        """Channels that the convolutions mix: all queries, then all keys."""
        return (self.num_attention_heads + self.num_key_value_heads) * self.head_dim

    @property
    def conv_depth(self) -> int:
        """Tokens that the two convolutions look back to (taps - 1)."""
        return self.cca_time0 + self.cca_time1 - 2

    @property
    def late_channels(self) -> int:
        """Channels of a token's value that come from its parent."""
        return self.num_key_value_heads * self.head_dim // 2
