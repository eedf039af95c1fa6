"""ZAYA1 (arXiv 2605.05365) over `blockdraft.ops`."""

import torch

from ..types import Rows
from .buffers import Buffers
from .cache import PagedCache
from .config import ZayaConfig
from .runner import Ops, Runner, Stream, named
from .weights import LayerWeights, assemble


class ZayaModel(Runner):
    Config = ZayaConfig
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
        """The residual stream after the last layer, which is still to be added to it."""
        w, eps = self.weights, self.config.rms_norm_eps
        x, residual = ops.residual_norm(
            w.embedding,
            w.layers[0].input_norm,
            eps,
            scale=w.input_scale,
            bias=w.input_bias,
            index=tokens,
            out=(buffers.norm, buffers.stream),
        )
        state = None
        for i, layer in enumerate(w.layers):
            y = self._attention(ops, i, layer, x, rows, cache, buffers)
            x, residual = self._add(
                ops, y, residual, layer.attention_scaling, layer.moe_norm, buffers
            )
            weights, experts, _, state = ops.zaya_router(
                x, state, **layer.router, eps=eps, live=live, out=buffers.routing[i % 2]
            )
            y = ops.fused_moe(
                x,
                experts,
                weights,
                layer.gate_up,
                layer.down,
                **layer.expert_scales,
                out=buffers.y,
                workspace=buffers.moe,
            )
            if i + 1 < len(w.layers):
                norm = w.layers[i + 1].input_norm
                x, residual = self._add(ops, y, residual, layer.moe_scaling, norm, buffers)
        return Stream(y, residual, layer.moe_scaling)

    def _add(
        self,
        ops: Ops,
        y: torch.Tensor,
        residual: torch.Tensor,
        scaling: list[torch.Tensor],
        norm: torch.Tensor,
        buffers: Buffers,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A block's output added to the stream, and the norm that the next one reads."""
        out = buffers.norm, buffers.stream
        return ops.residual_norm(
            y, norm, self.config.rms_norm_eps, **named(scaling), residual=residual, out=out
        )

    def keep(
        self,
        ops: Ops,
        projected: torch.Tensor,
        accepted: torch.Tensor,
        rows: Rows,
        cache: PagedCache,
    ) -> None:
        qk, _, v_late = self._split(projected)
        ops.commit(qk, v_late, accepted, rows, cache.conv_state, cache.late_state, cache.slots)

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
        projection = ops.linear(
            x, layer.projection, layer.projection_bias, out=buffers.projected[i]
        )
        late_start = None
        if layer.projection_bias is not None:
            late_start = self._split(layer.projection_bias)[2]
        state = pages = (None, None, None)
        scales = {}
        if cache is not None:
            state = (cache.conv_state[i], cache.late_state[i], cache.slots)
            pages = (cache.k[i], cache.v[i], cache.block_table)
            scales = cache.scales[i]
        q, k, v = ops.cca_qkv(
            *self._split(projection),
            layer.conv0_weight,
            layer.conv0_bias,
            layer.conv1_weight,
            layer.conv1_bias,
            layer.temp,
            self._cos_sin(i, rows),
            rows,
            *state,
            *pages,
            **scales,
            late_start=late_start,
            out=buffers.qkv,
        )
        attended = ops.block_attention(
            q,
            k,
            v,
            *pages,
            rows,
            **scales,
            scale=self.config.head_dim**-0.5,
            window=self.config.window(i),
            out=buffers.attended,
            workspace=buffers.attention,
        )
        return ops.linear(attended.flatten(1), layer.o_weight, layer.o_bias, out=buffers.y)

    def _split(self, projection: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries and keys, the values for the token itself, the values for its successor."""
        late = self.config.late_channels
        return projection.split([self.config.conv_channels, late, late], -1)

    def _cos_sin(self, i: int, rows: Rows) -> torch.Tensor:
        theta, dim = key = (self.config.rope_theta(i), self.config.rotary_dim(i))
        frequency = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
        return self.cos_sin(key, frequency, 1.0, rows)
