"""ZAYA's tensors: where each comes from in a Hugging Face checkpoint, and its shape."""

from dataclasses import dataclass

import torch

from ..contract import FLOATS
from . import scaled
from .config import ZayaConfig

_PROJECTIONS = ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed")
_SCALING = ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias")


@dataclass
class LayerWeights:
    """The weights of one layer.

    Experts are as ops.fused_moe takes them; `expert_scales` are its keyword arguments, if any. The
    rows of `projection` are those of q, k, v now and v late. Convolutions keep the shapes of
    torch's Conv1d. A scaling is hidden scale, hidden bias, residual scale and residual bias.
    """

    input_norm: torch.Tensor
    projection: torch.Tensor
    projection_bias: torch.Tensor | None
    conv0_weight: torch.Tensor
    conv0_bias: torch.Tensor
    conv1_weight: torch.Tensor
    conv1_bias: torch.Tensor
    temp: torch.Tensor
    o_weight: torch.Tensor
    o_bias: torch.Tensor | None
    attention_scaling: list[torch.Tensor]
    moe_norm: torch.Tensor
    router: dict[str, torch.Tensor | None]  # keyword arguments of ops.zaya_router
    gate_up: torch.Tensor
    down: torch.Tensor
    expert_scales: dict[str, torch.Tensor]
    moe_scaling: list[torch.Tensor]


@dataclass
class ZayaWeights:
    """All weights of a model. `lm_head` is the embedding itself where the two are tied."""

    embedding: torch.Tensor
    input_scale: torch.Tensor
    input_bias: torch.Tensor
    layers: list[LayerWeights]
    norm: torch.Tensor
    lm_head: torch.Tensor
    lm_head_bias: torch.Tensor | None


