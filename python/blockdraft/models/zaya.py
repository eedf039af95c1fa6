"""ZAYA1 (arXiv 2605.05365) over `blockdraft.ops`: prefill chunks, autoregressive steps and block
steps are one `forward`."""

import torch
import torch.nn.functional as F

from .. import ops as fast_ops
from ..types import Rows
from .cache import PagedCache
from .config import ZayaConfig
from .weights import LayerWeights, ZayaWeights, assemble, read


class ZayaModel:
    """Weights and forward pass. `ops` is the namespace of kernels to call: `blockdraft.ops`, or
    plain functions to train with."""

    def __init__(self, config: ZayaConfig, weights: ZayaWeights, ops=fast_ops):
        self.config, self.weights, self.ops = config, weights, ops
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._rope = {}

    @classmethod
    def load(cls, folder, dtype: torch.dtype | None = None, device="cpu") -> "ZayaModel":
        """A Hugging Face checkpoint folder: config.json and safetensors, sharded or not. Pickles
        are refused."""
        config = ZayaConfig.load(folder)
        return cls(config, assemble(config, read(folder, dtype, device)))

    def new_cache(self, max_tokens: list[int], page: int = 16) -> PagedCache:
        return PagedCache(self.config, max_tokens, self.dtype, self.device, page)

    def forward(
        self, tokens: torch.Tensor, rows: Rows, cache: PagedCache | None = None
    ) -> torch.Tensor:
        """Final hidden states [T,H] of `tokens` int [T], one a packed row. Stores K/V of live
        verify rows in the cache; convolution state and prefix lengths change only with `commit`."""
        if tokens.dim() != 1 or tokens.dtype not in (torch.int32, torch.int64):
            raise TypeError(
                f"ZayaModel.forward: tokens: expected int32 or int64 of shape [T], got {tokens.dtype} {list(tokens.shape)}"
            )
        w, live = self.weights, rows.table(len(tokens)).live
        hidden = ((w.embedding[tokens] + w.input_bias) * w.input_scale).float()
        router_state, projected = None, []
        for i, layer in enumerate(w.layers):
            attended, projection = self._attention(
                i, layer, self._norm(hidden, layer.input_norm), rows, cache
            )
            projected.append(projection)
            hidden = _residual(attended, hidden, layer.attention_scaling)
            x = self._norm(hidden, layer.moe_norm)
            weights, experts, _, router_state = self.ops.zaya_router(
                x, router_state, **layer.router, eps=self.config.rms_norm_eps, live=live
            )
            y = self.ops.fused_moe(x, experts[:, None], weights[:, None], layer.gate_up, layer.down)
            hidden = _residual(y, hidden, layer.moe_scaling)
        if cache is not None:
            cache.projected = torch.stack(projected)
        return self._norm(hidden, w.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weights.lm_head, self.weights.lm_head_bias)

    def commit(self, accepted: torch.Tensor, rows: Rows, cache: PagedCache) -> None:
        """Keep rows 0..accepted[b] of the last pass (-1: nothing): new state, and prefix_lens +=
        accepted + 1."""
        qk, _, v_late = self._split(cache.projected)
        self.ops.commit(qk, v_late, accepted, rows, cache.conv_state, cache.late_state, cache.slots)

    def prefill(
        self, prompts: list[list[int]], cache: PagedCache, chunk: int = 512
    ) -> torch.Tensor | None:
        """Cache all of `prompts` (one list of ids per request; empty: nothing to do), `chunk`
        tokens of each at a time. Returns the hidden states of the last chunk, packed."""
        hidden = None
        for start in range(0, max(map(len, prompts)), chunk):
            pieces = [prompt[start : start + chunk] for prompt in prompts]
            rows = Rows.prefill(
                cache.prefix_lens, [len(piece) for piece in pieces], cache.max_tokens
            )
            tokens = torch.tensor([t for piece in pieces for t in piece], device=self.device)
            hidden = self.forward(tokens, rows, cache)
            self.commit(rows.draft_len, rows, cache)
        return hidden

    def _attention(self, i: int, layer: LayerWeights, x, rows, cache):
        projection = F.linear(x, layer.projection, layer.projection_bias)
        qk, v_now, v_late = self._split(projection)
        late_start = (
            None if layer.projection_bias is None else self._split(layer.projection_bias)[2]
        )
        stores = () if cache is None else (cache.conv_state[i], cache.late_state[i], cache.slots)
        pages = () if cache is None else (cache.k[i], cache.v[i], cache.block_table)
        q, k, v = self.ops.cca_qkv(
            qk,
            v_now,
            v_late,
            layer.conv0_weight,
            layer.conv0_bias,
            layer.conv1_weight,
            layer.conv1_bias,
            layer.temp,
            self._cos_sin(i, rows),
            rows,
            *(stores or (None,) * 3),
            *(pages or (None,) * 3),
            late_start=late_start,
        )
        out = self.ops.block_attention(
            q,
            k,
            v,
            *(pages or (None,) * 3),
            rows,
            scale=self.config.head_dim**-0.5,
            window=self.config.window(i),
        )
        return F.linear(out.flatten(1), layer.o_weight, layer.o_bias), projection

    def _split(self, projection):
        late = self.config.late_channels
        return projection.split([self.config.conv_channels, late, late], -1)

    def _norm(self, x, weight):
        x = x.to(self.dtype).float()
        return weight * (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        ).to(self.dtype)

    def _cos_sin(self, i: int, rows: Rows):
        """float32 [positions, rotary_dim], cosines then sines; grown as needed (positions reach n +
        V + M)."""
        c = self.config
        key, need = (
            (c.rope_theta(i), c.rotary_dim(i)),
            rows.max_prefix + rows.max_rows + rows.mask_rows,
        )
        table = self._rope.get(key)
        if table is None or len(table) < need:
            theta, dim = key
            frequency = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
            angle = torch.arange(2 * need, dtype=torch.float)[:, None] * frequency
            table = self._rope[key] = torch.cat([angle.cos(), angle.sin()], 1).to(self.device)
        return table


def _residual(x, residual, scaling):
    """Scaled residual sum; the residual stream stays fp32, as in ZAYA's own code."""
    scale, bias, residual_scale, residual_bias = scaling
    return (x + bias) * scale + (residual + residual_bias) * residual_scale
