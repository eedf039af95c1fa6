"""Bad input names the argument, what was expected and what came, before anything is written."""

import dataclasses
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from blockdraft import BlockDecoder, BlockLayout, Request, Rows, Sampling, ops
from blockdraft.models.config import ZayaConfig
from blockdraft.models.weights import shapes
from blockdraft.models.zaya import ZayaModel
from blockdraft.testing import poisoned, random_rows

LAYOUT = BlockLayout(2, 3, 2)


def rows(**changes):
    base = random_rows(LAYOUT, [5, 9], torch.Generator().manual_seed(0), dead=0, full_drafts=True)
    return dataclasses.replace(base, **changes)


def attention(**changes):
    total = 2 * LAYOUT.rows
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    arguments = dict(
        q=torch.randn(total, 4, 8),
        k=torch.randn(total, 2, 8),
        v=torch.randn(total, 2, 8),
        k_cache=torch.randn(4, 8, 2, 8),
        v_cache=torch.randn(4, 8, 2, 8),
        block_table=table,
        rows=rows(),
        out=poisoned(total, 4, 8, dtype=torch.float32),
    )
    arguments.update(changes)
    return arguments


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


ATTENTION = {
    "q: expected bfloat16 or float16 or float32, got float64": dict(
        q=torch.randn(18, 4, 8).double()
    ),
    "q: expected a tensor, got list": dict(q=[1.0]),
    r"q: expected shape \[T Hq Dh\], got \[18, 32\]": dict(q=torch.randn(18, 32)),
    r"k: expected shape \[T Hk Dh\] = \[18 3 8\], got \[18, 3, 16\]": dict(
        k=torch.randn(18, 3, 16)
    ),
    "k: expected float32, got bfloat16": dict(k=torch.randn(18, 2, 8).bfloat16()),
    "q: expected heads a multiple of k's 3, got 4": dict(
        k=torch.randn(18, 3, 8), v=torch.randn(18, 3, 8)
    ),
    "q: expected a contiguous last dimension": dict(q=torch.randn(18, 8, 4).transpose(1, 2)),
    "v: expected device cpu, got meta": dict(v=torch.empty(18, 2, 8, device="meta")),
    "rows: expected blockdraft.Rows, got NoneType": dict(rows=None),
    "rows.branch: expected -1 or 1 .. draft_len \\+ 1, got 4": dict(
        rows=rows(branch=torch.tensor([[1, 4], [1, 2]]).int())
    ),
    "rows.branch: expected -1 or 1 .. draft_len \\+ 1, got 0": dict(
        rows=rows(branch=torch.tensor([[1, 0], [1, 2]]).int())
    ),
    "rows.branch: expected -1 or 1 .. draft_len \\+ 1, got 3": dict(
        rows=rows(draft_len=i32(1, 2), branch=i32(1, 3, 1, 3).view(2, 2))
    ),
    "rows.draft_len: expected -1 .. verify rows - 1 for each request, got 3": dict(
        rows=rows(draft_len=i32(3, 0))
    ),
    "rows.prefix_lens: expected 0 .. max_prefix = 9, got 12": dict(
        rows=rows(prefix_lens=i32(5, 12))
    ),
    "rows.prefix_lens: expected at least one request, got an empty batch": dict(
        rows=rows(prefix_lens=i32())
    ),
    "rows.cu_rows: expected 0 .. T = 18": dict(rows=rows(cu_rows=i32(0, 9, 17))),
    r"rows.cu_rows: expected shape \[B\+1\]": dict(rows=rows(cu_rows=i32(0, 18))),
    "block_table: expected page numbers 0 .. 3, got 7": dict(
        block_table=torch.tensor([[0, 1], [7, 3]]).int()
    ),
    "block_table: expected at least 2 pages of 8 tokens, got 1": dict(
        block_table=i32(0, 1).view(2, 1)
    ),
    "block_table: expected int32, got int64": dict(
        block_table=torch.zeros(2, 2, dtype=torch.int64)
    ),
    "k_cache: expected pages of a power of two >= 8 tokens, got 12": dict(
        k_cache=torch.randn(4, 12, 2, 8), v_cache=torch.randn(4, 12, 2, 8)
    ),
    "k_cache, v_cache, block_table: expected all three or none, got 2": dict(k_cache=None),
    r"window: expected 0 \(none\) or more, got -1": dict(window=-1),
    "lse: expected shape": dict(lse=torch.zeros(18, 3)),
    "backend: expected one of": dict(backend="cuda"),
}


