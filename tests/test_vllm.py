"""blockdraft within vLLM: its metadata, mapped to our ops, against dense attention. `--vllm PATH`,
an unpacked wheel, compares signatures with its own. The engine itself ran nowhere."""

import ast
import importlib
from types import SimpleNamespace

import engines
import pytest
import torch
import torch.nn.functional as F
from engines import CASES, DH, HK, HQ, PAGE, agree, batch, dense, methods, module, parameters, randn

from blockdraft import BlockLayout, ops
from blockdraft.testing import assert_close


def common(chunks, lengths, table, slots, new, padding=0):
    starts = torch.tensor([0, *chunks]).cumsum(0).int()
    mapping = torch.cat([s[-n:] if n else s[:0] for s, n in zip(slots, chunks)])
    return SimpleNamespace(
        causal=True,
        num_reqs=len(chunks),
        num_actual_tokens=new,
        query_start_loc=F.pad(starts, (0, padding), value=new),
        seq_lens=F.pad(torch.tensor(lengths).int(), (0, padding)),
        max_query_len=max(chunks),
        max_seq_len=max(lengths),
        block_table_tensor=F.pad(table.int(), (0, 0, 0, padding)),
        slot_mapping=F.pad(mapping, (0, padding), value=-1),
    )


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("case", CASES)
def test_attention(monkeypatch, case, window):
    """Padding included; keys and values of the new tokens are in the cache afterwards."""
    engines.vllm(monkeypatch)
    attention = module(monkeypatch, "vllm.attention")
    chunks, lengths = CASES[case]
    queries, keys, values, table, slots = batch(chunks, lengths)
    cache = torch.full((40, HK, PAGE, 2 * DH), torch.nan)
    for k, v, slot, n in zip(keys, values, slots, chunks):
        old = slot[: len(slot) - n]
        cache[old // PAGE, :, old % PAGE] = torch.cat([k, v], 2)[: len(old)]
    new = sum(chunks)
    builder = attention.Builder(None, ["layer"], None, torch.device("cpu"))
    metadata = builder.build(0, common(chunks, lengths, table, slots, new, padding=2))
    impl = attention.Impl(HQ, DH, DH**-0.5, HK, sliding_window=window or None)
    packed = [torch.cat([t[-n:] for t, n in zip(ts, chunks)]) for ts in (queries, keys, values)]
    packed = [F.pad(t, (0, 0, 0, 0, 0, 2)) for t in packed]
    output = torch.full((new + 2, HQ * DH), torch.nan)
    assert impl.forward(None, *packed, cache, metadata, output) is output
    expected = torch.cat([dense(*t, window) for t in zip(queries, keys, values)])
    assert_close(output[:new].view(new, HQ, DH), expected)
    for k, v, slot in zip(keys, values, slots):
        assert torch.equal(cache[slot // PAGE, :, slot % PAGE], torch.cat([k, v], 2))
    assert impl.forward(None, *packed, cache, None, output).eq(0).all()


def test_draft_blocks(monkeypatch):
    """A ModelState's draft_len and branch: attention is that of the reference, and only verify rows
    are stored."""
    engines.vllm(monkeypatch)
    attention = module(monkeypatch, "vllm.attention")
    layout = BlockLayout(3, 4, 2)
    n = layout.rows
    verify = n - 2 * 4
    prefixes = [30, 0]
    table = torch.randperm(10, generator=torch.Generator().manual_seed(1)).view(2, 5).int()
    cache = randn(10, HK, PAGE, 2 * DH)
    rows = layout.pack(
        torch.tensor(prefixes).int(), torch.tensor([3, 1]).int(),
        torch.tensor([[2, 4], [1, -1]]).int(), 30,
    )  # fmt: skip
    slots = torch.full((2, n), -1)
    for i, prefix in enumerate(prefixes):
        place = prefix + torch.arange(verify)
        slots[i, :verify] = table[i, place // PAGE].long() * PAGE + place % PAGE
    metadata = attention.Builder(None, [], None, torch.device("cpu")).build(
        0,
        SimpleNamespace(
            causal=True, num_reqs=2, num_actual_tokens=2 * n, query_start_loc=rows.cu_rows,
            seq_lens=torch.tensor(prefixes) + verify, max_query_len=n, max_seq_len=30 + verify,
            block_table_tensor=table, slot_mapping=slots.flatten(),
        ),
        draft_len=rows.draft_len, branch=rows.branch, mask_rows=rows.mask_rows,
    )  # fmt: skip
    q, k, v = randn(2 * n, HQ, DH, seed=1), randn(2 * n, HK, DH), randn(2 * n, HK, DH, seed=2)
    k_cache, v_cache = cache.clone().transpose(1, 2).split(DH, -1)
    given = q, k, v, k_cache, v_cache, table, rows
    expected = ops.block_attention(*given, backend="reference")
    output = torch.full((2 * n, HQ, DH), torch.nan)
    before = cache.clone()
    attention.Impl(HQ, DH, DH**-0.5, HK).forward(None, q, k, v, cache, metadata, output)
    assert_close(output, expected)
    written = (cache != before).any(3).any(1).sum()
    assert written == 2 * verify


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(alibi_slopes=[1.0]), "alibi_slopes"),
        (dict(logits_soft_cap=30.0), "logits_soft_cap"),
        (dict(attn_type="encoder"), "attn_type"),
        (dict(kv_cache_dtype="fp8"), "kv_cache_dtype"),
        (dict(kv_sharing_target_layer_name="x"), "kv_sharing"),
    ],
    ids=str,
)
def test_refuses(monkeypatch, options, message):
    engines.vllm(monkeypatch)
    with pytest.raises(ValueError, match=message):
        module(monkeypatch, "vllm.attention").Impl(HQ, DH, 1.0, HK, **options)


def test_register(monkeypatch):
    registered = engines.vllm(monkeypatch)
    module(monkeypatch, "vllm").register()
    ((kind, path),) = registered.items()
    name, _, attribute = path.rpartition(".")
    backend = getattr(importlib.import_module(name), attribute)
    assert kind.name == backend.get_name() == "CUSTOM"


def test_signatures(monkeypatch, request):
    path = request.config.getoption("--vllm")
    if path is None:
        pytest.skip("needs vLLM's unpacked wheel: pytest --vllm PATH")
    engines.vllm(monkeypatch)
    attention = module(monkeypatch, "vllm.attention")
    base = path / "vllm/v1/attention/backend.py"
    agree(attention.Backend, methods(base, "AttentionBackend"))
    agree(attention.Impl, methods(base, "AttentionImpl"))
    agree(attention.Builder, methods(base, "AttentionMetadataBuilder"))
    text = (path / "vllm/v1/attention/backends/registry.py").read_text()
    functions = {n.name: n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)}
    assert parameters(functions["register_backend"])[:2] == ["backend", "class_path"]
    assert "CUSTOM" in text
    classes = {n.name: n for n in ast.parse(base.read_text()).body if isinstance(n, ast.ClassDef)}
    fields = classes["CommonAttentionMetadata"].body
    known = {n.target.id for n in fields if isinstance(n, ast.AnnAssign)}
    assert set(vars(common([1], [1], torch.ones(1, 1), [torch.ones(1)], 1))) <= known
