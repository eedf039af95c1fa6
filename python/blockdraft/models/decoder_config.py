"""What the config.json of every decoder has, checked."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .values import brief, is_number, is_whole, read_json

Self = TypeVar("Self", bound="DecoderConfig")


@dataclass(frozen=True)
class DecoderConfig:
    """The fields that all runners read. The defaults are those of the subclass's own release.

    Two keys are blockdraft's own where a checkpoint lacks them: `mask_token_id` is the token that
    fills a proposal, and ids from `num_valid_vocab` on are never emitted.
    """

    MODEL_TYPE: ClassVar[str]
    # The largest size that a config may name. No model comes near these, and a mistyped size is
    # refused before anything of that size is built.
    LARGEST: ClassVar[dict[str, int]] = {
        "vocab_size": 2**24,
        "hidden_size": 2**20,
        "num_hidden_layers": 2**12,
        "num_attention_heads": 2**12,
        "num_key_value_heads": 2**12,
        "head_dim": 2**12,
        "max_position_embeddings": 2**30,
    }

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    rope_parameters: dict[str, Any] | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    mask_token_id: int | None = None
    num_valid_vocab: int | None = None  # None: all of vocab_size

    def need(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            got = brief(getattr(self, name))
            raise ValueError(f"{type(self).__name__}: {name}: expected {expected}, got {got}")

    def set(self, name: str, value: Any) -> None:
        """Assign a field although instances are frozen; only `__post_init__` may."""
        object.__setattr__(self, name, value)

    def check_scalars(self) -> None:
        """Check the fields that have a default of their own and one value."""
        for name, most in self.LARGEST.items():
            self.need(is_whole(getattr(self, name), 1, most), name, f"an integer in 1..{most}")
        self.need(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads",
            f"a multiple of num_key_value_heads = {self.num_key_value_heads}",
        )
        self.need(
            self.head_dim % 2 == 0, "head_dim", "an even number, since RoPE rotates its halves"
        )
        self.need(
            isinstance(self.hidden_act, str) and self.hidden_act == "silu", "hidden_act", "'silu'"
        )
        self.need(
            is_number(self.rms_norm_eps, 0, 1) and self.rms_norm_eps > 0,
            "rms_norm_eps",
            "a number above 0, at most 1",
        )
        for name in ("attention_bias", "tie_word_embeddings"):
            self.need(isinstance(getattr(self, name), bool), name, "True or False")
        self.need(
            self.sliding_window is None or is_whole(self.sliding_window, 0, 2**31 - 1),
            "sliding_window",
            f"None or an integer in 0..{2**31 - 1}",
        )

    def check_tokens(self) -> None:
        if self.num_valid_vocab is None:
            self.set("num_valid_vocab", self.vocab_size)
        self.need(
            is_whole(self.num_valid_vocab, 1, self.vocab_size),
            "num_valid_vocab",
            f"an integer in 1..vocab_size = {self.vocab_size}",
        )
        self.need(
            self.mask_token_id is None or is_whole(self.mask_token_id, 0, self.vocab_size - 1),
            "mask_token_id",
            f"None or an integer in 0..{self.vocab_size - 1}",
        )
        if isinstance(self.eos_token_id, list):
            self.set("eos_token_id", tuple(self.eos_token_id))
        # An id beyond the vocabulary is allowed: it never comes, as with a release's default in a
        # small vocabulary.
        self.need(
            self.eos_token_id is None
            or all(is_whole(token, 0, 2**31 - 1) for token in self.stop_tokens),
            "eos_token_id",
            f"None, an integer in 0..{2**31 - 1}, or a list of such",
        )

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids that end a completion."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @classmethod
    def of(cls: type[Self], raw: dict[str, Any]) -> Self:
        """What config.json says. Keys that the runner does not read are ignored."""
        return cls(**{key: value for key, value in raw.items() if key in cls.__dataclass_fields__})

    @classmethod
    def load(cls: type[Self], folder: str | os.PathLike[str]) -> Self:
        """The config of a checkpoint folder."""
        owner = f"{cls.__name__}.load"
        if not isinstance(folder, (str, os.PathLike)):
            raise ValueError(f"{owner}: folder: expected a path, got {brief(folder)}")
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(
                f"{owner}: folder: expected a checkpoint folder with config.json, "
                f"got {str(folder)!r}"
            )
        raw = read_json(path)
        if raw.get("model_type") != cls.MODEL_TYPE:
            raise ValueError(
                f"{owner}: {path}: expected model_type {cls.MODEL_TYPE!r}, "
                f"got {brief(raw.get('model_type'))}"
            )
        return cls.of(raw)