@pytest.mark.parametrize("message", ATTENTION)
def test_attention(message):
    arguments = attention(**ATTENTION[message])
    with pytest.raises((ValueError, TypeError), match="block_attention: " + message):
        ops.block_attention(**arguments)
    assert arguments["out"].isnan().all()


def accept(**changes):
    arguments = dict(
        target_logits=torch.randn(2, 3, 7),
        draft_tokens=torch.zeros(2, 2).int(),
        draft_len=i32(2, 1),
        branch=i32(1, 1).view(2, 1),
        mask_rows=3,
        seed=torch.zeros(2, dtype=torch.int64),
        position=i32(0, 0),
        target_sampling=Sampling(torch.ones(2)),
        draft_logits=torch.randn(2, 2, 7),
    )
    arguments.update(changes)
    return ops.accept_drafts(**arguments)


ACCEPT = {
    "draft_len: expected -1 .. K = 2, got 3": dict(draft_len=i32(3, 0)),
    "target_sampling.temperature: expected a finite number >= 0, got -1": dict(
        target_sampling=Sampling(torch.tensor([1.0, -1.0]))
    ),
    "target_sampling.temperature: expected a finite number >= 0, got nan": dict(
        target_sampling=Sampling(torch.tensor([1.0, torch.nan]))
    ),
    "target_sampling.top_p: expected more than 0, at most 1, got 0": dict(
        target_sampling=Sampling(torch.ones(2), None, torch.zeros(2))
    ),
    "target_sampling.min_p: expected 0 .. 1, got 2": dict(
        target_sampling=Sampling(torch.ones(2), None, None, 2 * torch.ones(2))
    ),
    r"allowed: expected shape \[B V W\] = \[2 3 1\], got \[2, 3, 7\]": dict(
        allowed=torch.zeros(2, 3, 7).int()
    ),
    "draft_allowed: expected int32, got bool": dict(draft_allowed=torch.ones(2, 2, 1).bool()),
    r"target_sampling.top_k: expected 0 \(off\) or more, got -2": dict(
        target_sampling=Sampling(torch.ones(2), i32(1, -2))
    ),
    "target_sampling: expected blockdraft.Sampling, got float": dict(target_sampling=0.5),
    "branch: expected -1 or 1 .. 3, got 5": dict(branch=i32(5, 1).view(2, 1)),
    "rule: expected 'token' or 'block' or 'greedy', got 'fast'": dict(rule="fast"),
    "drafter: expected 'sampled' or 'greedy', got 'dirac'": dict(drafter="dirac"),
    "draft_logits: expected a tensor, for this drafter or mix, got None": dict(draft_logits=None),
    r"draft_logits: expected shape \[B K vocab\] = \[2 2 7\], got \[2, 3, 7\]": dict(
        draft_logits=torch.randn(2, 3, 7)
    ),
    "mix: expected 0 .. 1, got 2": dict(mix=torch.tensor([0.0, 2.0])),
    "num_valid_vocab: expected 1 .. 7, got 8": dict(num_valid_vocab=8),
    "mask_token: expected -1 .. 6, got 7": dict(mask_token=7),
    "uniforms: expected 0 <= u < 1, got 1": dict(uniforms=torch.ones(2, 3, dtype=torch.float64)),
    "seed: expected int64, got int32": dict(seed=i32(0, 0)),
}


