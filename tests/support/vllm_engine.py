"""A runner's side of vLLM for the model, its state and its sampler: batches, block tables, and the
bookkeeping between two steps, as far as these see it."""

from types import SimpleNamespace

import engines
import numpy as np
import torch

PAGE, REQUESTS, LENGTH = 16, 5, 160


class Attention(torch.nn.Module):
    def __init__(
        self, num_heads, head_size, scale, num_kv_heads, cache_config, prefix, attn_backend
    ):
        super().__init__()
        self.prefix, self.sizes = prefix, (num_kv_heads, PAGE, 2 * head_size)


class ModelState:
    def __init__(self, vllm_config, model, encoder_cache, device):
        self.model, self.device, self.dtype = model, device, vllm_config.model_config.dtype
        self.max_num_reqs = REQUESTS


def build_attn_metadata(attn_groups, num_reqs, block_tables, **given):
    return {name: SimpleNamespace(block_table=block_tables[0][:num_reqs]) for name in attn_groups}


def install(monkeypatch) -> None:
    """engines.vllm, and what the model imports."""
    engines.vllm(monkeypatch)
    engines.install(monkeypatch, "vllm.model_executor.layers.attention", Attention=Attention)
    gpu = "vllm.v1.worker.gpu"
    build = dict(build_attn_metadata=build_attn_metadata)
    engines.install(monkeypatch, f"{gpu}.attn_utils", **build)
    engines.install(monkeypatch, f"{gpu}.model_states.interface", ModelState=ModelState)
    output = dict(SamplerOutput=SimpleNamespace)
    engines.install(monkeypatch, f"{gpu}.sample.output", **output)


def config(hf, drafts, proposals=None, **changes):
    model = SimpleNamespace(
        dtype=torch.float32, enforce_eager=True, hf_config=SimpleNamespace(to_dict=lambda: hf)
    )
    base = dict(
        model_config=model, num_speculative_tokens=drafts, quant_config=None, lora_config=None,
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        cache_config=SimpleNamespace(enable_prefix_caching=False),
        additional_config={} if proposals is None else dict(proposals=proposals),
    )  # fmt: skip
    return SimpleNamespace(**base | changes)


class Values:
    """vLLM's tensors that are in numpy and on the device."""

    def __init__(self, values):
        self.np = values
        self.gpu = torch.from_numpy(values)


class Sampler:
    """vLLM's own sampler: the parameters of requests."""

    def __init__(self, vocab, drafts):
        self.sampling_states = SimpleNamespace(
            vocab_size=vocab, temperature=Values(np.ones(REQUESTS, np.float32)),
            top_k=Values(np.full(REQUESTS, vocab, np.int32)),
            top_p=Values(np.ones(REQUESTS, np.float32)),
            min_p=Values(np.zeros(REQUESTS, np.float32)),
            seeds=Values(np.zeros(REQUESTS, np.int64)),
        )  # fmt: skip
        tokens = torch.zeros(REQUESTS, max(drafts, 1), dtype=torch.int64)
        self.req_states = SimpleNamespace(draft_tokens=tokens)
        self.calls = 0

    def add_request(self, req_idx, params):
        states = self.sampling_states
        for name, value in (
            ("temperature", params.temperature), ("seeds", params.seed),
            ("top_k", params.top_k or states.vocab_size),
        ):  # fmt: skip
            getattr(states, name).np[req_idx] = value

    def __call__(self, logits, input_batch):
        self.calls += 1


class Request:
    def __init__(self, prompt, temperature=0.0, top_k=0, seed=0, **more):
        off = dict(
            frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0, min_tokens=0,
            logprobs=None, logit_bias=None, bad_words=[], structured_outputs=None,
        )  # fmt: skip
        params = dict(temperature=temperature, top_k=top_k, seed=seed)
        self.params = SimpleNamespace(**off | params | more)
        self.prompt, self.tokens, self.computed, self.nans = prompt, list(prompt), 0, 0


class Runner:
    def __init__(self, module, hf, tensors, drafts, proposals=None):
        given = config(hf, drafts, proposals)
        self.model = module.ZayaForCausalLM(vllm_config=given)
        self.model.load_weights(tensors.items())
        self.state = self.model.get_model_state_cls()(given, self.model, None, torch.device("cpu"))
        base = Sampler(hf["vocab_size"], drafts)
        self.sampler, rejection = self.state.custom_sampler(base)
        assert rejection is None
        width, self.drafts = LENGTH // PAGE, drafts
        pages = torch.randperm(REQUESTS * width, generator=torch.Generator().manual_seed(0))
        self.tables = (1 + pages).view(REQUESTS, width).int()  # block 0 is vLLM's null block
        for layer in self.model.attention:
            layer.kv_cache = torch.full((REQUESTS * width + 1, *layer.sizes), torch.nan)
        self.slots = {}

    def add(self, slot, request):
        self.slots[slot] = request
        self.sampler.add_request(slot, request.params)

    def input_batch(self, counts):
        """Of {slot: scheduled tokens}, in its order."""
        slots, sizes = list(counts), np.array(list(counts.values()), np.int32)
        requests = [self.slots[slot] for slot in slots]
        computed = np.array([r.computed for r in requests], np.int32)
        prefill = np.array([len(r.prompt) for r in requests], np.int32)
        prefilling = computed < prefill
        starts = np.concatenate([[0], sizes.cumsum()]).astype(np.int32)
        logits = np.where(prefilling, 1, sizes)
        ends = np.concatenate([[0], logits.cumsum()]).astype(np.int32)
        ids, places = [], []
        for i, r in enumerate(requests):
            own = r.tokens + self.sampler.req_states.draft_tokens[slots[i]].tolist()
            ids += own[r.computed : r.computed + sizes[i]]
            places += range(starts[i + 1] - logits[i], starts[i + 1])
        return SimpleNamespace(
            num_reqs=len(slots), num_tokens=int(sizes.sum()), idx_mapping_np=np.array(slots),
            idx_mapping=torch.tensor(slots, dtype=torch.int32), query_start_loc_np=starts,
            query_start_loc=torch.from_numpy(starts), is_prefilling_np=prefilling,
            num_computed_prefill_tokens_np=np.minimum(computed, prefill), prefill_len_np=prefill,
            seq_lens=torch.from_numpy(computed + sizes), cu_num_logits=torch.from_numpy(ends),
            seq_lens_cpu_upper_bound=torch.from_numpy(computed + sizes + 7),
            input_ids=torch.tensor(ids), logits_indices=torch.tensor(places),
            positions=None, num_draft_tokens=int((logits - 1).sum()),
        )  # fmt: skip

    def step(self, counts):
        """Tokens that each request emits."""
        batch = self.input_batch(counts)
        tables = self.tables[batch.idx_mapping.long()]
        names = [layer.prefix for layer in self.model.attention]
        self.state.prepare_attn(batch, None, (tables,), None, names, None)
        inputs = dict(input_ids=batch.input_ids, positions=batch.positions)
        inputs |= self.state.prepare_inputs(batch, None)
        hidden = self.model.forward(**inputs)
        assert len(hidden) == batch.num_tokens
        out = self.sampler(self.model.compute_logits(hidden[batch.logits_indices]), batch)
        emitted = []
        for i, (slot, size) in enumerate(counts.items()):
            r, count = self.slots[slot], int(out.num_sampled[i])
            emitted.append(count)
            r.tokens += out.sampled_token_ids[i, :count].tolist()
            r.computed += size - int(out.num_rejected[i])
            r.nans += int(out.num_nans[i])
            assert r.computed == len(r.tokens) - 1 or r.computed < len(r.prompt)
        return emitted
