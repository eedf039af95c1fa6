"""blockdraft within SGLang: its metadata, mapped to our ops, against dense attention and experts.
`--sglang PATH`, an unpacked wheel, compares signatures with its own, and CCA with its torch code.
The engine itself ran nowhere."""

import ast
import typing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import engines
import pytest
import torch
import torch.nn.functional as F
from engines import CASES, DH, HK, HQ, PAGE, agree, batch, dense, methods, module, parameters, randn

from blockdraft import ops
from blockdraft.testing import assert_close

LAYER = dict(
    tp_q_head_num=HQ, tp_k_head_num=HK, qk_head_dim=DH, v_head_dim=DH, scaling=DH**-0.5,
    layer_id=0, logit_cap=0.0, is_cross_attention=False, sliding_window_size=-1,
    attn_type=SimpleNamespace(value="decoder"),
)  # fmt: skip


def sglang_batch(chunks, lengths, mode):
    return SimpleNamespace(
        forward_mode=mode,
        seq_lens=torch.tensor(lengths),
        seq_lens_cpu=torch.tensor(lengths),
        extend_seq_lens=torch.tensor(chunks),
        extend_seq_lens_cpu=chunks,
        req_pool_indices=torch.arange(len(chunks)).flip(0) + 1,
        spec_info=None,
    )


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("case", CASES)
def test_attention(monkeypatch, case, window):
    engines.sglang(monkeypatch)
    chunks, lengths = CASES[case]
    queries, keys, values, _, slots = batch(chunks, lengths)
    mode = engines.Mode.DECODE if case == "decode" else engines.Mode.EXTEND
    forward = sglang_batch(chunks, lengths, mode)
    requests = torch.zeros(5, 80, dtype=torch.int32)
    pool = engines.Pool(torch.full((40 * PAGE + 3, HK, DH), torch.nan), None)
    pool.values = pool.keys.clone()
    for i, (k, v, slot, n) in enumerate(zip(keys, values, slots, chunks)):
        requests[forward.req_pool_indices[i], : len(slot)] = slot.int()
        old = slot[: len(slot) - n]
        pool.keys[old], pool.values[old] = k[: len(old)], v[: len(old)]
    forward.out_cache_loc = torch.cat([s[-n:] for s, n in zip(slots, chunks)])
    backend = module(monkeypatch, "sglang.attention").Backend(
        SimpleNamespace(
            page_size=PAGE, req_to_token_pool=SimpleNamespace(req_to_token=requests),
            token_to_kv_pool=pool,
        )
    )  # fmt: skip
    backend.init_forward_metadata(forward)
    q, k, v = (torch.cat([t[-n:] for t, n in zip(ts, chunks)]).flatten(1)
               for ts in (queries, keys, values))  # fmt: skip
    layer = SimpleNamespace(**LAYER | dict(sliding_window_size=window - 1))
    call = backend.forward_decode if case == "decode" else backend.forward_extend
    got = call(q, k, v, layer, forward)
    expected = torch.cat([dense(*t, window) for t in zip(queries, keys, values)])
    assert_close(got, expected.flatten(1))
    for k, v, slot in zip(keys, values, slots):
        assert torch.equal(pool.keys[slot], k) and torch.equal(pool.values[slot], v)
    with pytest.raises(ValueError, match="logit_cap"):
        call(q, k, v, SimpleNamespace(**LAYER | dict(logit_cap=30.0)), forward)


def test_refuses(monkeypatch):
    engines.sglang(monkeypatch)
    attention = module(monkeypatch, "sglang.attention")
    with pytest.raises(ValueError, match="--page-size"):
        attention.Backend(SimpleNamespace(page_size=1))
    with pytest.raises(ValueError, match="spec_info"):
        attention.batch_rows(sglang_batch([2], [9], engines.Mode.TARGET_VERIFY))


def moe_call(**changes):
    config = dict(
        activation="silu", is_gated=True, apply_router_weight_on_input=False, no_combine=False,
        gemm1_alpha=None, gemm1_beta=None, gemm1_clamp_limit=None, swiglu_limit=None,
        routed_scaling_factor=None,
    )  # fmt: skip
    weights = dict(
        w13_weight=randn(4, 48, 32) / 6, w2_weight=randn(4, 32, 24) / 5, b13=None, b2=None,
        w13_scale=None, w2_scale=None, fuse_swiglu_interleaved=False,
    )  # fmt: skip
    ids = torch.tensor([[0, 3], [-1, 2], [1, 1], [4, 0], [2, 3]])
    top = SimpleNamespace(topk_ids=ids, topk_weights=torch.rand(5, 2))
    top.topk_weights[4, 1] = 0
    given = SimpleNamespace(hidden_states=randn(5, 32, seed=3), topk_output=top)
    return given, SimpleNamespace(**weights), SimpleNamespace(**config | changes)