def shapes(config: ZayaConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, by its Hugging Face name.

    The order is part of the meaning: seeded initialisations draw tensor after tensor in it.
    """
    H = config.hidden_size
    out = {
        "model.embed_tokens.weight": (config.vocab_size, H),
        "model.norm.weight": (H,),
        "model.input_hidden_states_scale": (H,),
        "model.input_hidden_states_bias": (H,),
    }
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = (config.vocab_size, H)
    if config.lm_head_bias:
        out["lm_head.bias"] = (config.vocab_size,)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        for name, shape in _attention_shapes(config).items():
            out[f"{layer}self_attn.{name}"] = shape
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{layer}{norm}.weight"] = (H,)
        for place in ("post_attention", "post_mlp"):
            for name in _SCALING:
                out[f"{layer}{place}_residual_scale.{name}"] = (H,)
        for name, shape in _moe_shapes(config, first=i == 0).items():
            out[f"{layer}mlp.{name}"] = shape
    return out


def is_scale(name: str) -> bool:
    """Whether a tensor of a checkpoint multiplies each channel or head, so that 1 changes nothing:
    what random weights are drawn around."""
    return name.endswith(("norm.weight", "layernorm.weight", "_scale", "temp"))


def _attention_shapes(config: ZayaConfig) -> dict[str, tuple[int, ...]]:
    H, Dh, channels = config.hidden_size, config.head_dim, config.conv_channels
    queries, keys = config.num_attention_heads * Dh, config.num_key_value_heads * Dh
    widths = (queries, keys, config.late_channels, config.late_channels)
    linear = {f"qkv_proj.{name}": (width, H) for name, width in zip(_PROJECTIONS, widths)}
    linear["o_proj"] = (H, queries)
    out = {}
    for name, shape in linear.items():
        out[f"{name}.weight"] = shape
        if config.attention_bias:
            out[f"{name}.bias"] = shape[:1]
    out["qkv_proj.conv_qk_depthwise.weight"] = (channels, 1, config.cca_time0)
    out["qkv_proj.conv_qk_grouped.weight"] = (channels, Dh, config.cca_time1)
    out["qkv_proj.conv_qk_depthwise.bias"] = (channels,)
    out["qkv_proj.conv_qk_grouped.bias"] = (channels,)
    out["qk_norm.temp"] = (config.num_key_value_heads,)
    return out


def _moe_shapes(config: ZayaConfig, first: bool) -> dict[str, tuple[int, ...]]:
    """The first layer's router has no state of a layer below to scale."""
    H, E, inner = config.hidden_size, config.num_experts, config.moe_intermediate_size
    out = {
        f"gate.{name}": shape
        for key, (name, shape) in _router(config.router_hidden_size, H, E).items()
        if key != "eda_scale" or not first
    }
    out["experts.gate_up_proj"] = (E, 2 * inner, H)
    out["experts.down_proj"] = (E, H, inner)
    return out


def _router(R: int, H: int, E: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The checkpoint's name and the shape of each of zaya_router's weights, by argument."""
    return {
        "down_weight": ("down_proj.weight", (R, H)),
        "down_bias": ("down_proj.bias", (R,)),
        "eda_scale": ("router_states_scale", (R,)),
        "norm_weight": ("router_mlp.norm.weight", (R,)),
        "fc1_weight": ("router_mlp.fc1.weight", (R, R)),
        "fc1_bias": ("router_mlp.fc1.bias", (R,)),
        "fc2_weight": ("router_mlp.fc2.weight", (R, R)),
        "fc2_bias": ("router_mlp.fc2.bias", (R,)),
        "out_weight": ("router_mlp.out_proj.weight", (E + 1, R)),
        "balancing_bias": ("balancing_biases", (E + 1,)),
    }


def assemble(config: ZayaConfig, tensors: dict[str, torch.Tensor]) -> ZayaWeights:
    """Group a checkpoint's tensors (names as in `shapes`) the way the runner uses them. Names,
    shapes and dtypes are checked first."""
    expected, own = scaled.stored(tensors, shapes(config))
    check("ZAYA", expected, tensors, "lm_head.weight", own)
    embedding = tensors["model.embed_tokens.weight"]
    return ZayaWeights(
        embedding=embedding,
        input_scale=tensors["model.input_hidden_states_scale"],
        input_bias=tensors["model.input_hidden_states_bias"],
        layers=[_layer(tensors, i) for i in range(config.num_hidden_layers)],
        norm=tensors["model.norm.weight"],
        lm_head=embedding if config.tie_word_embeddings else tensors["lm_head.weight"],
        lm_head_bias=tensors.get("lm_head.bias"),
    )


def check(
    family: str,
    expected: dict[str, tuple[int, ...]],
    tensors: dict[str, torch.Tensor],
    tied: str,
    own: dict[str, torch.dtype] | None = None,
) -> None:
    """Every tensor is there, in its shape, in one float dtype throughout (the balancing biases may
    have their own, and the tensors in `own` have theirs), and nothing else is. The first one
    expected is the embedding. Some checkpoints store the head, `tied`, again although it is the
    embedding."""
    common = None
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"checkpoint: {name}: expected a tensor of shape {shape}, got none")
        tensor = tensors[name]
        common = common or tensor.dtype
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"checkpoint: {name}: expected shape {shape}, got {tuple(tensor.shape)}"
            )
        if own and name in own:
            if tensor.dtype != own[name]:
                raise ValueError(f"checkpoint: {name}: expected {own[name]}, got {tensor.dtype}")
            continue
        own_dtype = tensor.dtype != common and not name.endswith("balancing_biases")
        if own_dtype or tensor.dtype not in FLOATS:
            raise ValueError(
                f"checkpoint: {name}: expected one float dtype throughout (bf16, fp16 or fp32; "
                f"pass dtype= to convert), got {tensor.dtype} beside {common}"
            )
    foreign = sorted(set(tensors) - set(expected) - {tied})
    if foreign:
        raise ValueError(
            f"checkpoint: expected only {family} tensors, got {foreign[0]!r} "
            f"and {len(foreign) - 1} more"
        )


def _layer(tensors: dict[str, torch.Tensor], i: int) -> LayerWeights:
    layer = f"model.layers.{i}."
    attention = f"{layer}self_attn."
    moe = f"{layer}mlp."
    conv = f"{attention}qkv_proj.conv_qk_"
    projections = [f"{attention}qkv_proj.{name}" for name in _PROJECTIONS]
    biased = f"{projections[0]}.bias" in tensors
    router = {key: tensors.get(f"{moe}gate.{name}") for key, (name, _) in _router(0, 0, 0).items()}
    router["balancing_bias"] = router["balancing_bias"].float()  # as the kernels take it
    gate_up, gate_up_scale = scaled.experts(tensors, f"{moe}experts.gate_up_proj")
    down, down_scale = scaled.experts(tensors, f"{moe}experts.down_proj")
    scales = dict(gate_up_scale=gate_up_scale, down_scale=down_scale)
    return LayerWeights(
        input_norm=tensors[f"{layer}input_layernorm.weight"],
        projection=_joined([tensors[f"{name}.weight"] for name in projections]),
        projection_bias=(
            _joined([tensors[f"{name}.bias"] for name in projections]) if biased else None
        ),
        conv0_weight=tensors[f"{conv}depthwise.weight"],
        conv0_bias=tensors[f"{conv}depthwise.bias"],
        conv1_weight=tensors[f"{conv}grouped.weight"],
        conv1_bias=tensors[f"{conv}grouped.bias"],
        temp=tensors[f"{attention}qk_norm.temp"],
        o_weight=tensors[f"{attention}o_proj.weight"],
        o_bias=tensors.get(f"{attention}o_proj.bias"),
        attention_scaling=_scaling(tensors, f"{layer}post_attention_residual_scale."),
        moe_norm=tensors[f"{layer}post_attention_layernorm.weight"],
        router=router,
        gate_up=gate_up,
        down=down,
        expert_scales={key: scale for key, scale in scales.items() if scale is not None},
        moe_scaling=_scaling(tensors, f"{layer}post_mlp_residual_scale."),
    )


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The rows of all parts: the parts' own memory where they lie one after the other in it."""
    first, places = parts[0], [part.untyped_storage().data_ptr() for part in parts]
    ends = [part.storage_offset() + part.numel() for part in parts]
    follow = [part.storage_offset() for part in parts[1:]] == ends[:-1]
    if follow and len(set(places)) == 1 and all(part.is_contiguous() for part in parts):
        return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())
    return torch.cat(parts)


def _scaling(tensors: dict[str, torch.Tensor], place: str) -> list[torch.Tensor]:
    return [tensors[f"{place}{name}"] for name in _SCALING]
