"""Modules of the names that blockdraft.integrations imports from SGLang 0.5.23 and vLLM 0.33, with
nothing in them but base classes and registries. No line of either engine runs. And what their tests
share."""

import ast
import enum
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

HQ, HK, DH, PAGE = 8, 2, 64, 16


def module(monkeypatch, name: str) -> ModuleType:
    """blockdraft's, imported beside fakes and forgotten with them."""
    full = f"blockdraft.integrations.{name}"
    for loaded in [n for n in sys.modules if n.startswith(full)]:
        monkeypatch.delitem(sys.modules, loaded)
    found = importlib.import_module(full)
    for loaded in [n for n in sys.modules if n.startswith(full)]:
        kept = sys.modules.pop(loaded)
        monkeypatch.setitem(sys.modules, loaded, kept)
    return found


def fields(path: Path, name: str) -> set[str]:
    """Of a class of an engine's source, by their annotations."""
    nodes = ast.walk(ast.parse(path.read_text()))
    (found,) = (n for n in nodes if isinstance(n, ast.ClassDef) and n.name == name)
    return {n.target.id for n in found.body if isinstance(n, ast.AnnAssign)}


def install(monkeypatch, name: str, **members) -> None:
    """A module and the packages that it stands in."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            monkeypatch.setitem(sys.modules, path, ModuleType(path))
        if end > 1:
            parent = sys.modules[".".join(parts[: end - 1])]
            monkeypatch.setattr(parent, parts[end - 1], sys.modules[path], raising=False)
    for member, value in members.items():
        monkeypatch.setattr(sys.modules[name], member, value, raising=False)


class _Builder:
    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        self.kv_cache_spec, self.device = kv_cache_spec, device


def vllm(monkeypatch) -> dict:
    """Its registry of attention backends."""
    registered: dict = {}
    kinds = enum.Enum("AttentionBackendEnum", ["CUSTOM", "FLASH_ATTN"])
    bases = dict(AttentionBackend=object, AttentionImpl=object, AttentionMetadataBuilder=_Builder)
    install(monkeypatch, "vllm.v1.attention.backend", **bases)
    registry = dict(AttentionBackendEnum=kinds, register_backend=registered.__setitem__)
    install(monkeypatch, "vllm.v1.attention.backends.registry", **registry)
    models = SimpleNamespace(models={})
    models.register_model = models.models.__setitem__
    install(monkeypatch, "vllm.model_executor.models", ModelRegistry=models)
    return registered


def sglang(monkeypatch) -> SimpleNamespace:
    """Its registries and lists of choices, and the attention of the running forward pass."""
    found = SimpleNamespace(attention={}, moe={}, hooks={}, backends=["triton"], runners=["auto"])
    found.algorithms = {}
    srt = "sglang.srt"

    def register_attention(name):
        return lambda function: found.attention.setdefault(name, function)

    class Registry:
        @staticmethod
        def register(target, hook, hook_type):
            found.hooks[target] = hook, hook_type

    class Runner:
        def __init__(self, config):
            self.config = config

    combined = type("StandardCombineInput", (SimpleNamespace,), {})
    layers = f"{srt}.layers"
    lists = dict(ATTENTION_BACKEND_CHOICES=found.backends, MOE_RUNNER_BACKEND_CHOICES=found.runners)
    install(monkeypatch, f"{srt}.arg_groups.choices", **lists)
    hooks = dict(HookRegistry=Registry, HookType=enum.Enum("HookType", ["AROUND"]))
    install(monkeypatch, f"{srt}.plugins.hook_registry", **hooks)
    registry = f"{layers}.attention.attention_registry"
    install(monkeypatch, registry, register_attention_backend=register_attention)
    register_moe = found.moe.__setitem__
    install(monkeypatch, f"{layers}.moe.moe_runner.runner", register_moe_runner_core=register_moe)
    install(monkeypatch, f"{layers}.moe.moe_runner.base", DispatchMoeRunnerCore=Runner)
    dispatcher = f"{layers}.moe.token_dispatcher.standard"
    install(monkeypatch, dispatcher, StandardCombineInput=combined)
    install(monkeypatch, f"{layers}.moe.utils", resolve_moe_runner_backend=lambda name: name)
    install(monkeypatch, f"{layers}.attention.base_attn_backend", AttentionBackend=object)
    write = lambda loc, swa: loc  # noqa: E731
    install(monkeypatch, f"{srt}.mem_cache.memory_pool", KVWriteLoc=write)
    spec = f"{srt}.speculative"

    class Algorithms:
        @staticmethod
        def register(name, **options):
            return lambda factory: found.algorithms.setdefault(name, (factory, options))

    kinds = enum.Enum("SpecInputType", ["NGRAM_VERIFY", "UNO_STATE"])
    info = dict(SpecInput=SpecInput, SpecInputType=kinds, SpeculativeAlgorithm=Algorithms)
    install(monkeypatch, f"{spec}.spec_info", **info)
    install(monkeypatch, f"{spec}.spec_registry", CustomSpecAlgo=object)
    context = f"{srt}.model_executor.forward_context"
    install(monkeypatch, context, get_attn_backend=lambda: found.current)
    return found


class SpecInput:
    def __init__(self, spec_input_type):
        self.spec_input_type = spec_input_type


class Pool:
    """SGLang's cache of one layer: a token a slot."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys, self.values = keys, values

    def get_key_buffer(self, layer_id):
        return self.keys

    def get_value_buffer(self, layer_id):
        return self.values

    def set_kv_buffer(self, layer, where, keys, values):
        self.keys[where], self.values[where] = keys, values