def test_experts(monkeypatch):
    found = engines.sglang(monkeypatch)
    module(monkeypatch, "sglang").register()
    given, weights, config = moe_call(routed_scaling_factor=1.5)
    runner = found.moe["blockdraft"](config)
    got = runner.run_from_dispatch(given, weights, config).hidden_states
    expected = torch.zeros(5, 32)
    for i in range(5):
        for e, w in zip(given.topk_output.topk_ids[i].tolist(), given.topk_output.topk_weights[i]):
            if 0 <= e < 4:
                gate, up = (weights.w13_weight[e] @ given.hidden_states[i]).chunk(2)
                expected[i] += 1.5 * w * (weights.w2_weight[e] @ (F.silu(gate) * up))
    assert_close(got, expected)
    with pytest.raises(ValueError, match="activation"):
        runner.run_from_dispatch(*moe_call(activation="gelu"))


def test_register(monkeypatch):
    found = engines.sglang(monkeypatch)
    module(monkeypatch, "sglang").register()
    assert found.backends[-1] == found.runners[-1] == "blockdraft"
    assert set(found.attention) == set(found.moe) == {"blockdraft"}
    hook, kind = found.hooks["sglang.srt.models.zaya.CCA.forward"]
    assert "sglang.srt.layers.logits_processor.LogitsProcessor.forward" in found.hooks
    assert kind.name == "AROUND"
    found.current = SimpleNamespace(full_attn_backend=object())  # another attention was chosen
    called = []
    hook(lambda *args: called.append(args), SimpleNamespace(tp_size=1), torch.ones(1, 2), "batch")
    assert len(called) == 1


class Cca(torch.nn.Module):
    """The parts of SGLang's CCA that its forward and ours use."""

    clamp_temp, tp_size, layer_id, total_padding = True, 1, 0, 2
    num_q_heads, num_k_heads, num_k_heads_full, head_dim = 4, 2, 2, 16
    gqa_groups, sqrt_head_dim, latent_q_dim = 2, 4.0, 64

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        for name, size in (("q", 64), ("k", 32)):
            setattr(self, f"_{name}", torch.nn.Linear(48, size))
        self._1, self._2 = torch.nn.Linear(48, 16), torch.nn.Linear(48, 16)
        self.conv_qk = torch.nn.Sequential(
            torch.nn.Conv1d(96, 96, 2, groups=96), torch.nn.Conv1d(96, 96, 2, groups=6)
        )
        self.temp = torch.nn.Parameter(torch.rand(2))
        self.linear_q, self.linear_k = (lambda x: (self._q(x), None)), lambda x: (self._k(x), None)
        self.val_proj1 = lambda x: (self._1(x), None)
        self.val_proj2 = _Tuple(self._2)

    def _slice_v_per_rank(self, value):
        return value


class _Tuple:
    def __init__(self, linear):
        self.linear, self.bias = linear, linear.bias

    def __call__(self, x):
        return self.linear(x), None


@torch.no_grad()
def test_cca_goes_on_from_its_state(monkeypatch):
    """Chunks and steps, in mixed company, give what one chunk gives, and that is the reference."""
    found, cca = engines.sglang(monkeypatch), Cca()
    attention, hook = module(monkeypatch, "sglang.attention"), module(monkeypatch, "sglang.cca")
    x = [randn(12, 48, seed=i) for i in range(2)]

    def run(plan, pools):
        outputs, lengths = [[], []], [0, 0]
        for step, chunks in enumerate(plan):
            first, lengths = lengths, [a + b for a, b in zip(lengths, chunks)]
            mode = engines.Mode.DECODE if step > 1 else engines.Mode.EXTEND
            state = SimpleNamespace(
                layer_cache=SimpleNamespace(conv=pools), cache_indices=torch.tensor([3, 1])
            )
            found.current = object.__new__(attention.Backend)
            found.current.conv_state_metadata = lambda *args, state=state: state
            packed = torch.cat([t[a:b] for t, a, b in zip(x, first, lengths)])
            results = hook.around_forward(None, cca, packed, sglang_batch(chunks, lengths, mode))
            for out, part in zip(outputs, zip(*(t.split(chunks) for t in results))):
                out.append(part)
        return [[torch.cat(parts) for parts in zip(*out)] for out in outputs]

    pools = [[randn(5, 96, 2, seed=8), randn(5, 48, 1, seed=9)] for _ in range(2)]
    whole = run([[12, 12]], pools[0])
    parts = run([[9, 1], [1, 9], [1, 1], [1, 1]], pools[1])
    for one, other in zip(whole, parts):
        for a, b in zip(one, other):
            assert_close(a, b)
    for a, b in zip(*pools):
        assert_close(a, b)
    monkeypatch.setattr(ops, "cca_qkv", partial(ops.cca_qkv, backend="reference"))
    for one, other in zip(whole, run([[12, 12]], pools[0])):
        for a, b in zip(one, other):
            assert_close(a, b)


