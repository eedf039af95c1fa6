"""Nemotron-Labs-Diffusion on random weights against transformers' Ministral 3, which the published
model is but for its masks and names; masks are given to it row by row."""

import json

import pytest
import torch
from safetensors.torch import save_file

from blockdraft import BlockDecoder, BlockLayout, Request, Rows
from blockdraft.models.nemotron import NemotronModel, shapes
from blockdraft.models.nemotron_config import NemotronConfig
from blockdraft.models.quantize import cache_format

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of this file")
from transformers import Ministral3Config, Ministral3ForCausalLM  # noqa: E402

# Trained on 16 positions, so that YaRN and the factor of the queries both show in short texts
YARN = dict(
    rope_type="yarn",
    rope_theta=1e4,
    factor=4.0,
    original_max_position_embeddings=16,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=0.5,
    llama_4_scaling_beta=0.1,
)
SMALL = dict(
    vocab_size=67,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    rope_parameters=YARN,
    eos_token_id=None,
)
VARIANTS = {
    "plain": {},
    "published factor": dict(rope_parameters=YARN | dict(mscale_all_dim=1.0)),
    "unscaled": dict(
        rope_parameters=dict(rope_type="default", rope_theta=1e4, llama_4_scaling_beta=0)
        | dict(original_max_position_embeddings=16)
    ),
    "tied": dict(tie_word_embeddings=True),
    "window": dict(sliding_window=7),
}
MASK = 3


def oracle(folder, seed=0, **changes):
    """Ministral 3 with random weights, and our model of the same, from a published folder."""
    sizes = SMALL | changes
    torch.manual_seed(seed)
    settings = dict(pad_token_id=None, attn_implementation="eager")
    hf = Ministral3ForCausalLM(Ministral3Config(**sizes, **settings)).eval()
    for t in hf.parameters():
        noise = torch.randn(t.shape)
        t.data.copy_(1 + 0.3 * noise if t.dim() == 1 else 1.5 * t.shape[-1] ** -0.5 * noise)
    names = dict(hf.named_parameters())
    published = {
        ("diffusion_head.weight" if name == "lm_head.weight" else "encoder" + name[5:]): t.detach()
        for name, t in names.items()
    }
    described = dict(model_type="nemotron_labs_diffusion", mask_token_id=MASK, **sizes)
    (folder / "config.json").write_text(json.dumps(described | dict(dlm_paradigm="block_diff")))
    save_file({n: t.contiguous() for n, t in published.items()}, folder / "model.safetensors")
    return hf, NemotronModel.load(folder)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@torch.no_grad()
def run_chunks(model, tokens, chunk):
    length = tokens.shape[1] + 1
    cache = model.new_cache(len(tokens), length, page=8)
    for request in range(len(tokens)):
        cache.open(request, length)
    out = []
    for piece in tokens.split(chunk, 1):
        rows = Rows.prefill(cache.prefix_lens, [piece.shape[1]] * len(piece), tokens.shape[1])
        hidden = model.forward(piece.flatten(), rows, cache)
        out.append(model.logits(hidden).unflatten(0, piece.shape))
        model.commit(rows.draft_len, rows, cache)
    assert cache.prefix_lens.tolist() == [tokens.shape[1]] * len(tokens)
    return torch.cat(out, 1)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_causal_pass_equals_ministral(tmp_path, variant):
    hf, model = oracle(tmp_path, **VARIANTS[variant])
    tokens = torch.randint(67, (2, 45))
    expected = hf(tokens).logits
    for chunk in (45, 16, 1):
        assert relative(run_chunks(model, tokens, chunk), expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "layout, branch",
    [
        (BlockLayout.tidar(8, P=1), [1]),  # a lone block behind the anchor: the published draft
        (BlockLayout.tidar(4), [1, 2, 3, 4]),
        (BlockLayout(5, 7, 3), [1, 3, 6]),
        (BlockLayout(3, 4, 2, bidirectional=False), [2, 4]),
    ],
    ids=str,
)
def test_block_pass_equals_ministral_with_the_layout_s_mask(tmp_path, layout, branch):
    hf, model = oracle(tmp_path, seed=1)
    prefix = 21
    prompt = torch.randint(67, (prefix,))
    cache = model.new_cache(1, 64, page=8)
    cache.open(0, 64)
    model.prefill([prompt.tolist()], cache, chunk=8)

    def i32(*values):
        return torch.tensor(values, dtype=torch.int32)

    tokens = torch.full((layout.rows,), MASK)
    tokens[: layout.V] = torch.randint(67, (layout.V,))
    rows = layout.pack(cache.prefix_lens, i32(layout.K), i32(*branch)[None], prefix)
    ours = model.logits(model.forward(tokens, rows, cache))

    causal = torch.ones(prefix, prefix + layout.rows, dtype=torch.bool).tril()
    seen = torch.cat([causal, layout.dense_mask(prefix, branch)])
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    position = torch.cat([torch.arange(prefix), layout.table(prefix, branch).position])
    theirs = hf(
        torch.cat([prompt, tokens])[None],
        attention_mask=mask[None, None],
        position_ids=position[None],
    ).logits[0, prefix:]
    assert relative(ours, theirs) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("layout", [BlockLayout.tidar(8), BlockLayout.tidar(6, P=2)], ids=str)