@pytest.mark.parametrize("message", ACCEPT)
def test_accept(message):
    with pytest.raises((ValueError, TypeError), match="accept_drafts: " + message):
        accept(**ACCEPT[message])


def cca(**changes):
    """A call of cca_qkv with Hq = 4, Hk = 2, Dh = 8, and the tensors that it may write."""
    total = 2 * LAYOUT.rows
    arguments = dict(
        qk=torch.randn(total, 48),
        v_now=torch.randn(total, 8),
        v_late=torch.randn(total, 8),
        conv0_weight=torch.randn(48, 1, 2),
        conv0_bias=torch.randn(48),
        conv1_weight=torch.randn(48, 8, 2),
        conv1_bias=torch.randn(48),
        temp=torch.randn(2),
        cos_sin=torch.randn(32, 4),
        rows=rows(),
        conv_state=torch.randn(2, 2, 48),
        late_state=torch.randn(2, 8),
        slots=i32(0, 1),
        k_cache=poisoned(4, 8, 2, 8, dtype=torch.float32),
        v_cache=poisoned(4, 8, 2, 8, dtype=torch.float32),
        block_table=i32(0, 1, 2, 3).view(2, 2),
        out=tuple(poisoned(total, h, 8, dtype=torch.float32) for h in (4, 2, 2)),
    )
    arguments.update(changes)
    return arguments


CCA = {
    r"v_late: expected shape \[T half\] = \[18 8\], got \[18, 6\]": dict(v_late=torch.randn(18, 6)),
    r"qk: expected C = \(Hq\+Hk\)\*8 with Hq a multiple of Hk = 4": dict(temp=torch.randn(4)),
    "cos_sin: expected a table of more than every position": dict(cos_sin=torch.randn(9, 4)),
    "cos_sin: expected an even width of at most Dh = 8, got 10": dict(cos_sin=torch.randn(32, 10)),
    "slots: expected -1 or 0 .. 1, got 2": dict(slots=i32(0, 2)),
    "conv_state, late_state, slots: expected all three or none, got 2": dict(late_state=None),
    r"conv_state: expected shape \[S depth C\] = \[2 2 48\], got \[2, 3, 48\]": dict(
        conv_state=torch.randn(2, 3, 48)
    ),
    "block_table: expected at least 2 pages of 8 tokens, got 1": dict(
        block_table=i32(0, 1).view(2, 1)
    ),
    "block_table: expected page numbers 0 .. 3, got 9": dict(
        block_table=i32(0, 1, 9, 3).view(2, 2)
    ),
    "k_cache: expected float32, got bfloat16": dict(k_cache=torch.randn(4, 8, 2, 8).bfloat16()),
    "out: expected 3 tensors": dict(out=torch.zeros(18, 4, 8)),
}


@pytest.mark.parametrize("message", CCA)
def test_cca(message):
    arguments = cca(**CCA[message])
    with pytest.raises((ValueError, TypeError), match="cca_qkv: " + message):
        ops.cca_qkv(**arguments)
    assert arguments["v_cache"].isnan().all()
    assert not isinstance(arguments["out"], tuple) or all(t.isnan().all() for t in arguments["out"])


def test_commit_writes_nothing_when_it_refuses():
    state = poisoned(1, 1, 2, 6, dtype=torch.float32), poisoned(1, 1, 1, dtype=torch.float32)
    prefix = i32(3)
    for accepted, slots, message in (
        (i32(2), i32(0), "accepted: expected -1 .. draft_len, got 2"),
        (i32(0), i32(1), "slots: expected -1 or 0 .. 0, got 1"),
        (torch.tensor([0]), i32(0), "accepted: expected int32, got int64"),
    ):
        with pytest.raises((ValueError, TypeError), match="commit: " + message):
            ops.commit(
                torch.zeros(1, 2, 6),
                torch.zeros(1, 2, 1),
                accepted,
                Rows.prefill(prefix, [2], 3),
                *state,
                slots,
            )
    assert prefix.item() == 3 and all(t.isnan().all() for t in state)


