"""ZAYA1 (arXiv 2605.05365) over `blockdraft.ops`: one `forward` serves prefill chunks,
autoregressive steps and block steps."""

import importlib
import os
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from .. import ops as fast_ops
from ..types import Rows
from .cache import PagedCache
from .checkpoint import read
from .config import ZayaConfig
from .weights import LayerWeights, ZayaWeights, assemble


class ZayaModel:
    """Weights and forward pass.

    `ops` is the namespace of kernels to call: the module `blockdraft.ops`, or a namespace of plain
    functions, to train with.
    """

    def __init__(
        self,
        config: ZayaConfig,
        weights: ZayaWeights,
        ops: ModuleType | SimpleNamespace = fast_ops,
    ) -> None:
        self.config = config
        self.weights = weights
        self.ops = ops
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._rope: dict[tuple[float, int], torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Modules cannot be pickled or copied, so that a module of ops goes by its name. RoPE's
        tables stay behind: they are made again when needed."""
        ops = self.ops.__name__ if isinstance(self.ops, ModuleType) else self.ops
        return {**self.__dict__, "ops": ops, "_rope": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.ops, str):
            self.ops = importlib.import_module(self.ops)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "ZayaModel":
        """A Hugging Face checkpoint folder: config.json and safetensors, sharded or not. `dtype`
        converts the weights. Pickles are refused."""
        config = ZayaConfig.load(folder)
        return cls(config, assemble(config, read(folder, dtype, device)))

    def new_cache(self, max_tokens: list[int], page: int = 16) -> PagedCache:
        """An empty cache for a batch in which request b comes to at most `max_tokens[b]` tokens."""
        return PagedCache(self.config, max_tokens, self.dtype, self.device, page)

    def forward(
        self, tokens: torch.Tensor, rows: Rows, cache: PagedCache | None = None
    ) -> torch.Tensor:
        """Final hidden states [T,H] of the packed rows whose token ids are `tokens`, int [T].

        The K/V of live verify rows are stored in the cache; convolution state and prefix lengths
        change only with `commit`. Without a cache all prefixes are empty.
        """
        if tokens.dim() != 1 or tokens.dtype not in (torch.int32, torch.int64):
            raise TypeError(
                "ZayaModel.forward: tokens: expected int32 or int64 of shape [T], "
                f"got {tokens.dtype} {list(tokens.shape)}"
            )
        w = self.weights
        live = rows.table(len(tokens)).live
        hidden = ((w.embedding[tokens] + w.input_bias) * w.input_scale).float()
        router_state = None
        projected = []
        for i, layer in enumerate(w.layers):
            x = self._norm(hidden, layer.input_norm)
            attended, projection = self._attention(i, layer, x, rows, cache)
            projected.append(projection)
            hidden = _residual(attended, hidden, layer.attention_scaling)
            x = self._norm(hidden, layer.moe_norm)
            weights, experts, _, router_state = self.ops.zaya_router(
                x, router_state, **layer.router, eps=self.config.rms_norm_eps, live=live
            )
            y = self.ops.fused_moe(x, experts, weights, layer.gate_up, layer.down)
            hidden = _residual(y, hidden, layer.moe_scaling)
        if cache is not None:
            cache.projected = torch.stack(projected)
        return self._norm(hidden, w.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [...,vocab_size] of final hidden states [...,H]."""
        w = self.weights
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self.ops.linear(flat, w.lm_head, w.lm_head_bias).unflatten(0, hidden.shape[:-1])

    def commit(self, accepted: torch.Tensor, rows: Rows, cache: PagedCache) -> None:
        """Keep rows 0..accepted[b] of the last pass (-1: nothing): the state becomes that after row
        accepted[b], and the prefix grows by accepted[b] + 1."""
        qk, _, v_late = self._split(cache.projected)
        self.ops.commit(qk, v_late, accepted, rows, cache.conv_state, cache.late_state, cache.slots)

    def prefill(
        self, prompts: list[list[int]], cache: PagedCache, chunk: int = 512
    ) -> torch.Tensor | None:
        """Cache all of `prompts`, `chunk` tokens of each at a time.

        There is one list of ids per request; a request whose list is empty idles. Returns the
        packed hidden states of the last chunk, or None if all lists are empty.
        """
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

    def _attention(
        self,
        i: int,
        layer: LayerWeights,
        x: torch.Tensor,
        rows: Rows,
        cache: PagedCache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The attention's output and its projection, of which `commit` keeps a row."""
        projection = self.ops.linear(x, layer.projection, layer.projection_bias)
        qk, v_now, v_late = self._split(projection)
        late_start = None
        if layer.projection_bias is not None:
            late_start = self._split(layer.projection_bias)[2]
        state = pages = (None, None, None)
        if cache is not None:
            state = (cache.conv_state[i], cache.late_state[i], cache.slots)
            pages = (cache.k[i], cache.v[i], cache.block_table)
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
            *state,
            *pages,
            late_start=late_start,
        )
        out = self.ops.block_attention(
            q,
            k,
            v,
            *pages,
            rows,
            scale=self.config.head_dim**-0.5,
            window=self.config.window(i),
        )
        return self.ops.linear(out.flatten(1), layer.o_weight, layer.o_bias), projection

    def _split(self, projection: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries and keys, the values for the token itself, the values for its successor."""
        late = self.config.late_channels
        return projection.split([self.config.conv_channels, late, late], -1)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x.to(self.dtype).float()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return weight * (x * scale).to(self.dtype)

    def _cos_sin(self, i: int, rows: Rows) -> torch.Tensor:
        """float32 [positions, rotary_dim]: cosines, then sines. A table that is too short for the
        last position, below n + V + M, is replaced by one of twice the need."""
        theta, dim = key = (self.config.rope_theta(i), self.config.rotary_dim(i))
        need = rows.max_prefix + rows.max_rows + rows.mask_rows
        table = self._rope.get(key)
        if table is None or len(table) < need:
            frequency = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
            angle = torch.arange(2 * need, dtype=torch.float)[:, None] * frequency
            table = torch.cat([angle.cos(), angle.sin()], 1).to(self.device)
            self._rope[key] = table
        return table


def _residual(x: torch.Tensor, residual: torch.Tensor, scaling: list[torch.Tensor]) -> torch.Tensor:
    """The scaled sum of a layer's output and the residual stream, which stays fp32 as in ZAYA's own
    code."""
    scale, bias, residual_scale, residual_bias = scaling
    return (x + bias) * scale + (residual + residual_bias) * residual_scale
