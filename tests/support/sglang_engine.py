"""A scheduler's side of SGLang for the worker: pools, batches and a target whose layers call
blockdraft's hooks and backend in SGLang's places. The layers are ZayaModel's own."""

import enum
from types import SimpleNamespace

import engines
import torch
from engines import Mode

from blockdraft import ops
from blockdraft.models.buffers import Buffers
from blockdraft.reference.cca_qkv import rotate

PAGE, REQUESTS, LENGTH = 8, 6, 160


class Batch(SimpleNamespace):
    """ForwardBatch, GenerationBatchResult and the like: what they are given."""

    def __init__(self, **given):
        super().__init__(**{"spec_info": None, "new_seq_lens": None, **given})


class BaseSpecWorker:
    target_worker = property(lambda self: self._target_worker)

    def alloc_memory_pool(
        self,
        memory_pool_config=None,
        req_to_token_pool=None,
        token_to_kv_pool_allocator=None,
    ):
        self.req_to_token_pool = req_to_token_pool


def install(monkeypatch, layout) -> SimpleNamespace:
    """engines.sglang, and what the worker imports."""
    found = engines.sglang(monkeypatch)
    srt = "sglang.srt"
    abort = type("FINISH_ABORT", (str,), {})
    engines.install(monkeypatch, f"{srt}.managers.schedule_batch", FINISH_ABORT=abort)
    engines.install(monkeypatch, f"{srt}.managers.utils", GenerationBatchResult=Batch)
    hidden = enum.Enum("CaptureHiddenMode", ["NULL"])
    batch = dict(ForwardBatch=Batch, ForwardMode=Mode, CaptureHiddenMode=hidden)
    engines.install(monkeypatch, f"{srt}.model_executor.forward_batch_info", **batch)
    spec = SimpleNamespace(speculative_num_draft_tokens=layout.V, speculative_eagle_topk=layout.P)
    engines.install(monkeypatch, f"{srt}.runtime_context", get_spec=lambda: spec)
    base = f"{srt}.speculative.base_spec_worker"
    engines.install(monkeypatch, base, BaseSpecWorker=BaseSpecWorker)
    return found


