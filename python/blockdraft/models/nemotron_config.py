"""Nemotron-Labs-Diffusion's config.json (NVIDIA's 3B, 8B and 14B self-speculative models), checked.
They are Ministral 3 (transformers `models/ministral3`), trained to fill blocks of masks too."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from .decoder_config import DecoderConfig
from .values import is_number, is_whole

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(frozen=True)
class NemotronConfig(DecoderConfig):
    """The fields of config.json that the runner reads. The defaults are the 3B model's."""

    MODEL_TYPE = "nemotron_labs_diffusion"
    LARGEST = DecoderConfig.LARGEST | {"intermediate_size": 2**20, "block_size": 2**16}

    vocab_size: int = 131072
    hidden_size: int = 3072
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    max_position_embeddings: int = 262144
    mlp_bias: bool = False
    eos_token_id: int | tuple[int, ...] | None = 2
    mask_token_id: int | None = 100
    block_size: int = 32  # of the blocks that it was trained to fill

    def __post_init__(self) -> None:
        self.check_scalars()
        for name in ("attention_bias", "mlp_bias"):
            self.need(getattr(self, name) is False, name, "False, as in the released models")
        if self.rope_parameters is None:
            self.set("rope_parameters", dict(_YARN))
        self.need(
            _is_yarn(self.rope_parameters),
            "rope_parameters",
            "rope_type 'yarn' or 'default', over the whole head, with rope_theta in 1..1e12; yarn "
            "and llama_4_scaling_beta need original_max_position_embeddings, and yarn a factor",
        )
        self.check_tokens()

    # no convolution: nothing but K/V is kept of a token
    conv_depth = conv_channels = late_channels = 0
    committed_layers = 1
    # its MLP is a mixture of one expert, without a router
    num_experts, router_hidden_size = 1, 0

    @property
    def moe_intermediate_size(self) -> int:
        return self.intermediate_size

    @property
    def window(self) -> int:
        return self.sliding_window or 0

    def frequencies(self) -> tuple[torch.Tensor, float]:
        """RoPE's angle a position, float32 [Dh/2], and the factor of cosines and sines. YaRN (arXiv
        2309.00071): fast channels turn as in training, slow ones `factor` times slower."""
        rope, dim = self.rope_parameters, self.head_dim
        turns = 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
        if rope.get("rope_type", "default") == "default":
            return turns, 1.0
        factor, trained = rope["factor"], rope["original_max_position_embeddings"]

        def channel(rotations: float) -> float:
            """The channel pair that makes so many rotations within the trained length."""
            log_length = math.log(trained / (rotations * 2 * math.pi))
            return dim * log_length / (2 * math.log(rope["rope_theta"]))

        low = channel(rope.get("beta_fast") or 32)
        high = channel(rope.get("beta_slow") or 1)
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp = (torch.arange(dim // 2).float() - low) / (high - low or 0.001)
        slow = ramp.clamp(0, 1)
        scaled = turns / factor * slow + turns * (1 - slow)
        return scaled, _attention_factor(rope)

    def query_scale(self, positions: int) -> torch.Tensor | None:
        """float32 [positions]: Llama 4's factor of queries beyond the trained length, or None."""
        beta = self.rope_parameters.get("llama_4_scaling_beta")
        if not beta:
            return None
        trained = self.rope_parameters["original_max_position_embeddings"]
        return 1 + beta * torch.log(1 + torch.floor(torch.arange(positions).float() / trained))


def _is_yarn(rope: Any) -> bool:
    if not isinstance(rope, dict) or not is_number(rope.get("rope_theta"), 1, 1e12):
        return False
    kind = rope.get("rope_type", "default")
    yarn = kind == "yarn"
    trained = is_whole(rope.get("original_max_position_embeddings"), 1, 2**30)
    return (
        kind in ("yarn", "default")
        and rope.get("partial_rotary_factor", 1.0) == 1
        and (not yarn or is_number(rope.get("factor"), 1, 1e6))
        and (trained or not (yarn or rope.get("llama_4_scaling_beta")))
    )


def _attention_factor(rope: dict[str, Any]) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def scale(m: float) -> float:
        return 0.1 * m * math.log(rope["factor"]) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)
