"""The model class, ModelState and sampler for vLLM: steps of a runner through them give the tokens
of BlockDecoder. `--vllm PATH`, an unpacked wheel, compares signatures and fields with its own. The
engine itself ran nowhere."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import vllm_engine
from engines import agree, fields, methods, module, parameters
from models import random_model, random_tensors
from vllm_engine import Request, Runner

import blockdraft
from blockdraft import BlockDecoder, BlockLayout


@pytest.fixture
def engine(monkeypatch):
    vllm_engine.install(monkeypatch)
    return module(monkeypatch, "vllm.model")


def checkpoint(seed=3):
    """A model, its config.json and its tensors by name."""
    model = random_model(seed)
    return model, asdict(model.config) | dict(model_type="zaya"), random_tensors(model.config, seed)


def decoded(model, r, layout):
    """What BlockDecoder gives after the first token, with which vLLM's prefill ends."""
    p, new = r.params, r.tokens[len(r.prompt) + 1 :]
    given = blockdraft.Request(
        r.tokens[: len(r.prompt) + 1], len(new) + layout.V, seed=p.seed,
        temperature=p.temperature, top_k=p.top_k,
    )  # fmt: skip
    (completion,) = BlockDecoder(model, layout, drafter="greedy").generate([given])
    return completion.tokens[: len(new)]


def prompt(seed, length):
    return torch.randint(8, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("drafts, proposals", [(4, 3), (3, None), (0, None)])
@torch.no_grad()
def test_tokens_are_those_of_a_decoder(engine, drafts, proposals):
    """Greedy and sampled, prompts in chunks beside requests that decode, a slot used again."""
    model, hf, tensors = checkpoint()
    runner = Runner(engine, hf, tensors, drafts, proposals)
    layout = BlockLayout.tidar(drafts + 1, P=proposals) if drafts else BlockLayout.autoregressive()
    a, b = Request(prompt(0, 11)), Request(prompt(1, 1), 1.5, seed=7)
    c, d = Request(prompt(2, 30), 0.8, top_k=3, seed=8), Request(prompt(3, 6), 1.0, seed=9)
    whole = drafts + 1
    runner.add(2, a)
    runner.add(4, b)
    assert runner.step({2: 11, 4: 1}) == [1, 1]
    counts = [runner.step({2: whole, 4: whole}) for _ in range(6)]
    runner.add(0, c)
    assert runner.step({4: whole, 0: 13})[1] == 0
    assert runner.step({0: 17, 2: whole, 4: whole})[0] == 1
    counts += [runner.step({0: whole, 4: whole, 2: whole}) for _ in range(6)]
    runner.add(2, d)
    assert runner.step({2: 6}) == [1]
    counts += [runner.step({2: whole, 0: whole}) for _ in range(6)]
    for r in (a, b, c, d):
        assert len(r.tokens) > len(r.prompt) + 6
        assert r.tokens[len(r.prompt) + 1 :] == decoded(model, r, layout)
    assert sum(map(sum, counts)) / sum(map(len, counts)) > 1.1 or drafts == 0


@torch.no_grad()
def test_fewer_rows_than_drafts(engine):
    """Near the greatest length vLLM schedules fewer drafts; greedy tokens stay the same."""
    model, hf, tensors = checkpoint()
    runner, r = Runner(engine, hf, tensors, 4, 3), Request(prompt(0, 9))
    runner.add(1, r)
    runner.step({1: 9})
    for size in (5, 5, 2, 5, 1, 3, 5, 4, 1, 1, 5, 5):
        (count,) = runner.step({1: size})
        assert 1 <= count <= size
    assert r.tokens[len(r.prompt) + 1 :] == decoded(model, r, BlockLayout.tidar(5, P=3))


@torch.no_grad()
def test_measuring_memory_and_nan(engine):
    _, hf, tensors = checkpoint()
    runner = Runner(engine, hf, tensors, 4, 3)
    runner.state.prepare_inputs(SimpleNamespace(), None)
    assert runner.model.forward(torch.zeros(7, dtype=torch.long), None).shape == (7, 32)
    assert runner.sampler(torch.zeros(7, 9), SimpleNamespace()) is None
    assert runner.sampler.calls == 1  # vLLM's own
    good, bad = Request(prompt(0, 4)), Request(prompt(1, 4))
    runner.add(0, good)
    runner.add(1, bad)
    runner.step({0: 4, 1: 4})
    runner.model.attention[0].kv_cache[runner.tables[1, 0]] = torch.nan
    runner.step({0: 5, 1: 5})
    assert (good.nans, bad.nans) == (0, 1) and bad.tokens[-1] == (hf["eos_token_id"] or 0)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(parallel_config=SimpleNamespace(tensor_parallel_size=2)), "tensor_parallel_size"),
        (dict(cache_config=SimpleNamespace(enable_prefix_caching=True)), "prefix-caching"),
        (dict(quant_config=1), "quant_config"),
    ],
)
def test_refuses(engine, change, message):
    _, hf, tensors = checkpoint()
    with pytest.raises(ValueError, match=message):
        engine.ZayaForCausalLM(vllm_config=vllm_engine.config(hf, 4, **change))
    runner = Runner(engine, hf, tensors, 4)
    with pytest.raises(ValueError, match="presence_penalty"):
        runner.add(0, Request([1], presence_penalty=0.3))