@pytest.fixture
def sglang_source(request) -> Path:
    path = request.config.getoption("--sglang")
    if path is None:
        pytest.skip("needs SGLang's unpacked wheel: pytest --sglang PATH")
    return path / "sglang/srt"


@torch.no_grad()
def test_cca_against_its_own(monkeypatch, sglang_source):
    """Its torch code of the convolutions, cut out of the wheel: fresh prompts, chunks that go on,
    decode steps."""
    engines.sglang(monkeypatch)
    tree = ast.parse((sglang_source / "models/zaya.py").read_text())
    theirs = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own = methods(sglang_source / "models/zaya.py", "CCA")
    names = ("forward", "_add_grouped_qk_means", "_normalize_qk")
    code = ast.Module([theirs["cca_extend"], theirs["cca_decode"],
                       *(own[name] for name in names)], [])  # fmt: skip
    space = dict(torch=torch, nn=torch.nn, F=F, **{n: getattr(typing, n) for n in typing.__all__})
    space["ForwardBatch"] = object
    exec(compile(ast.fix_missing_locations(code), "zaya.py", "exec"), space)
    for name in names[1:]:
        monkeypatch.setattr(Cca, name, space[name], raising=False)
    found, cca = engines.sglang(monkeypatch), Cca()
    pools = [randn(6, 96, 2, seed=5), randn(6, 48, 1, seed=6)]
    copies = [t.clone() for t in pools]
    attention = module(monkeypatch, "sglang.attention")
    lengths = [0, 0, 0]
    for step, chunks in enumerate([[7, 1, 3], [2, 5, 1], [1, 1, 1], [1, 1, 1]]):
        before, lengths = lengths, [a + b for a, b in zip(lengths, chunks)]
        mode = engines.Mode.DECODE if step > 1 else engines.Mode.EXTEND
        forward = sglang_batch(chunks, lengths, mode)
        mode_like = SimpleNamespace(is_decode_or_idle=mode.is_decode)
        state = dict(cache_indices=torch.tensor([4, 0, 2]), slot_ids_cpu=[4, 0, 2],
                     has_prefix_cpu=[n > 0 for n in before])  # fmt: skip
        x = randn(sum(chunks), 48, seed=20 + step)
        given = SimpleNamespace(layer_cache=SimpleNamespace(conv=copies), **state)
        space["get_attn_backend"] = lambda g=given: SimpleNamespace(
            conv_state_metadata=lambda *a: g
        )
        their_batch = SimpleNamespace(forward_mode=mode_like, extend_seq_lens_cpu=chunks)
        expected = space["forward"](cca, x, their_batch)
        own = SimpleNamespace(layer_cache=SimpleNamespace(conv=pools), **state)
        backend = object.__new__(attention.Backend)
        backend.conv_state_metadata = lambda *a, own=own: own
        found.current = backend
        got = module(monkeypatch, "sglang.cca").around_forward(None, cca, x, forward)
        for a, b, name in zip(got, expected, "qkv"):
            assert_close(a, b.float(), name=name)
        for a, b in zip(pools, copies):
            assert_close(a, b)


def test_signatures(monkeypatch, sglang_source):
    engines.sglang(monkeypatch)
    base = sglang_source / "layers/attention/base_attn_backend.py"
    agree(module(monkeypatch, "sglang.attention").Backend, methods(base, "AttentionBackend"))
    moe = sglang_source / "layers/moe/moe_runner"
    agree(
        module(monkeypatch, "sglang.experts").Runner,
        methods(moe / "base.py", "DispatchMoeRunnerCore"),
    )
    for path, name, expected in (
        (moe / "runner.py", "register_moe_runner_core", ["backend_name", "factory"]),
        (sglang_source / "layers/attention/attention_registry.py", "register_attention_backend",
         ["name"]),
    ):  # fmt: skip
        functions = {n.name: n for n in ast.walk(ast.parse(path.read_text()))
                     if isinstance(n, ast.FunctionDef)}  # fmt: skip
        assert parameters(functions[name]) == expected
    hooks = methods(sglang_source / "plugins/hook_registry.py", "HookRegistry")
    assert parameters(hooks["register"])[:4] == ["cls", "target", "hook", "hook_type"]
    forward = methods(sglang_source / "models/zaya.py", "CCA")["forward"]
    assert parameters(forward) == ["self", "hidden_states", "forward_batch"]
    lists = (sglang_source / "arg_groups/choices.py").read_text()
    assert "ATTENTION_BACKEND_CHOICES = [" in lists and "MOE_RUNNER_BACKEND_CHOICES = [" in lists