def test_router():
    w = [
        torch.randn(shape)
        for shape in ((3, 6), (3,), (3,), (3,), (3, 3), (3,), (3, 3), (3,), (5, 3), (5,))
    ]
    with pytest.raises(ValueError, match=r"zaya_router: balancing_bias: expected shape \[E\+1\]"):
        ops.zaya_router(torch.randn(2, 6), None, *w[:-1], torch.randn(4), 1e-5)
    with pytest.raises(
        ValueError, match="zaya_router: eda_scale: expected a tensor, since prev_state is one"
    ):
        ops.zaya_router(torch.randn(2, 6), torch.randn(2, 3), *w[:2], None, *w[3:], 1e-5)


def test_the_other_ops():
    with pytest.raises(ValueError, match="fused_moe: experts: expected -1 .. 1, got 2"):
        ops.fused_moe(
            torch.randn(2, 4),
            i32(0, 2).view(2, 1),
            torch.ones(2, 1),
            torch.randn(2, 6, 4),
            torch.randn(2, 4, 3),
        )
    with pytest.raises(ValueError, match="fused_moe: gate_up: expected shape"):
        ops.fused_moe(
            torch.randn(2, 4),
            i32(0, 1).view(2, 1),
            torch.ones(2, 1),
            torch.randn(2, 5, 4),
            torch.randn(2, 4, 3),
        )
    with pytest.raises(
        ValueError, match="fused_moe: skip: expected 'zero' or 'identity', got 'drop'"
    ):
        ops.fused_moe(
            torch.randn(2, 4),
            i32(0, 1).view(2, 1),
            torch.ones(2, 1),
            torch.randn(2, 6, 4),
            torch.randn(2, 4, 3),
            skip="drop",
        )
    with pytest.raises(ValueError, match="moe_dispatch: num_experts: expected at least 1, got 0"):
        ops.moe_dispatch(i32(0).view(1, 1), 0)
    with pytest.raises(ValueError, match="plan_branches: accept: expected probabilities, got 2"):
        ops.plan_branches(torch.full((1, 2), 2.0), torch.ones(2, 3), 1, i32(2))
    with pytest.raises(ValueError, match="commit: accepted: expected -1 .. draft_len, got 2"):
        state = torch.zeros(1, 1, 2, 6), torch.zeros(1, 1, 1)
        ops.commit(
            torch.zeros(1, 2, 6),
            torch.zeros(1, 2, 1),
            i32(2),
            Rows.prefill(i32(0), [2], 0),
            *state,
            i32(0),
        )
    with pytest.raises(ValueError, match="sample_drafts: draft_len: expected -1 .. K = 2, got 4"):
        ops.sample_drafts(
            torch.zeros(1, 2, 5),
            i32(4),
            seed=torch.zeros(1, dtype=torch.int64),
            position=i32(0),
            drafter_sampling=Sampling(torch.ones(1)),
        )


@pytest.mark.parametrize(
    "bad, name",
    [
        (dict(prompt=[]), "prompt"),
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(temperature=-1.0), "temperature"),
        (dict(prompt="ab"), "prompt"),
        (dict(prompt=[65.9]), "prompt"),
        (dict(prompt=[-1]), "prompt"),
        (dict(seed=2**63), "seed"),
        (dict(temperature=None), "temperature"),
        (dict(temperature=float("inf")), "temperature"),
        (dict(stop=5), "stop"),
        (dict(stop=(2**40,)), "stop"),
        (dict(max_new_tokens=2.5), "max_new_tokens"),
        (dict(top_k=2**31), "top_k"),
        (dict(top_p=0.0), "top_p"),
        (dict(top_k=-1), "top_k"),
        (dict(min_p=1.5), "min_p"),
        (dict(mix=1.5), "mix"),
        (dict(draft_temperature=-2.0), "draft_temperature"),
    ],
)
def test_requests(bad, name):
    with pytest.raises(ValueError, match=f"Request: {name}: expected"):
        Request(**{**dict(prompt=[1], max_new_tokens=4), **bad})