def test_register(monkeypatch):
    vllm_engine.install(monkeypatch)
    module(monkeypatch, "vllm").register()
    models = sys.modules["vllm.model_executor.models"].ModelRegistry.models
    name, _, attribute = models["ZayaForCausalLM"].partition(":")
    assert name.startswith("blockdraft.") and attribute == "ZayaForCausalLM"
    assert hasattr(module(monkeypatch, name.removeprefix("blockdraft.integrations.")), attribute)


REAL = """
import blockdraft.integrations.vllm as plugin
plugin.register()
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.interfaces_base import is_text_generation_model
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
backend = AttentionBackendEnum.CUSTOM.get_class()
model = ModelRegistry._try_load_model_cls("ZayaForCausalLM")
assert model.__module__ == "blockdraft.integrations.vllm.model" and is_text_generation_model(model)
assert ModelRegistry._try_inspect_model_cls("ZayaForCausalLM").is_text_generation_model
state = resolve_model_state_cls(None, model.__new__(model))
assert state.__name__ == "BlockState" and not state.__abstractmethods__
assert backend.get_name() == "CUSTOM" and backend.__mro__[1].__module__.startswith("vllm.")
"""


def test_its_own_modules_take_ours(source):
    """vLLM's Python, in a process of its own: its registries load and inspect our classes, which
    derive from its. No kernel of it runs."""
    package = Path(blockdraft.__file__).parents[1]
    paths = [str(source.parent), str(package), os.environ.get("PYTHONPATH", "")]
    where = os.environ | dict(PYTHONPATH=os.pathsep.join(paths))
    run = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, env=where)
    lacks = re.search(r"No module named '(?!blockdraft|vllm\.)(\w+)", run.stderr)
    if run.returncode and lacks:
        pytest.skip(f"needs vLLM's requirements: {lacks[1]} is missing")
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.fixture
def source(request):
    path = request.config.getoption("--vllm")
    if path is None:
        pytest.skip("needs vLLM's unpacked wheel: pytest --vllm PATH")
    return path / "vllm"


def test_signatures(engine, monkeypatch, source):
    state = module(monkeypatch, "vllm.state")
    gpu = source / "v1/worker/gpu"
    agree(state.BlockState, methods(gpu / "model_states/interface.py", "ModelState"))
    theirs = methods(source / "model_executor/models/diffusion_gemma.py", "DiffusionSampler")
    own = {n: theirs[n] for n in ("add_request", "__call__")}
    agree(module(monkeypatch, "vllm.sampler").BlockSampler, own)
    model = methods(
        source / "model_executor/models/diffusion_gemma.py",
        "DiffusionGemmaForConditionalGeneration",
    )
    names = ("__init__", "forward", "compute_logits", "load_weights", "get_model_state_cls")
    agree(engine.ZayaForCausalLM, {n: model[n] for n in names})
    layer = methods(source / "model_executor/layers/attention/attention.py", "Attention")
    given = {"num_kv_heads", "cache_config", "prefix", "attn_backend"}
    assert parameters(layer["__init__"])[1:4] == ["num_heads", "head_size", "scale"]
    assert given <= set(parameters(layer["__init__"]))


def test_fields(engine, monkeypatch, source):
    """What is read of vLLM's objects, and given to its functions, is there."""
    gpu = source / "v1/worker/gpu"
    state, sampler = (
        open(module(monkeypatch, f"vllm.{name}").__file__).read() for name in ("state", "sampler")
    )
    batch = fields(gpu / "input_batch.py", "InputBatch")
    read = set(re.findall(r"\b(?:input_)?batch\.(\w+)", state + sampler)) - {"is"}
    assert read and read <= batch
    functions = {n.name: n for n in ast.parse((gpu / "attn_utils.py").read_text()).body
                 if isinstance(n, ast.FunctionDef)}  # fmt: skip
    calls = (n for n in ast.walk(ast.parse(state)) if isinstance(n, ast.Call))
    (call,) = (n for n in calls if getattr(n.func, "id", "") == "build_attn_metadata")
    known = parameters(functions["build_attn_metadata"])
    assert {k.arg for k in call.keywords} <= set(known)
    needed = known[: len(known) - len(functions["build_attn_metadata"].args.defaults)]
    assert set(needed) <= {k.arg for k in call.keywords}
    output = fields(gpu / "sample/output.py", "SamplerOutput")
    given = (n for n in ast.walk(ast.parse(sampler)) if isinstance(n, ast.Call))
    (call,) = (n for n in given if getattr(n.func, "id", "") == "SamplerOutput")
    assert {k.arg for k in call.keywords} <= output
    states = (gpu / "sample/states.py").read_text()
    for name in ("temperature", "top_k", "top_p", "min_p", "seeds"):
        assert f"self.{name} = UvaBackedTensor(" in states
    params = (source / "sampling_params.py").read_text()
    for name in module(monkeypatch, "vllm.sampler").OFF:
        assert re.search(rf"^    {name}:", params, re.M), name
    runner = (gpu / "model_runner.py").read_text()
    order = ["self.model_state.prepare_attn(", "self.model_state.prepare_inputs("]
    assert runner.index(order[0]) < runner.index(order[1])
    assert "sampler_output = self.sampler(logits, input_batch)" in runner
    assert (
        "num_new_sampled_tokens_per_step: int = 1"
        in (gpu / "model_states/interface.py").read_text()
    )
