"""The speculative worker for SGLang: a scheduler's batches through it give the tokens of
BlockDecoder, which has its own loop, cache and state. `--sglang PATH`, an unpacked wheel, compares
signatures, fields and the scheduler's calls with its own. The engine itself ran nowhere."""

import ast
import re
from types import SimpleNamespace

import pytest
import sglang_engine
import torch
from engines import agree, fields, methods, module, parameters
from models import random_model
from sglang_engine import Batch, Mode, Target

from blockdraft import BlockDecoder, BlockLayout, Request

LAYOUT = BlockLayout.tidar(5, P=3)
PLAIN = dict(
    frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0, min_new_tokens=0,
    logit_bias=None,
)  # fmt: skip


def request(slot, prompt, temperature=0.0, top_k=1 << 30, seed=None, **more):
    params = PLAIN | dict(sampling_seed=seed) | more
    if temperature == 0:
        temperature, top_k = 1.0, 1  # as SGLang normalises it
    params |= dict(temperature=temperature, top_k=top_k)
    return SimpleNamespace(
        rid=f"r{slot}", slot=slot, prompt=prompt, tokens=[], to_finish=None, grammar=None,
        return_logprob=False, return_hidden_states=False, lora_id=None,
        custom_logit_processor=None, sampling_params=SimpleNamespace(**params),
    )  # fmt: skip


class Scheduler:
    """The synchronous loop of SGLang's scheduler, as far as the worker sees it."""

    def __init__(self, monkeypatch, model, layout=LAYOUT):
        found = sglang_engine.install(monkeypatch, layout)
        self.target = Target(monkeypatch, found, model)
        kind = module(monkeypatch, "sglang.worker").Worker
        self.worker = kind(SimpleNamespace(), 0, 0, self.target)
        self.worker.alloc_memory_pool(None, self.target.pool, None)
        self.running = None

    def batch(self, requests, lengths, mode, spec_info=None):
        params = [r.sampling_params for r in requests]
        top_ks = torch.tensor([p.top_k for p in params])
        sampling = SimpleNamespace(
            temperatures=torch.tensor([[p.temperature] for p in params]), top_ks=top_ks,
            top_ps=torch.ones(len(params)), min_ps=torch.zeros(len(params)),
            need_top_k_sampling=bool((top_ks < 1 << 30).any()),
            need_top_p_sampling=False, need_min_p_sampling=False,
        )  # fmt: skip
        return Batch(
            reqs=requests, forward_mode=mode, seq_lens=lengths, seq_lens_cpu=lengths,
            seq_lens_sum=int(lengths.sum()), spec_info=spec_info, sampling_info=sampling,
            req_pool_indices=torch.tensor([r.slot for r in requests]), spec_algorithm="BLOCKDRAFT",
        )  # fmt: skip

    def add(self, *requests):
        """A chunk of all prompts; then they decode together with those that run."""
        lengths = torch.tensor([len(r.prompt) for r in requests])
        batch = self.batch(list(requests), lengths, Mode.EXTEND)
        batch.input_ids = torch.tensor([t for r in requests for t in r.prompt])
        batch.positions = torch.cat([torch.arange(n) for n in lengths.tolist()])
        batch.extend_seq_lens, batch.extend_seq_lens_cpu = lengths, lengths.tolist()
        tokens = self.target.pool.req_to_token
        batch.out_cache_loc = torch.cat([tokens[r.slot, : len(r.prompt)] for r in requests]).long()
        result = self.worker.forward_batch_generation(batch)
        for r, token in zip(requests, result.next_token_ids.tolist()):
            r.tokens.append(token)
        batch.spec_info = result.next_draft_input
        if self.running is None:
            self.running = batch
            return
        info = self.running.spec_info
        info.merge_batch(batch.spec_info)
        lengths = torch.cat([self.running.seq_lens, batch.seq_lens])
        self.running = self.batch(self.running.reqs + batch.reqs, lengths, Mode.DECODE, info)

    def remove(self, *leaving):
        kept = [i for i, r in enumerate(self.running.reqs) if r not in leaving]
        info = self.running.spec_info
        info.filter_batch(new_indices=torch.tensor(kept), new_indices_cpu=kept)
        requests = [self.running.reqs[i] for i in kept]
        self.running = self.batch(requests, self.running.seq_lens[kept], Mode.DECODE, info)

    def step(self):
        now = self.running
        batch = self.batch(now.reqs, now.seq_lens, Mode.DECODE, now.spec_info)
        published = []
        result = self.worker.forward_batch_generation(batch, on_publish=published.append)
        assert torch.equal(published[0], result.new_seq_lens)
        stride = result.speculative_num_draft_tokens
        counts = result.accept_lens.tolist()
        self.worker.on_verify_complete_cpu([n - 1 for n in counts], batch_size=len(counts))
        for i, (r, count) in enumerate(zip(now.reqs, counts)):
            r.tokens += result.next_token_ids[i * stride : i * stride + count].tolist()
        self.running = self.batch(
            now.reqs, result.new_seq_lens, Mode.DECODE, result.next_draft_input
        )
        return counts


