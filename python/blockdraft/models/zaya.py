"""ZAYA1 (arXiv 2605.05365) over `blockdraft.ops`: one `forward` serves prefill chunks,
autoregressive steps and block steps."""

import importlib
import os
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from .. import ops as fast_ops
from ..plan import Plan
from ..types import PassInputs, Rows
from .buffers import Buffers
from .cache import PagedCache
from .checkpoint import read
from .config import ZayaConfig
from .weights import LayerWeights, ZayaWeights, assemble

Ops = Any  # a namespace with the functions of blockdraft.ops


class Stream(NamedTuple):
    """The residual stream, and the last block's output with its scaling."""

    y: torch.Tensor
    residual: torch.Tensor
    scaling: list[torch.Tensor]


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

    def new_cache(
        self, requests: int, max_tokens: int, page: int = 16, pages: int | None = None
    ) -> PagedCache:
        """An empty cache for a batch of up to `requests`, each of at most `max_tokens`, that share
        `pages` pages (None: enough for all)."""
        return PagedCache(
            self.config, requests, max_tokens, self.dtype, self.device, page=page, pages=pages
        )

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
        live = rows.table(len(tokens)).live
        buffers = Buffers.new(self.config, len(tokens), rows, self.dtype, self.device)
        stream = self._layers(self.ops, tokens.int(), live, rows, cache, buffers)
        if cache is not None:
            cache.projected = buffers.projected
        return self._read(self.ops, stream)

    def plan(self, inputs: PassInputs, cache: PagedCache) -> "ZayaPass":
        """The pass over `inputs`, to run as often as wanted while their values change."""
        return ZayaPass(self, inputs, cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [...,vocab_size] of final hidden states [...,H]."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self._head(self.ops, flat).unflatten(0, hidden.shape[:-1])

    def commit(self, accepted: torch.Tensor, rows: Rows, cache: PagedCache) -> None:
        """Keep rows 0..accepted[b] of the last pass (-1: nothing): the state becomes that after row
        accepted[b], and the prefix grows by accepted[b] + 1."""
        self._commit(self.ops, cache.projected, accepted, rows, cache)

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

    def _layers(
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
            y, norm, self.config.rms_norm_eps, **_named(scaling), residual=residual, out=out
        )

    def _read(self, ops: Ops, stream: Stream, index: torch.Tensor | None = None) -> torch.Tensor:
        """Final hidden states of the rows `index`, or of all."""
        return ops.residual_norm(
            stream.y,
            self.weights.norm,
            self.config.rms_norm_eps,
            **_named(stream.scaling),
            residual=stream.residual,
            index=index,
            with_stream=False,
        )[0]

    def _head(self, ops: Ops, hidden: torch.Tensor) -> torch.Tensor:
        return ops.linear(hidden, self.weights.lm_head, self.weights.lm_head_bias)

    def _commit(
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
        if cache is not None:
            state = (cache.conv_state[i], cache.late_state[i], cache.slots)
            pages = (cache.k[i], cache.v[i], cache.block_table)
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
            late_start=late_start,
            out=buffers.qkv,
        )
        attended = ops.block_attention(
            q,
            k,
            v,
            *pages,
            rows,
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


def _named(scaling: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(zip(("scale", "bias", "residual_scale", "residual_bias"), scaling))


class ZayaPass:
    """A pass of a fixed layout, planned: `logits` [B,V,vocab] of the verify rows, `draft_logits`
    [B,K,vocab] of the rows to draft from."""

    def __init__(self, model: ZayaModel, inputs: PassInputs, cache: PagedCache) -> None:
        rows, total = inputs.rows, len(inputs.tokens)
        buffers = Buffers.new(model.config, total, rows, model.dtype, model.device)
        self._run, self._commit, self._draft = (Plan(model.ops) for _ in range(3))
        ops = self._run.ops
        stream = model._layers(ops, inputs.tokens, inputs.live, rows, cache, buffers)
        self.logits = self._logits(model, ops, stream, inputs.verify_rows)
        self.draft_logits = self._logits(model, self._draft.ops, stream, inputs.draft_rows)
        model._commit(self._commit.ops, buffers.projected, inputs.accepted, rows, cache)

    @staticmethod
    def _logits(model: ZayaModel, ops: Ops, stream: Stream, rows: torch.Tensor) -> torch.Tensor:
        flat = model._head(ops, model._read(ops, stream, rows.flatten()))
        return flat.unflatten(0, rows.shape)

    def run(self) -> None:
        """Pass over `inputs.tokens`, and write `logits`."""
        self._run.run()

    def commit(self) -> None:
        """Keep the verify rows 0..inputs.accepted of the pass; the prefixes grow."""
        self._commit.run()

    def draft(self) -> None:
        """Write `draft_logits` of the pass's rows `inputs.draft_rows`."""
        self._draft.run()
