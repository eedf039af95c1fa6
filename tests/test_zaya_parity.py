"""The runner and its ops against transformers' ZayaForCausalLM, with every parameter and buffer
randomised."""

import pytest
import torch
from models import SMALL, VARIANTS, randomise

from blockdraft import Rows, ops
from blockdraft.models.config import ZayaConfig as OurConfig
from blockdraft.models.weights import assemble, shapes
from blockdraft.models.zaya import ZayaModel

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of this file")
from transformers import ZayaConfig, ZayaForCausalLM  # noqa: E402


def oracle(tmp_path, seed=0, **changes):
    torch.manual_seed(seed)
    hf = ZayaForCausalLM(ZayaConfig(**{**SMALL, **changes})).eval()
    randomise(hf, seed)
    hf.save_pretrained(tmp_path)
    return hf, ZayaModel.load(tmp_path)


@torch.no_grad()
def run_chunks(model, tokens, chunk):
    length = tokens.shape[1] + 1
    cache = model.new_cache(len(tokens), length, page=8)
    for request in range(len(tokens)):
        cache.open(request, length)
    out = []
    for piece in tokens.split(chunk, 1):
        rows = Rows.prefill(cache.prefix_lens, [piece.shape[1]] * len(piece), tokens.shape[1])
        out.append(
            model.logits(model.forward(piece.flatten(), rows, cache)).unflatten(0, piece.shape)
        )
        model.commit(rows.draft_len, rows, cache)
    return torch.cat(out, 1)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_runner_equals_transformers(tmp_path, variant):
    hf, model = oracle(tmp_path, **VARIANTS[variant])
    tokens = torch.randint(67, (2, 37))
    with torch.no_grad():
        expected = hf(tokens).logits
    for chunk in (37, 16, 3, 1):
        assert relative(run_chunks(model, tokens, chunk), expected) < 1e-5