def decoded(model, r, layout=LAYOUT):
    """What BlockDecoder gives after the first token, which SGLang samples. It may go on, since its
    last drafts before an end would be fewer."""
    p = r.sampling_params
    greedy = p.top_k == 1
    decoder = BlockDecoder(model, layout, drafter="greedy")
    top_k = 0 if greedy or p.top_k == 1 << 30 else p.top_k
    (completion,) = decoder.generate(
        [
            Request(
                [*r.prompt, r.tokens[0]], len(r.tokens) + LAYOUT.K, seed=p.sampling_seed or 0,
                temperature=0.0 if greedy else p.temperature, top_k=top_k,
            )
        ]
    )  # fmt: skip
    return completion.tokens[: len(r.tokens) - 1]


def prompt(seed, length):
    return torch.randint(8, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("layout", [LAYOUT, BlockLayout.tidar(4, P=4), BlockLayout.tidar(1, P=1)])
@torch.no_grad()
def test_tokens_are_those_of_a_decoder(monkeypatch, layout):
    """Greedy and sampled requests that come and go, prompts of any length, one reuses a row of the
    pools."""
    model = random_model(3)
    scheduler = Scheduler(monkeypatch, model, layout)
    a = request(2, prompt(0, 11))
    b = request(5, prompt(1, 1), temperature=1.5, seed=7)
    c = request(1, prompt(2, 30), temperature=0.8, top_k=3, seed=8)
    scheduler.add(a, b)
    counts = [scheduler.step() for _ in range(8)]
    scheduler.add(c)
    counts += [scheduler.step() for _ in range(8)]
    scheduler.remove(a)
    d = request(2, prompt(3, 5), temperature=1.0, seed=9)
    scheduler.add(d)
    counts += [scheduler.step() for _ in range(8)]
    for r in (a, b, c, d):
        assert len(r.tokens) > 8
        assert r.tokens[1:] == decoded(model, r, layout), r.rid
    accepted = sum(map(sum, counts)) / sum(map(len, counts))
    assert accepted > 1.1 or layout.K == 0  # drafts are accepted, not only corrected


@torch.no_grad()
def test_requests_that_it_cannot_serve_end(monkeypatch):
    scheduler = Scheduler(monkeypatch, random_model(3))
    fine, penalised = request(1, [1, 2]), request(2, [3], frequency_penalty=0.5)
    scheduler.add(fine, penalised)
    assert fine.to_finish is None and "frequency_penalty" in penalised.to_finish
    keys, _ = scheduler.target.kv.layers[0]
    keys[scheduler.target.pool.req_to_token[1, 0].long()] = torch.nan
    penalised.to_finish = None
    scheduler.step()
    assert "NaN" in fine.to_finish and penalised.to_finish is None


def test_register_and_arguments(monkeypatch):
    found = sglang_engine.install(monkeypatch, LAYOUT)
    module(monkeypatch, "sglang").register()
    factory, options = found.algorithms["BLOCKDRAFT"]
    assert factory(None).__name__ == "Worker" and options["supports_overlap"]
    given = SimpleNamespace(
        speculative_num_draft_tokens=None, speculative_eagle_topk=4, attention_backend="blockdraft",
        disable_radix_cache=True, pp_size=1, attn_dp_size=1, enable_lora=None,
        enable_mixed_chunk=False, speculative_adaptive=False,
    )  # fmt: skip
    algorithm = object.__new__(options["spec_class"])
    algorithm.handle_server_args(given)
    assert (given.speculative_num_draft_tokens, given.speculative_eagle_topk) == (16, 4)
    options["validate_server_args"](given)
    given.disable_radix_cache = False
    with pytest.raises(ValueError, match="--disable-radix-cache"):
        options["validate_server_args"](given)
    rows = algorithm.get_num_tokens_per_req_for_target_verify(LAYOUT.V, False)
    assert rows == LAYOUT.rows


@pytest.fixture
def srt(request):
    path = request.config.getoption("--sglang")
    if path is None:
        pytest.skip("needs SGLang's unpacked wheel: pytest --sglang PATH")
    return path / "sglang/srt"


def keywords(path, call):
    """Of every call of that name in a file of ours."""
    calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
    return {k.arg for n in calls if getattr(n.func, "id", "") == call for k in n.keywords}


def test_signatures(monkeypatch, srt):
    sglang_engine.install(monkeypatch, LAYOUT)
    worker, inputs, algorithm = (
        module(monkeypatch, f"sglang.{name}") for name in ("worker", "inputs", "algorithm")
    )
    spec = srt / "speculative"
    base = methods(spec / "base_spec_worker.py", "BaseSpecWorker")
    agree(worker.Worker, {n: f for n, f in base.items() if n != "__init__"})
    their = methods(spec / "ngram_worker.py", "NGRAMWorker")
    own = {n: f for n, f in their.items() if n in ("__init__", "forward_batch_generation")}
    agree(worker.Worker, own)
    uno = methods(spec / "uno_info.py", "UnoDraftInput")
    agree(inputs.DraftInput, {n: uno[n] for n in ("filter_batch", "merge_batch")})
    agree(algorithm.Algorithm, methods(spec / "spec_info.py", "SpeculativeAlgorithm"))
    register = methods(spec / "spec_info.py", "SpeculativeAlgorithm")["register"]
    options = ["supports_overlap", "validate_server_args", "spec_class"]
    assert parameters(register) == ["cls", "name", *options]
    forward = methods(srt / "layers/logits_processor.py", "LogitsProcessor")["forward"]
    assert parameters(forward)[:5] == parameters_of(inputs.around_logits)[1:6]


def parameters_of(function):
    return list(function.__code__.co_varnames[: function.__code__.co_argcount])


def test_fields(monkeypatch, srt):
    """What the worker gives to SGLang's classes, and reads of its objects, is there."""
    sglang_engine.install(monkeypatch, LAYOUT)
    source = module(monkeypatch, "sglang.worker").__file__
    text = open(source).read()
    path = type(srt)(source)
    given = keywords(path, "ForwardBatch")
    assert given and given <= fields(srt / "model_executor/forward_batch_info.py", "ForwardBatch")
    given = keywords(path, "GenerationBatchResult")
    assert given and given <= fields(srt / "managers/utils.py", "GenerationBatchResult")
    sampling = fields(srt / "sampling/sampling_batch_info.py", "SamplingBatchInfo")
    assert set(re.findall(r"\binfo\.((?:need_|top_|min_|temp)\w+)", text)) <= sampling
    batch = fields(srt / "managers/schedule_batch.py", "ScheduleBatch")
    assert set(re.findall(r"\bbatch\.(\w+)", text)) - {"spec_info.bonus_tokens"} <= batch
    params = fields(srt / "sampling/sampling_params.py", "SamplingParams")
    assert set(PLAIN) | {"sampling_seed"} <= params
    kinds = (srt / "speculative/spec_info.py").read_text()
    assert "NGRAM_VERIFY = auto()" in kinds and "UNO_STATE = auto()" in kinds


def test_the_scheduler_finds_what_it_calls(monkeypatch, srt):
    """Each method of an algorithm that the scheduler and the model runner call is in SGLang's base
    class for plugins or in ours (the base lacks some); each attribute that the relay of overlapped
    scheduling reads is one of a DraftInput."""
    sglang_engine.install(monkeypatch, LAYOUT)
    ours = vars(module(monkeypatch, "sglang.algorithm").Algorithm)
    base = set(methods(srt / "speculative/spec_registry.py", "CustomSpecAlgo"))
    called, places = set(), ("managers", "model_executor", "mem_cache", "speculative")
    for path in (p for place in places for p in (srt / place).rglob("*.py")):
        called |= set(re.findall(r"\bspec_algo(?:rithm)?\.([a-z_]+)\(", path.read_text()))
    builtin = {"get_platform_worker_cls", "from_string", "register"}  # on the enum itself
    missing = called - base - set(ours) - builtin
    assert not missing
    assert {"create_future_map", "carries_draft_hidden_states"} <= called - base
    relay = methods(srt / "managers/overlap_utils.py", "RelayPayload")["from_draft_input"]
    read = {n.attr for n in ast.walk(relay) if isinstance(n, ast.Attribute)
            and getattr(n.value, "id", "") == "draft_input"}  # fmt: skip
    draft = module(monkeypatch, "sglang.inputs").DraftInput(torch.ones(1), torch.ones(1))
    inherited = fields(srt / "speculative/spec_info.py", "SpecInput")
    assert read <= {n for n in dir(draft)} | inherited
