"""Nemotron-Labs-Diffusion over `blockdraft.ops`: a dense decoder that verifies with causal
attention and drafts by filling a block of masks, which see each other.

A mask predicts the token at its own position, as block decoding expects. The published decode
drafts a block in a pass of its own, after its first token is known; here the block is drafted in
the pass that verifies, its first mask standing for the token that is not known yet. What is
committed is what the autoregressive head would write, either way."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..types import Rows
from .buffers import Buffers
from .cache import PagedCache
from .nemotron_config import NemotronConfig
from .runner import Ops, Runner, Stream
from .weights import check

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class LayerWeights(NamedTuple):
    """The weights of one layer. The rows of `projection` are those of q, k and v."""

    input_norm: torch.Tensor
    projection: torch.Tensor
    o_weight: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor  # [1,2I,H], one expert's
    down: torch.Tensor  # [1,H,I]


@dataclass
class NemotronWeights:
    """All weights of a model. `lm_head` is the embedding itself where the two are tied."""

    embedding: torch.Tensor
    layers: list[LayerWeights]
    norm: torch.Tensor
    lm_head: torch.Tensor
    lm_head_bias: None = None


def shapes(config: NemotronConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a checkpoint, by its Hugging Face name."""
    H, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    out = {"encoder.embed_tokens.weight": (config.vocab_size, H), "encoder.norm.weight": (H,)}
    if not config.tie_word_embeddings:
        out["diffusion_head.weight"] = (config.vocab_size, H)
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{layer}{norm}.weight"] = (H,)
        for name, width in zip(_PROJECTIONS, (queries, keys, keys)):
            out[f"{layer}self_attn.{name}.weight"] = (width, H)
        out[f"{layer}self_attn.o_proj.weight"] = (H, queries)
        for name in ("gate_proj", "up_proj"):
            out[f"{layer}mlp.{name}.weight"] = (inner, H)
        out[f"{layer}mlp.down_proj.weight"] = (H, inner)
    return out


def assemble(config: NemotronConfig, tensors: dict[str, torch.Tensor]) -> NemotronWeights:
    """Group a checkpoint's tensors (names as in `shapes`), checked first."""
    check("Nemotron-Labs-Diffusion", shapes(config), tensors, tied="diffusion_head.weight")
    embedding = tensors["encoder.embed_tokens.weight"]
    return NemotronWeights(
        embedding=embedding,
        layers=[_layer(tensors, i) for i in range(config.num_hidden_layers)],
        norm=tensors["encoder.norm.weight"],
        lm_head=embedding if config.tie_word_embeddings else tensors["diffusion_head.weight"],
    )


def _layer(tensors: dict[str, torch.Tensor], i: int) -> LayerWeights:
    def at(name: str) -> torch.Tensor:
        return tensors[f"encoder.layers.{i}.{name}.weight"]

    return LayerWeights(
        input_norm=at("input_layernorm"),
        projection=torch.cat([at(f"self_attn.{name}") for name in _PROJECTIONS]),
        o_weight=at("self_attn.o_proj"),
        mlp_norm=at("post_attention_layernorm"),
        gate_up=torch.cat([at("mlp.gate_proj"), at("mlp.up_proj")])[None],
        down=at("mlp.down_proj")[None],
    )


class NemotronModel(Runner):
    Config = NemotronConfig
    assemble = staticmethod(assemble)

    def layers(
        self,
        ops: Ops,
        tokens: torch.Tensor,
        live: torch.Tensor,
        rows: Rows,
        cache: PagedCache | None,
        buffers: Buffers,
    ) -> Stream:
        w, eps = self.weights, self.config.rms_norm_eps
        weights, experts, *_ = buffers.routing[0]
        weights.fill_(1)
        experts.zero_()  # all rows to the one expert, dead ones too
        out = buffers.norm, buffers.stream
        x, residual = ops.residual_norm(
            w.embedding, w.layers[0].input_norm, eps, index=tokens, out=out
        )
        for i, layer in enumerate(w.layers):
            y = self._attention(ops, i, layer, x, rows, cache, buffers)
            x, residual = ops.residual_norm(y, layer.mlp_norm, eps, residual=residual, out=out)
            y = ops.fused_moe(
                x,
                experts,
                weights,
                layer.gate_up,
                layer.down,
                out=buffers.y,
                workspace=buffers.moe,
            )
            if i + 1 < len(w.layers):
                norm = w.layers[i + 1].input_norm
                x, residual = ops.residual_norm(y, norm, eps, residual=residual, out=out)
        return Stream(y, residual, [])

    def keep(
        self,
        ops: Ops,
        projected: torch.Tensor,
        accepted: torch.Tensor,
        rows: Rows,
        cache: PagedCache,
    ) -> None:
        """Only the prefix grows: no row's projection is kept."""
        nothing = projected[..., :0]
        late = cache.late_state[:1], cache.slots
        ops.commit(nothing, nothing, accepted, rows, cache.conv_state[:1], *late)

    def _attention(
        self,
        ops: Ops,
        i: int,
        layer: LayerWeights,
        x: torch.Tensor,
        rows: Rows,
        cache: PagedCache | None,
        buffers: Buffers,
    ) -> torch.Tensor:
        c = self.config
        projection = ops.linear(x, layer.projection, None, out=buffers.projected[0])
        heads = projection.unflatten(1, (-1, c.head_dim))
        counts = [c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads]
        pages, scales = (None, None, None), {}
        if cache is not None:
            pages, scales = (cache.k[i], cache.v[i], cache.block_table), cache.scales[i]
        angles, query_scale = self._tables(rows)
        q, k, v = ops.rope_qkv(
            *heads.split(counts, 1),
            angles,
            rows,
            *pages,
            **scales,
            query_scale=query_scale,
            out=buffers.qkv,
        )
        attended = ops.block_attention(
            q,
            k,
            v,
            *pages,
            rows,
            **scales,
            scale=c.head_dim**-0.5,
            window=c.window,
            out=buffers.attended,
            workspace=buffers.attention,
        )
        return ops.linear(attended.flatten(1), layer.o_weight, None, out=buffers.y)

    def _tables(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Cosines and sines, and the factor of the queries, for all positions of the pass."""
        angles = self.cos_sin("rope", *self.config.frequencies(), rows)
        scale = self._angles.get("queries")
        if scale is None or len(scale) != len(angles):
            scale = self.config.query_scale(len(angles))
            if scale is not None:
                self._angles["queries"] = scale = scale.to(self.device)
        return angles, scale
