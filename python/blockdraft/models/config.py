"""ZAYA's config.json (transformers `models/zaya`), checked."""

import json
from dataclasses import dataclass
from pathlib import Path

_ROPE = {
    "hybrid": {"rope_theta": 5e6, "partial_rotary_factor": 0.5},
    "hybrid_sliding": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
}


def _plain_rope(rope) -> bool:
    """Unscaled RoPE over a share of the head, the only kind that ZAYA uses."""
    return (
        isinstance(rope, dict)
        and rope.get("rope_type", "default") == "default"
        and isinstance(rope.get("rope_theta"), (int, float))
        and rope["rope_theta"] > 0
        and isinstance(share := rope.get("partial_rotary_factor", 1.0), (int, float))
        and 0 < share <= 1
    )


def read_json(path: Path) -> dict:
    """The object in a JSON file, or a ValueError that names the file."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON file, got {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    return raw


@dataclass(frozen=True)
class ZayaConfig:
    """Defaults are ZAYA1-8B's. `mask_token_id` is blockdraft's own key: the token that fills a
    proposal."""

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
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    attention_bias: bool = False
    lm_head_bias: bool = False
    tie_word_embeddings: bool = True
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    rope_parameters: dict | None = None
    eos_token_id: int | tuple[int, ...] | None = 106
    mask_token_id: int | None = None
    num_valid_vocab: int | None = None

    def __post_init__(self):
        fix = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731  (frozen)
        fix("layer_types", self.layer_types or ["hybrid"] * self.num_hidden_layers)
        fix("rope_parameters", self.rope_parameters or _ROPE)
        fix(
            "num_valid_vocab",
            self.vocab_size if self.num_valid_vocab is None else self.num_valid_vocab,
        )
        self._check()
        fix("layer_types", tuple(self.layer_types))
        if isinstance(self.eos_token_id, list):
            fix("eos_token_id", tuple(self.eos_token_id))

    def _check(self):
        def need(ok, name, expected):
            if not ok:
                raise ValueError(
                    f"ZayaConfig: {name}: expected {expected}, got {getattr(self, name)!r}"
                )

        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "moe_intermediate_size",
            "num_experts",
            "router_hidden_size",
            "cca_time0",
            "cca_time1",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            need(isinstance(value, int) and value > 0, name, "a positive integer")
        need(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads",
            f"a multiple of num_key_value_heads = {self.num_key_value_heads}",
        )
        need(
            self.num_experts_per_tok == 1,
            "num_experts_per_tok",
            "1 (ZAYA routes each token to one expert)",
        )
        need(self.hidden_act == "silu", "hidden_act", "'silu'")
        need(
            isinstance(self.layer_types, (list, tuple))
            and len(self.layer_types) == self.num_hidden_layers
            and set(self.layer_types) <= set(_ROPE),
            "layer_types",
            f"{self.num_hidden_layers} of 'hybrid' or 'hybrid_sliding'",
        )
        need(
            isinstance(self.rms_norm_eps, float) and self.rms_norm_eps > 0,
            "rms_norm_eps",
            "a positive number",
        )
        need(
            "hybrid_sliding" not in self.layer_types or (self.sliding_window or 0) > 0,
            "sliding_window",
            "a positive window, since some layers are 'hybrid_sliding'",
        )
        need(
            isinstance(self.rope_parameters, dict)
            and all(_plain_rope(self._rope(kind)) for kind in set(self.layer_types)),
            "rope_parameters",
            "rope_type 'default', rope_theta > 0 and partial_rotary_factor in 0..1 for every layer type in use",
        )
        need(
            isinstance(self.num_valid_vocab, int) and 1 <= self.num_valid_vocab <= self.vocab_size,
            "num_valid_vocab",
            f"1 .. vocab_size = {self.vocab_size}",
        )
        need(
            self.mask_token_id is None or 0 <= self.mask_token_id < self.vocab_size,
            "mask_token_id",
            f"None or 0..{self.vocab_size - 1}",
        )

    def _rope(self, layer_type: str) -> dict:
        rope = self.rope_parameters
        return rope[layer_type] if layer_type in rope else rope

    def window(self, layer: int) -> int:
        """Sliding window of a layer, 0 for none."""
        return self.sliding_window if self.layer_types[layer] == "hybrid_sliding" else 0

    def rotary_dim(self, layer: int) -> int:
        return int(
            self.head_dim * self._rope(self.layer_types[layer]).get("partial_rotary_factor", 1.0)
        )

    def rope_theta(self, layer: int) -> float:
        return float(self._rope(self.layer_types[layer])["rope_theta"])

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        eos = self.eos_token_id
        return () if eos is None else tuple(eos) if isinstance(eos, tuple) else (eos,)

    @property
    def conv_channels(self) -> int:
        return (self.num_attention_heads + self.num_key_value_heads) * self.head_dim

    @property
    def conv_depth(self) -> int:
        """Tokens that the two convolutions look back to (taps - 1)."""
        return self.cca_time0 + self.cca_time1 - 2

    @property
    def late_channels(self) -> int:
        return self.num_key_value_heads * self.head_dim // 2

    @classmethod
    def load(cls, folder) -> "ZayaConfig":
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(
                f"ZayaConfig.load: folder: expected a checkpoint folder with config.json, got {str(folder)!r}"
            )
        raw = read_json(path)
        if raw.get("model_type") != "zaya":
            raise ValueError(
                f"ZayaConfig.load: {path}: expected model_type 'zaya', got {raw.get('model_type')!r}"
            )
        return cls(**{key: value for key, value in raw.items() if key in cls.__dataclass_fields__})