class Mode(enum.Enum):
    DECODE = "decode"
    EXTEND = "extend"
    TARGET_VERIFY = "verify"

    def is_decode(self):
        return self is Mode.DECODE

    def is_extend(self):
        return self is not Mode.DECODE

    def is_target_verify(self):
        return self is Mode.TARGET_VERIFY

    def is_idle(self):
        return False


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(q, keys, values, window=0):
    """Causal attention of q [n,Hq,Dh] at the end of keys and values [N,Hk,Dh]."""
    n, total = len(q), len(keys)
    place = torch.arange(total)
    query = place[total - n :, None]
    seen = (place <= query) & ((place > query - window) if window else True)
    k, v = (t.repeat_interleave(HQ // HK, 1).transpose(0, 1) for t in (keys, values))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * DH**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1)


def batch(chunks, lengths, seed=0):
    """Tokens of requests, of which the last chunk[i] are new; where the slots of each one lie."""
    keys = [randn(n, HK, DH, seed=seed + i) for i, n in enumerate(lengths)]
    values = [randn(n, HK, DH, seed=seed + 50 + i) for i, n in enumerate(lengths)]
    queries = [randn(n, HQ, DH, seed=seed + 90 + i) for i, n in enumerate(chunks)]
    pages = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    table = pages[: len(lengths) * 5].view(-1, 5)
    slots = [table[i, torch.arange(n) // PAGE] * PAGE + torch.arange(n) % PAGE
             for i, n in enumerate(lengths)]  # fmt: skip
    return queries, keys, values, table, slots


CASES = {
    "decode": ([1, 1, 1], [17, 1, 64]),
    "chunks": ([5, 33, 16], [21, 33, 70]),
    "mixed": ([1, 40, 2], [50, 40, 3]),
}


def parameters(node: ast.FunctionDef) -> list[str]:
    return [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]


def methods(path: Path, name: str) -> dict[str, ast.FunctionDef]:
    (found,) = (n for n in ast.parse(path.read_text()).body
                if isinstance(n, ast.ClassDef) and n.name == name)  # fmt: skip
    return {n.name: n for n in found.body if isinstance(n, ast.FunctionDef)}


def agree(ours: type, theirs: dict[str, ast.FunctionDef], extra: dict | None = None) -> None:
    """Each abstract method is here; each method that both have takes what theirs takes, in its
    order, and nothing more that a caller must give."""
    common = set(vars(ours)) & set(theirs)
    for name, node in theirs.items():
        marks = {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
        assert "abstractmethod" not in marks or name in common, name
    assert common
    for name in common:
        function = inspect.unwrap(getattr(vars(ours)[name], "__func__", vars(ours)[name]))
        if isinstance(function, property):
            continue
        own = list(inspect.signature(function).parameters.values())
        expected = parameters(theirs[name])
        named = [p.name for p in own if p.kind != p.VAR_KEYWORD]
        assert named[: len(expected)] == expected, name
        assert all(p.default is not p.empty for p in own[len(expected) :] if p.name in named), name