def test_greedy_block_decode_is_generate(tmp_path, layout):
    hf, model = oracle(tmp_path, seed=2)
    prompts = torch.randint(67, (2, 19))
    settings = dict(max_new_tokens=40, do_sample=False, pad_token_id=0, suppress_tokens=[MASK])
    seen = torch.ones_like(prompts)
    expected = hf.generate(prompts, attention_mask=seen, **settings)[:, 19:]
    requests = [Request(prompt, 40, temperature=0.0) for prompt in prompts.tolist()]
    done = BlockDecoder(model, layout).generate(requests)
    assert [c.tokens for c in done] == expected.tolist()
    batch = BlockDecoder(model, layout).batch(2, 64)
    assert all(
        op in {c.op for c in batch.stage.forward._run._calls} for op in ("rope_qkv", "fused_moe")
    )


@torch.no_grad()
def test_a_cache_of_fp8_is_lossless_to_itself(tmp_path):
    _, model = oracle(tmp_path, seed=3)
    prompts = torch.randint(67, (2, 19)).tolist()
    requests = [Request(prompt, 30, temperature=0.0) for prompt in prompts]
    plain, block = BlockLayout.autoregressive(), BlockLayout.tidar(6, P=2)
    wide = BlockDecoder(model, plain).generate(requests)
    model.cache_format = cache_format(model, prompts[0])
    found = [BlockDecoder(model, layout).generate(requests) for layout in (plain, block)]
    assert [c.tokens for c in found[0]] == [c.tokens for c in found[1]]
    assert [c.tokens for c in found[0]] != [c.tokens for c in wide], "nothing was rounded"


def test_yarn_is_that_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for rope in (YARN, NemotronConfig().rope_parameters, YARN | dict(attention_factor=1.25)):
        rope = rope | dict(truncate=False) if rope is YARN else rope
        expected, factor = ROPE_INIT_FUNCTIONS["yarn"](Ministral3Config(rope_parameters=rope))
        ours, our_factor = NemotronConfig(rope_parameters=rope).frequencies()
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
        assert our_factor == pytest.approx(factor)


def test_shapes_are_those_of_the_3b_model():
    count = sum(torch.Size(shape).numel() for shape in shapes(NemotronConfig()).values())
    assert count == pytest.approx(3.83e9, rel=0.01)  # 7.66 GB of bf16


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(attention_bias=True), "attention_bias: expected False"),
        (dict(rope_parameters=dict(rope_type="llama3", rope_theta=1e4)), "rope_parameters: exp"),
        (dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4)), "rope_parameters: exp"),
        (dict(hidden_size=0), "hidden_size: expected an integer in 1.."),
        (dict(mask_token_id=70), "mask_token_id: expected None or an integer in 0..66"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=f"NemotronConfig: {message}"):
        NemotronConfig(**SMALL | changes)


def test_a_foreign_tensor(tmp_path):
    oracle(tmp_path)
    save_file({"lora_A.weight": torch.zeros(2)}, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="only Nemotron-Labs-Diffusion tensors, got 'lora_A"):
        NemotronModel.load(tmp_path)