class Target:
    """The target worker: SGLang's pools around the weights of a ZayaModel."""

    def __init__(self, monkeypatch, found, model):
        self.model, self.found = model, found
        self.inputs, self.cca, attention = (
            engines.module(monkeypatch, f"sglang.{name}") for name in ("inputs", "cca", "attention")
        )
        config, taps = model.config, model.config.conv_depth
        pages = torch.randperm(
            REQUESTS * LENGTH // PAGE, generator=torch.Generator().manual_seed(0)
        )
        slots = (1 + pages)[:, None] * PAGE + torch.arange(PAGE)  # slot 0 stays unused
        tokens = torch.zeros(REQUESTS + 1, LENGTH, dtype=torch.int32)
        tokens[1:] = slots.view(REQUESTS, LENGTH)
        self.pool = SimpleNamespace(req_to_token=tokens)
        size = (REQUESTS * LENGTH + PAGE, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.kv = Kv([[torch.full(size, torch.nan) for _ in range(2)] for _ in layers])
        hidden = torch.full((9, config.hidden_size, 1), torch.nan)
        conv = torch.full((9, config.conv_channels, taps), torch.nan)
        self.states = [[conv.clone(), hidden.clone()] for _ in layers]
        hf = SimpleNamespace(mask_token_id=config.mask_token_id)
        translator = SimpleNamespace(bind_own_plan=lambda batch: None)
        self.model_runner = SimpleNamespace(
            model_config=SimpleNamespace(hf_config=hf), kv_index_translator=translator,
            page_size=PAGE, req_to_token_pool=self.pool, token_to_kv_pool=self.kv,
        )  # fmt: skip
        self.device = "cpu"
        self.backend = attention.Backend(self.model_runner)

    def forward_batch_generation(self, batch, forward_batch=None, is_verify=False):
        forward = batch if forward_batch is None else forward_batch
        self.backend.init_forward_metadata(forward)
        self.found.current = self.backend
        logits = self._forward(forward)
        result = Batch(logits_output=logits)
        if not is_verify:
            result.next_token_ids = logits.next_token_logits.argmax(-1)
        return result

    def _forward(self, forward):
        model, count = self.model, len(forward.input_ids)
        rows = self.backend.forward_metadata.rows
        buffers = Buffers.new(model.config, count, rows, model.dtype, model.device)
        live = rows.table(count).live
        names = Layers(self, forward)
        stream = model.layers(names, forward.input_ids.int(), live, rows, None, buffers)
        hidden = model.read(ops, stream)
        if not forward.forward_mode.is_target_verify():
            hidden = hidden[rows.cu_rows[1:].long() - 1]

        def processor(self, input_ids, hidden, lm_head, metadata):
            return SimpleNamespace(next_token_logits=lm_head(hidden))

        return self.inputs.around_logits(
            processor, None, forward.input_ids, hidden, model.logits, forward
        )


class Kv:
    """SGLang's cache of all layers: a token a slot."""

    def __init__(self, layers):
        self.layers = layers

    def get_key_buffer(self, layer_id):
        return self.layers[layer_id][0]

    def get_value_buffer(self, layer_id):
        return self.layers[layer_id][1]

    def set_kv_buffer(self, layer, where, keys, values):
        for cache, new in zip(self.layers[layer.layer_id], (keys, values)):
            cache[where] = new


class Layers:
    """The functions of blockdraft.ops, of which CCA and attention take SGLang's ways."""

    def __init__(self, target, forward):
        self.target, self.forward, self.layer = target, forward, 0

    def __getattr__(self, name):
        return getattr(ops, name)

    def linear(self, x, weight, bias=None, out=None):
        self.x, self.weight = x, weight
        return ops.linear(x, weight, bias, out=out)

    def cca_qkv(self, qk, v_now, v_late, w0, b0, w1, b1, temp, cos_sin, rows, *state, **options):
        config, x = self.target.model.config, self.x
        Hq, Dh = config.num_attention_heads, config.head_dim
        sizes = [Hq * Dh, qk.shape[1] - Hq * Dh, v_now.shape[1], v_late.shape[1]]
        parts = [lambda t, w=w: (t @ w.T, None) for w in self.weight.split(sizes)]
        names = ("linear_q", "linear_k", "val_proj1", "val_proj2")
        conv = [SimpleNamespace(weight=w0, bias=b0), SimpleNamespace(weight=w1, bias=b1)]
        cca = SimpleNamespace(
            conv_qk=conv, temp=temp, clamp_temp=False, tp_size=1, layer_id=self.layer,
            **dict(zip(names, parts)),
        )  # fmt: skip
        target, slots = self.target, self.forward.req_pool_indices
        state = SimpleNamespace(
            layer_cache=SimpleNamespace(conv=target.states[self.layer]), cache_indices=slots
        )
        target.backend.conv_state_metadata = lambda *args: state
        q, k, v = target.cca.around_forward(None, cca, x, self.forward)
        angles = cos_sin[self.forward.positions]
        return rotate(q, angles), rotate(k, angles), v

    def block_attention(self, q, k, v, *pages, scale, window, **options):
        layer = SimpleNamespace(
            tp_q_head_num=q.shape[1], tp_k_head_num=k.shape[1], qk_head_dim=q.shape[2],
            v_head_dim=q.shape[2], scaling=scale, layer_id=self.layer, logit_cap=0.0,
            is_cross_attention=False, sliding_window_size=window - 1, attn_type="decoder",
        )  # fmt: skip
        self.layer += 1
        flat = [t.flatten(1) for t in (q, k, v)]
        return self.target.backend.forward_extend(*flat, layer, self.forward).view(q.shape)
