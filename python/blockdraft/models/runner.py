"""What all models do with their layers: one `forward` serves prefill chunks, autoregressive steps
and block steps."""

import importlib
import os
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from .. import ops as fast_ops
from ..plan import Plan
from ..types import PassInputs, Rows
from .buffers import Buffers
from .cache import CacheFormat, PagedCache
from .checkpoint import read
from .decoder_config import DecoderConfig

Ops = Any  # a namespace with the functions of blockdraft.ops
Self = TypeVar("Self", bound="Runner")


class Stream(NamedTuple):
    """The residual stream, and the last block's output with its scaling."""

    y: torch.Tensor
    residual: torch.Tensor
    scaling: list[torch.Tensor]


class Runner:
    """Weights and forward pass.

    `ops` is the namespace of kernels to call: the module `blockdraft.ops`, or a namespace of plain
    functions, to train with. `cache_format`: of the caches that `new_cache` makes; None: keys and
    values are cached in the weights' dtype.

    A subclass names its Config, puts a checkpoint's tensors together (`assemble`), and has
    `layers`, from tokens to the residual stream, and `keep`, which commits rows of the pass. Its
    weights have `embedding`, `norm`, `lm_head` and `lm_head_bias`.
    """

    Config: ClassVar[type[DecoderConfig]]

    def __init__(
        self,
        config: Any,
        weights: Any,
        ops: ModuleType | SimpleNamespace = fast_ops,
    ) -> None:
        self.config = config
        self.weights = weights
        self.ops = ops
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self.cache_format: CacheFormat | None = None
        self._angles: dict[Any, torch.Tensor] = {}

    @staticmethod
    def assemble(config: Any, tensors: dict[str, torch.Tensor]) -> Any:
        """Group a checkpoint's tensors the way the runner uses them."""
        raise NotImplementedError

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
        raise NotImplementedError

    def keep(
        self,
        ops: Ops,
        projected: torch.Tensor,
        accepted: torch.Tensor,
        rows: Rows,
        cache: PagedCache,
    ) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """Modules cannot be pickled or copied, so that a module of ops goes by its name. RoPE's
        tables stay behind: they are made again when needed."""
        ops = self.ops.__name__ if isinstance(self.ops, ModuleType) else self.ops
        return {**self.__dict__, "ops": ops, "_angles": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.ops, str):
            self.ops = importlib.import_module(self.ops)

    @classmethod
    def load(
        cls: type[Self],
        folder: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """A Hugging Face checkpoint folder: config.json and safetensors, sharded or not. `dtype`
        converts the weights. Pickles are refused."""
        config = cls.Config.load(folder)
        return cls(config, cls.assemble(config, read(folder, dtype, device)))

    def new_cache(
        self, requests: int, max_tokens: int, page: int = 16, pages: int | None = None
    ) -> PagedCache:
        """An empty cache for a batch of up to `requests`, each of at most `max_tokens`, that share
        `pages` pages (None: enough for all)."""
        return PagedCache(
            self.config,
            requests,
            max_tokens,
            self.dtype,
            self.device,
            page=page,
            pages=pages,
            format=self.cache_format,
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
                f"{type(self).__name__}.forward: tokens: expected int32 or int64 of shape [T], "
                f"got {tokens.dtype} {list(tokens.shape)}"
            )
        live = rows.table(len(tokens)).live
        buffers = Buffers.new(self.config, len(tokens), rows, self.dtype, self.device)
        stream = self.layers(self.ops, tokens.int(), live, rows, cache, buffers)
        if cache is not None:
            cache.projected = buffers.projected
        return self.read(self.ops, stream)

    def plan(self, inputs: PassInputs, cache: PagedCache) -> "RunnerPass":
        """The pass over `inputs`, to run as often as wanted while their values change."""
        return RunnerPass(self, inputs, cache)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [...,vocab_size] of final hidden states [...,H]."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self.head(self.ops, flat).unflatten(0, hidden.shape[:-1])

    def commit(self, accepted: torch.Tensor, rows: Rows, cache: PagedCache) -> None:
        """Keep rows 0..accepted[b] of the last pass (-1: nothing): the state becomes that after row
        accepted[b], and the prefix grows by accepted[b] + 1."""
        self.keep(self.ops, cache.projected, accepted, rows, cache)

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

    def read(self, ops: Ops, stream: Stream, index: torch.Tensor | None = None) -> torch.Tensor:
        """Final hidden states of the rows `index`, or of all."""
        return ops.residual_norm(
            stream.y,
            self.weights.norm,
            self.config.rms_norm_eps,
            **named(stream.scaling),
            residual=stream.residual,
            index=index,
            with_stream=False,
        )[0]

    def head(self, ops: Ops, hidden: torch.Tensor) -> torch.Tensor:
        return ops.linear(hidden, self.weights.lm_head, self.weights.lm_head_bias)

    def cos_sin(self, key: Any, frequency: torch.Tensor, factor: float, rows: Rows) -> torch.Tensor:
        """float32 [positions, 2 * frequencies]: cosines, then sines, times `factor`; kept by `key`.
        A table that is too short for the last position, below n + V + M, is replaced by one of
        twice the need."""
        need = rows.max_prefix + rows.max_rows + rows.mask_rows
        table = self._angles.get(key)
        if table is None or len(table) < need:
            angle = torch.arange(2 * need, dtype=torch.float)[:, None] * frequency
            table = torch.cat([angle.cos(), angle.sin()], 1).mul_(factor).to(self.device)
            self._angles[key] = table
        return table


def named(scaling: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(zip(("scale", "bias", "residual_scale", "residual_bias"), scaling))


class RunnerPass:
    """A pass of a fixed layout, planned: `logits` [B,V,vocab] of the verify rows, `draft_logits`
    [B,K,vocab] of the rows to draft from."""

    def __init__(self, model: Runner, inputs: PassInputs, cache: PagedCache) -> None:
        rows, total = inputs.rows, len(inputs.tokens)
        buffers = Buffers.new(model.config, total, rows, model.dtype, model.device)
        self._run, self._commit, self._draft = (Plan(model.ops) for _ in range(3))
        ops = self._run.ops
        stream = model.layers(ops, inputs.tokens, inputs.live, rows, cache, buffers)
        self.logits = self._logits(model, ops, stream, inputs.verify_rows)
        self.draft_logits = self._logits(model, self._draft.ops, stream, inputs.draft_rows)
        model.keep(self._commit.ops, buffers.projected, inputs.accepted, rows, cache)

    @staticmethod
    def _logits(model: Runner, ops: Ops, stream: Stream, rows: torch.Tensor) -> torch.Tensor:
        flat = model.head(ops, model.read(ops, stream, rows.flatten()))
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