@torch.no_grad()
def test_cached_transformers_agrees_with_itself_and_us(tmp_path):
    hf, model = oracle(tmp_path, 3)
    tokens = torch.randint(67, (1, 20))
    past, pieces = None, []
    for piece in tokens.split(3, 1):
        step = hf(piece, past_key_values=past, use_cache=True)
        past = step.past_key_values
        pieces.append(step.logits)
    assert relative(run_chunks(model, tokens, 3), torch.cat(pieces, 1)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_moves_the_oracle(tmp_path, variant):
    """A parity test is blind to a tensor that the oracle does not depend on; each must matter, to
    it and to the runner."""
    hf, model = oracle(tmp_path, 0, **VARIANTS[variant])
    tokens = torch.randint(67, (1, 40))
    base = hf(tokens).logits
    state = hf.state_dict()
    assert set(shapes(model.config)) == set(state) - (
        {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    )
    for name in shapes(model.config):
        before = state[name].clone()
        state[name].add_(torch.randn(before.shape, generator=torch.Generator().manual_seed(5)))
        assert relative(hf(tokens).logits, base) > 1e-6, name
        state[name].copy_(before)


@torch.no_grad()
def test_skip_is_really_chosen(tmp_path):
    """Released weights never choose the skip expert; here each layer sends some rows to it and some
    elsewhere."""
    hf, model = oracle(tmp_path, 3)
    seen = []
    for layer in hf.model.layers:
        layer.mlp.gate.register_forward_hook(
            lambda module, args, out: seen.append((out[1] == 0).float().mean().item())
        )
    hf(torch.randint(67, (2, 40)))
    assert all(0.02 < share < 0.98 for share in seen), seen


@torch.no_grad()
@pytest.mark.parametrize(
    "heads, kernels, bias",
    [
        ((8, 2, 16), (2, 2), False),
        ((8, 1, 16), (3, 2), True),
        ((8, 4, 16), (2, 4), True),
        ((8, 2, 128), (2, 2), True),
        ((16, 2, 64), (3, 2), False),
        ((4, 1, 128), (4, 1), True),
    ],
    ids=str,
)
def test_cca_equals_transformers(tmp_path, heads, kernels, bias):
    hf, model = oracle(
        tmp_path,
        4,
        cca_time0=kernels[0],
        cca_time1=kernels[1],
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=heads[2],
        attention_bias=bias,
    )
    from transformers.models.zaya.modeling_zaya import apply_rotary_pos_emb

    attention, layer = hf.model.layers[1].self_attn, model.weights.layers[1]
    hidden = torch.randn(1, 19, 48)
    q, k, v = attention.qkv_proj(hidden, None)
    q, k = attention.qk_norm(q, k)
    cos, sin = hf.model.rotary_emb(hidden, torch.arange(19)[None], "hybrid")
    q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    rows = Rows.prefill(torch.zeros(1, dtype=torch.int32), [19], 0)
    projection = torch.nn.functional.linear(hidden[0], layer.projection, layer.projection_bias)
    qk, now, late = model._split(projection)
    start = model._split(layer.projection_bias)[2] if bias else None
    got = ops.cca_qkv(
        qk,
        now,
        late,
        layer.conv0_weight,
        layer.conv0_bias,
        layer.conv1_weight,
        layer.conv1_bias,
        layer.temp,
        model._cos_sin(1, rows),
        rows,
        late_start=start,
    )
    for ours, theirs in zip(got, (q[0].transpose(0, 1), k[0].transpose(0, 1), v[0])):
        assert relative(ours, theirs) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "experts, top_k", [(3, 1), (1, 1), (8, 2), (16, 1), (24, 8), (128, 1), (128, 8)]
)
def test_router_and_experts_equal_transformers(tmp_path, experts, top_k):
    """transformers' config refuses top_k > 1, its modules do not."""
    changes = dict(num_experts=experts, router_hidden_size=32)
    torch.manual_seed(5)
    hf = ZayaForCausalLM(ZayaConfig(**{**SMALL, **changes})).eval()
    randomise(hf, 5, skip_bias=0.5 if experts == 3 else 0.15)
    moe, gate = hf.model.layers[1].mlp, hf.model.layers[1].mlp.gate
    gate.top_k = top_k
    gate.router_mlp.out_proj.weight.mul_(0.2 if top_k > 2 else 1)  # the last has weight, too
    hidden, previous = torch.randn(1, 70, 48), torch.randn(1, 70, 32)
    _, weights, chosen, state = gate(hidden, router_states=previous)
    expected = moe.experts(hidden[0], chosen, weights)
    mlp = gate.router_mlp
    ours = ops.zaya_router(
        hidden[0],
        previous[0],
        gate.down_proj.weight,
        gate.down_proj.bias,
        gate.router_states_scale,
        mlp.norm.weight,
        mlp.fc1.weight,
        mlp.fc1.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
        mlp.out_proj.weight,
        gate.balancing_biases,
        hf.config.rms_norm_eps,
        top_k=top_k,
        backend="cpp",
    )
    skipped = ours[1] < 0
    assert relative(ours[0], weights) < 1e-5 and relative(ours[3], state[0]) < 1e-5
    assert skipped.any() and torch.equal(skipped, weights == 0)
    assert torch.equal(ours[1][~skipped].long(), chosen[~skipped])
    assert torch.equal(ours[2] > 0, skipped.any(1))
    stacked = [w.detach() for w in (moe.experts.gate_up_proj, moe.experts.down_proj)]
    y = ops.fused_moe(hidden[0], ours[1], ours[0], *stacked, backend="cpp")
    assert relative(y, expected) < 1e-5
    kept = ops.fused_moe(hidden[0], *ours[1::-1], *stacked, ours[2], skip="identity", backend="cpp")
    assert relative(kept, expected + hidden[0] * ours[2][:, None]) < 1e-5


RELEASED = {
    "ZAYA1-8B": {},
    "ZAYA1-74B-preview": dict(
        hidden_size=4096,
        num_hidden_layers=60,
        num_attention_heads=16,
        num_experts=24,
        moe_intermediate_size=4096,
        layer_types=["hybrid", "hybrid_sliding"] * 30,
        sliding_window=4097,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_tensor_names_and_shapes_of_the_released_models(name):
    with torch.device("meta"):
        hf = ZayaForCausalLM(ZayaConfig(**RELEASED[name]))
    ours = shapes(OurConfig(**RELEASED[name]))
    theirs = {key: tuple(t.shape) for key, t in hf.state_dict().items() if key != "lm_head.weight"}
    assert ours == theirs
    assemble(OurConfig(**RELEASED[name]), {key: t for key, t in hf.state_dict().items()})