CONFIG = ZayaConfig(
    vocab_size=11,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    moe_intermediate_size=8,
    num_experts=2,
    router_hidden_size=4,
    max_position_embeddings=64,
)


def checkpoint(folder, **changes):
    tensors = {name: torch.randn(shape) for name, shape in shapes(CONFIG).items()}
    tensors.update(changes)
    save_file(
        {name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors"
    )
    raw = {
        **dataclasses.asdict(CONFIG),
        "model_type": "zaya",
        "layer_types": list(CONFIG.layer_types),
    }
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_checkpoints(tmp_path):
    ZayaModel.load(checkpoint(tmp_path))
    norm = "model.norm.weight"
    for changes, message in (
        ({norm: None}, rf"{norm}: expected a tensor of shape \(8,\), got none"),
        ({norm: torch.randn(9)}, rf"{norm}: expected shape \(8,\), got \(9,\)"),
        (
            {"model.layers.0.self_attn.rotary": torch.randn(1)},
            "expected only ZAYA tensors, got 'model.layers.0.self",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ZayaModel.load(checkpoint(tmp_path, **changes))
    whole = (checkpoint(tmp_path) / "model.safetensors").read_bytes()
    for cut in (len(whole) // 2, 20, 3):
        (tmp_path / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="expected a whole safetensors file"):
            ZayaModel.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="pytorch_model.bin is a pickle, which is never loaded"):
        ZayaModel.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="expected model_type 'zaya', got 'llama'"):
        ZayaModel.load(tmp_path)
    with pytest.raises(ValueError, match="folder: expected a checkpoint folder with config.json"):
        ZayaModel.load(tmp_path / "nowhere")


def test_sharded_checkpoint(tmp_path):
    tensors = {name: torch.randn(shape) for name, shape in shapes(CONFIG).items()}
    checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / part)
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(ZayaModel.load(tmp_path).weights.norm, tensors["model.norm.weight"])
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match="expected model-2.safetensors, got none"):
        ZayaModel.load(tmp_path)


@pytest.mark.parametrize(
    "changes, name",
    [
        (dict(num_attention_heads=3, num_key_value_heads=2), "num_attention_heads"),
        (dict(num_experts_per_tok=2), "num_experts_per_tok"),
        (dict(hidden_size=0), "hidden_size"),
        (dict(layer_types=["hybrid_sliding"] * 40), "sliding_window"),
        (dict(layer_types=["hybrid"]), "layer_types"),
        (dict(hidden_act="gelu"), "hidden_act"),
    ],
)
def test_config(changes, name):
    with pytest.raises(ValueError, match=f"ZayaConfig: {name}: expected"):
        ZayaConfig(**changes)


def test_decoder(tmp_path):
    model = ZayaModel.load(checkpoint(tmp_path))
    with pytest.raises(ValueError, match="model: expected a mask_token_id"):
        BlockDecoder(model, BlockLayout.tidar(4))
    plain = BlockDecoder(model, BlockLayout.autoregressive())
    with pytest.raises(ValueError, match="requests: expected at least one, got an empty batch"):
        plain.generate([])
    with pytest.raises(ValueError, match="prompt: expected ids in 0..10, got 11"):
        plain.generate([Request([3, 11], 4)])
    with pytest.raises(
        ValueError, match="of at most max_position_embeddings = 64 together, got 101"
    ):
        plain.generate([Request([3], 100)])
    model.config = dataclasses.replace(model.config, mask_token_id=10)
    with pytest.raises(
        ValueError, match=r"branches: expected 2 ascending branches in 1..4, got \[2, 1\]"
    ):
        BlockDecoder(model, BlockLayout.tidar(4, P=2), branches=[2, 1])
