"""ZAYA's config.json (transformers `models/zaya`), checked."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .values import brief, is_number, is_whole, read_json

_ROPE = {
    "hybrid": {"rope_theta": 5e6, "partial_rotary_factor": 0.5},
    "hybrid_sliding": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
}

# The largest size that a config may name. No model comes near these, and a mistyped size is refused
# before anything of that size is built.
_LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "moe_intermediate_size": 2**20,
    "num_experts": 2**16,
    "router_hidden_size": 2**20,
    "cca_time0": 2**10,
    "cca_time1": 2**10,
    "max_position_embeddings": 2**30,
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
class ZayaConfig:
    """The fields of config.json that the runner reads. The defaults are ZAYA1-8B's.

    Two keys are blockdraft's own: `mask_token_id` is the token that fills a proposal, and ids from
    `num_valid_vocab` on are never emitted.
    """

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
    layer_types: tuple[str, ...] = ()  # empty: every layer is 'hybrid'
    rope_parameters: dict[str, Any] | None = None
    eos_token_id: int | tuple[int, ...] | None = 106
    mask_token_id: int | None = None
    num_valid_vocab: int | None = None  # None: all of vocab_size

    def __post_init__(self) -> None:
        self._check_scalars()
        self._fill_defaults()
        self._check_layers()
        self._check_tokens()

    def _need(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            got = brief(getattr(self, name))
            raise ValueError(f"ZayaConfig: {name}: expected {expected}, got {got}")

    def _set(self, name: str, value: Any) -> None:
        """Assign a field although instances are frozen; only `__post_init__` may."""
        object.__setattr__(self, name, value)

    def _check_scalars(self) -> None:
        """Check the fields that have a default of their own and one value."""
        for name, most in _LARGEST.items():
            self._need(is_whole(getattr(self, name), 1, most), name, f"an integer in 1..{most}")
        self._need(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads",
            f"a multiple of num_key_value_heads = {self.num_key_value_heads}",
        )
        self._need(
            self.head_dim % 2 == 0, "head_dim", "an even number, since half of a value is delayed"
        )
        self._need(
            is_whole(self.num_experts_per_tok, 1, 1),
            "num_experts_per_tok",
            "1 (ZAYA routes each token to one expert)",
        )
        self._need(
            isinstance(self.hidden_act, str) and self.hidden_act == "silu", "hidden_act", "'silu'"
        )
        self._need(
            is_number(self.rms_norm_eps, 0, 1) and self.rms_norm_eps > 0,
            "rms_norm_eps",
            "a number above 0, at most 1",
        )
        for name in ("attention_bias", "lm_head_bias", "tie_word_embeddings"):
            self._need(isinstance(getattr(self, name), bool), name, "True or False")

    def _fill_defaults(self) -> None:
        if self.layer_types is None or self.layer_types == () or self.layer_types == []:
            self._set("layer_types", ("hybrid",) * self.num_hidden_layers)
        if self.rope_parameters is None:
            self._set("rope_parameters", {kind: dict(rope) for kind, rope in _ROPE.items()})
        if self.num_valid_vocab is None:
            self._set("num_valid_vocab", self.vocab_size)

    def _check_layers(self) -> None:
        self._need(
            isinstance(self.layer_types, (list, tuple))
            and len(self.layer_types) == self.num_hidden_layers
            and all(isinstance(kind, str) and kind in _ROPE for kind in self.layer_types),
            "layer_types",
            f"{self.num_hidden_layers} of 'hybrid' or 'hybrid_sliding'",
        )
        self._set("layer_types", tuple(self.layer_types))
        self._need(
            self.sliding_window is None or is_whole(self.sliding_window, 0, 2**31 - 1),
            "sliding_window",
            f"None or an integer in 0..{2**31 - 1}",
        )
        self._need(
            "hybrid_sliding" not in self.layer_types or bool(self.sliding_window),
            "sliding_window",
            "a positive window, since some layers are 'hybrid_sliding'",
        )
        self._need(
            isinstance(self.rope_parameters, dict)
            and all(_is_plain_rope(self._rope(kind)) for kind in set(self.layer_types)),
            "rope_parameters",
            "rope_type 'default', rope_theta in 1..1e12 and partial_rotary_factor above 0, at most "
            "1, for every layer type in use",
        )

    def _check_tokens(self) -> None:
        self._need(
            is_whole(self.num_valid_vocab, 1, self.vocab_size),
            "num_valid_vocab",
            f"an integer in 1..vocab_size = {self.vocab_size}",
        )
        self._need(
            self.mask_token_id is None or is_whole(self.mask_token_id, 0, self.vocab_size - 1),
            "mask_token_id",
            f"None or an integer in 0..{self.vocab_size - 1}",
        )
        if isinstance(self.eos_token_id, list):
            self._set("eos_token_id", tuple(self.eos_token_id))
        # An id beyond the vocabulary is allowed: it never comes, as with the default of 106 in a
        # small vocabulary.
        self._need(
            self.eos_token_id is None
            or all(is_whole(token, 0, 2**31 - 1) for token in self.stop_tokens),
            "eos_token_id",
            f"None, an integer in 0..{2**31 - 1}, or a list of such",
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
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a completion."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

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

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "ZayaConfig":
        """The config of a checkpoint folder."""
        if not isinstance(folder, (str, os.PathLike)):
            raise ValueError(f"ZayaConfig.load: folder: expected a path, got {brief(folder)}")
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(
                "ZayaConfig.load: folder: expected a checkpoint folder with config.json, "
                f"got {str(folder)!r}"
            )
        raw = read_json(path)
        if raw.get("model_type") != "zaya":
            raise ValueError(
                f"ZayaConfig.load: {path}: expected model_type 'zaya', "
                f"got {brief(raw.get('model_type'))}"
            )
        return cls.of(raw)

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "ZayaConfig":
        """What config.json says. Keys that the runner does not read are ignored."""
        return cls(**{key: value for key, value in raw.items() if key in cls.__dataclass_fields__})
