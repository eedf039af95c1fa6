"""ZAYA's tensors: where each comes from in a Hugging Face checkpoint, and its shape."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..contract import FLOATS
from .config import ZayaConfig, read_json


@dataclass
class LayerWeights:
    """One block. `projection` stacks q, k, v now and v late over its rows; convolutions keep
    torch's Conv1d shapes."""

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
    # hidden scale, hidden bias, residual scale, residual bias
    attention_scaling: list[torch.Tensor]
    moe_norm: torch.Tensor
    router: dict[str, torch.Tensor]  # keyword arguments of ops.zaya_router
    gate_up: torch.Tensor
    down: torch.Tensor
    moe_scaling: list[torch.Tensor]


@dataclass
class ZayaWeights:
    embedding: torch.Tensor
    input_scale: torch.Tensor
    input_bias: torch.Tensor
    layers: list[LayerWeights]
    norm: torch.Tensor
    lm_head: torch.Tensor
    lm_head_bias: torch.Tensor | None


def shapes(config: ZayaConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, by its Hugging Face name."""
    c = config
    H, Dh, R, E, inner = (
        c.hidden_size,
        c.head_dim,
        c.router_hidden_size,
        c.num_experts,
        c.moe_intermediate_size,
    )
    heads, kv = c.num_attention_heads * Dh, c.num_key_value_heads * Dh
    out = {
        "model.embed_tokens.weight": (c.vocab_size, H),
        "model.norm.weight": (H,),
        "model.input_hidden_states_scale": (H,),
        "model.input_hidden_states_bias": (H,),
    }
    if not c.tie_word_embeddings:
        out["lm_head.weight"] = (c.vocab_size, H)
    if c.lm_head_bias:
        out["lm_head.bias"] = (c.vocab_size,)
    for i in range(c.num_hidden_layers):
        layer = f"model.layers.{i}."
        for name, width, inputs in (
            ("qkv_proj.q_proj", heads, H),
            ("qkv_proj.k_proj", kv, H),
            ("qkv_proj.v_proj_current", kv // 2, H),
            ("qkv_proj.v_proj_delayed", kv // 2, H),
            ("o_proj", H, heads),
        ):
            out[f"{layer}self_attn.{name}.weight"] = (width, inputs)
            if c.attention_bias:
                out[f"{layer}self_attn.{name}.bias"] = (width,)
        conv = f"{layer}self_attn.qkv_proj.conv_qk_"
        out[conv + "depthwise.weight"] = (heads + kv, 1, c.cca_time0)
        out[conv + "grouped.weight"] = (heads + kv, Dh, c.cca_time1)
        out[conv + "depthwise.bias"] = out[conv + "grouped.bias"] = (heads + kv,)
        out[layer + "self_attn.qk_norm.temp"] = (c.num_key_value_heads,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{layer}{norm}.weight"] = (H,)
        for place in ("post_attention", "post_mlp"):
            for name in _SCALING:
                out[f"{layer}{place}_residual_scale.{name}"] = (H,)
        for key, (name, shape) in _router(R, H, E).items():
            if key != "eda_scale" or i:
                out[f"{layer}mlp.gate.{name}"] = shape
        out[layer + "mlp.experts.gate_up_proj"] = (E, 2 * inner, H)
        out[layer + "mlp.experts.down_proj"] = (E, H, inner)
    return out


_SCALING = ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias")


def _router(R, H, E):
    """zaya_router's argument -> (checkpoint name, shape)."""
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
    """Group a checkpoint's tensors (names as in `shapes`) the way the runner uses them; checks
    names and shapes."""
    expected = shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"checkpoint: {name}: expected a tensor of shape {shape}, got none")
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"checkpoint: {name}: expected shape {shape}, got {tuple(tensors[name].shape)}"
            )
        kinds = (
            FLOATS
            if name.endswith("balancing_biases")
            else (tensors["model.embed_tokens.weight"].dtype,)
        )
        if tensors[name].dtype not in kinds or tensors[name].dtype not in FLOATS:
            raise ValueError(
                f"checkpoint: {name}: expected one float dtype throughout (bf16, fp16 or fp32; pass dtype= to "
                f"convert), got {tensors[name].dtype} beside {tensors['model.embed_tokens.weight'].dtype}"
            )
    foreign = sorted(set(tensors) - set(expected) - {"lm_head.weight"})
    if foreign:
        raise ValueError(
            f"checkpoint: expected only ZAYA tensors, got {foreign[0]!r} and {len(foreign) - 1} more"
        )
    get = tensors.get
    embedding = tensors["model.embed_tokens.weight"]
    return ZayaWeights(
        embedding,
        tensors["model.input_hidden_states_scale"],
        tensors["model.input_hidden_states_bias"],
        [_layer(get, i) for i in range(config.num_hidden_layers)],
        tensors["model.norm.weight"],
        embedding if config.tie_word_embeddings else tensors["lm_head.weight"],
        get("lm_head.bias"),
    )


def _layer(get, i) -> LayerWeights:
    layer = f"model.layers.{i}."
    attention, moe = layer + "self_attn.", layer + "mlp."
    projections = [
        f"{attention}qkv_proj.{name}"
        for name in ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed")
    ]
    biased = get(projections[0] + ".bias") is not None
    conv = attention + "qkv_proj.conv_qk_"
    router = {key: get(f"{moe}gate.{name}") for key, (name, _) in _router(0, 0, 0).items()}
    return LayerWeights(
        get(layer + "input_layernorm.weight"),
        torch.cat([get(p + ".weight") for p in projections]),
        torch.cat([get(p + ".bias") for p in projections]) if biased else None,
        get(conv + "depthwise.weight"),
        get(conv + "depthwise.bias"),
        get(conv + "grouped.weight"),
        get(conv + "grouped.bias"),
        get(attention + "qk_norm.temp"),
        get(attention + "o_proj.weight"),
        get(attention + "o_proj.bias"),
        [get(f"{layer}post_attention_residual_scale.{name}") for name in _SCALING],
        get(layer + "post_attention_layernorm.weight"),
        router,
        get(moe + "experts.gate_up_proj"),
        get(moe + "experts.down_proj"),
        [get(f"{layer}post_mlp_residual_scale.{name}") for name in _SCALING],
    )


def read(folder, dtype: torch.dtype | None = None, device="cpu") -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors file or shards; `dtype` converts all but the router's
    fp32 balancing biases."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for path in _files(Path(folder)):
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in file.keys():
                    tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint: {path}: expected a whole safetensors file, got {error}"
            ) from error
    if dtype is not None:
        tensors = {
            name: t if name.endswith("balancing_biases") else t.to(dtype)
            for name, t in tensors.items()
        }
    return tensors


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"checkpoint: {index}: expected a weight_map, got {shards!r}")
        paths = sorted({folder / name for name in shards.values()})
    else:
        paths = sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        others = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt")
        )
        hint = f"; {others[0]} is a pickle, which is never loaded" if others else ""
        raise ValueError(
            f"checkpoint: {folder}: expected {missing[0] if missing else '*.safetensors'}, got none{hint}"
        )
    return paths
