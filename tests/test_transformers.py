"""blockdraft within transformers, against transformers' own `generate` and eager modules."""

import copy
import itertools
import statistics
import time

import pytest
import torch
from models import SMALL, VARIANTS, randomise

from blockdraft import BlockLayout
from blockdraft.data import BYTE_MASK, BYTE_VOCAB, TINY
from blockdraft.integrations.transformers import blockdraft_generate, register, shared_model
from blockdraft.integrations.transformers.attention import attention
from blockdraft.testing import assert_close

transformers = pytest.importorskip("transformers", reason="the stack that this is about")
from transformers import ZayaConfig, ZayaForCausalLM  # noqa: E402

MASK = 6
NEVER = dict(suppress_tokens=[MASK], pad_token_id=MASK, eos_token_id=None)
LAYOUTS = [BlockLayout(3, 4, 2), BlockLayout.tidar(8), BlockLayout.autoregressive()]


def random_model(seed=0, **changes):
    """Its vocabulary is small, so that some drafts are accepted; the last id is the mask. With an
    embedding for a head, it would repeat itself."""
    base = dict(vocab_size=MASK + 1, mask_token_id=MASK, eos_token_id=None)
    config = ZayaConfig(**SMALL | base | dict(tie_word_embeddings=False) | changes)
    model = ZayaForCausalLM(config).eval()
    randomise(model, seed)
    return model


def ours(model, ids, layout=LAYOUTS[0], **options):
    return model.generate(ids, custom_generate=blockdraft_generate, layout=layout, **options)


@pytest.fixture(scope="module")
def tiny():
    return ZayaForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("variant", [*VARIANTS, "tied"])
def test_greedy_equals_generate(variant, layout):
    changes = VARIANTS.get(variant, dict(tie_word_embeddings=True))
    for seed in range(2):
        model = random_model(seed, **changes)
        ids = torch.randint(MASK, (3, 11), generator=torch.Generator().manual_seed(seed))
        options = dict(max_new_tokens=40, do_sample=False, **NEVER)
        expected = model.generate(ids, **options)
        assert torch.equal(ours(model, ids, layout, **options), expected)
        assert torch.equal(model.generate(ids, **options), expected)  # its weights were moved


def test_greedy_of_the_tiny_model_equals_generate(tiny):
    prompts = [b"def main():\n    ", b"class Queue:\n   ", b"import os\nimport"]
    ids = torch.tensor([list(prompt) for prompt in prompts])
    banned = list(range(BYTE_MASK, BYTE_VOCAB))
    options = dict(max_new_tokens=120, do_sample=False, suppress_tokens=banned, pad_token_id=256)
    expected = tiny.generate(ids, **options)
    assert torch.equal(ours(tiny, ids, BlockLayout.tidar(16, P=3), **options), expected)


def test_stops_padding_and_criteria(tiny):
    """Prompts of unequal length, padded on the left, an end token within, and a criterion that
    looks at the text."""
    texts = [b"def main(", b"import os\nimport sys\n\n\ndef f(x):\n"]
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    options = dict(attention_mask=mask, do_sample=False, pad_token_id=256, max_new_tokens=90)
    options["suppress_tokens"] = list(range(BYTE_MASK, BYTE_VOCAB))

    def twice_a_space(ids, scores):
        return (ids[:, width:] == 32).sum(1) >= 2

    for more in ({}, dict(eos_token_id=[ord("("), ord(":")]), dict(max_length=width + 7)):
        if "max_length" in more:
            del options["max_new_tokens"]
        expected = tiny.generate(ids, **options, **more)
        assert torch.equal(ours(tiny, ids, **options, **more), expected)
    options |= dict(max_new_tokens=90)
    expected = tiny.generate(ids, **options, stopping_criteria=[twice_a_space])
    assert expected.shape[1] < width + 90
    got = ours(tiny, ids, **options, stopping_criteria=[twice_a_space])
    assert torch.equal(got, expected)
    result = ours(tiny, ids, **options, return_dict_in_generate=True)
    assert torch.equal(result.sequences, tiny.generate(ids, **options))


@pytest.mark.parametrize(
    "rule, options",
    [
        ("token", dict(top_k=0)),
        ("block", dict(top_k=4)),
        ("token", dict(top_k=5, top_p=0.7)),
    ],
    ids=str,
)
def test_sampled_law_equals_that_of_generate(rule, options):
    """The exact law of the first tokens, from the model's logits under transformers' own
    processors, against 4,000 completions."""
    length, runs = 3, 4000
    model, prompt = random_model(1), torch.tensor([[1, 4, 2, 0, 3]])
    options = dict(max_new_tokens=length, do_sample=True, temperature=7.0, **NEVER, **options)
    tokens = list(itertools.product(range(MASK), repeat=length))
    ids = torch.cat([prompt.expand(len(tokens), -1), torch.tensor(tokens)], 1)
    config = transformers.GenerationConfig(**options)
    config._eos_token_tensor = None
    processors = model._get_logits_processor(config, logits_processor=[], device="cpu")
    with torch.no_grad():
        logits = model(ids).logits.double()[:, prompt.shape[1] - 1 : -1]
    law = torch.ones(len(tokens), dtype=torch.double)
    for i in range(length):
        p = processors(ids, logits[:, i]).softmax(-1)
        law *= p.gather(1, ids[:, prompt.shape[1] + i, None])[:, 0]
    assert abs(law.sum() - 1) < 1e-9
    torch.manual_seed(7)
    drawn = ours(model, prompt, rule=rule, num_return_sequences=runs, **options)
    places = MASK ** torch.arange(length - 1, -1, -1)
    seen = torch.bincount((drawn[:, prompt.shape[1] :] * places).sum(1), minlength=len(law))
    assert seen[law == 0].sum() == 0
    rare = law * runs < 5  # together one cell
    cells = torch.cat([law[~rare], law[rare].sum()[None]]) * runs
    counts = torch.cat([seen[~rare], seen[rare].sum()[None]]).double()
    cells, counts = cells[cells > 0], counts[cells > 0]
    assert len(cells) > 7  # it is a law of several outcomes
    g, freedom = float(2 * torch.xlogy(counts, counts / cells).sum()), len(cells) - 1
    print(f"{rule}, {options}: G = {g:.1f}, {freedom} degrees of freedom")
    assert g < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_torch_seeds_repeat():
    model, ids = random_model(2), torch.tensor([[1, 2, 3]])
    options = dict(max_new_tokens=20, do_sample=True, **NEVER)
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(ours(model, ids, **options))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_weights_are_shared():
    model = random_model(3)
    storages = [t.untyped_storage().data_ptr() for t in model.state_dict().values()]
    first, second = shared_model(model), shared_model(model)
    own = {t.untyped_storage().data_ptr(): name for name, t in model.state_dict().items()}
    layer = first.weights.layers[1]
    for t in (layer.projection, layer.gate_up, layer.down, layer.o_weight, first.weights.lm_head):
        assert t.untyped_storage().data_ptr() in own
    assert layer.projection.data_ptr() == second.weights.layers[1].projection.data_ptr()
    moved = [a for a in storages if a not in own]
    assert len(moved) == 4 * model.config.num_hidden_layers  # q, k and both halves of v
    with torch.no_grad():
        model.model.layers[1].self_attn.qkv_proj.k_proj.weight.fill_(0.5)
    assert (layer.projection == 0.5).all(1).sum() == 2 * model.config.head_dim


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_beams=2), "num_beams"),
        (dict(repetition_penalty=1.2), "RepetitionPenalty"),
        (dict(suppress_tokens=[1]), "suppress_tokens"),
        (dict(output_scores=True, return_dict_in_generate=True), "output_scores"),
        (dict(attention_mask=torch.tensor([[1, 1, 0]])), "attention_mask"),
        (dict(position_ids=torch.tensor([[0, 2, 3]])), "position_ids"),
        (dict(layout=BlockLayout(3, 4, 2), mix=2.0), "mix"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        options = dict(max_new_tokens=4, pad_token_id=0) | options
        ours(random_model(), torch.tensor([[1, 2, 3]]), **options)


def plain(model, kind):
    register()
    model.set_attn_implementation(kind)
    model.set_experts_implementation(kind)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_plain_decoding_equals_eager(variant, dtype):
    """A whole batch with padding, then token after token with a cache."""
    model = random_model(4, head_dim=32, **VARIANTS[variant]).to(dtype)
    ids = torch.randint(MASK, (3, 31), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :9] = mask[1, :1] = 0
    runs = {}
    for kind in ("eager", "blockdraft"):
        plain(model, kind)
        whole = model(ids, attention_mask=mask).logits
        cache, steps = None, []
        for start, end in ((0, 20), (20, 24), *((i, i + 1) for i in range(24, 31))):
            step = model(
                ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, start:end], use_cache=True,
            )  # fmt: skip
            cache = step.past_key_values
            steps.append(step.logits)
        runs[kind] = [x[mask.bool()].float() for x in (whole, torch.cat(steps, 1))]
    limit = 2e-5 if dtype == torch.float32 else 0.06
    for expected, got in zip(runs["eager"], runs["blockdraft"]):
        assert (got - expected).norm() < limit * expected.norm()


def test_plain_generate_equals_eager(tiny):
    ids = torch.tensor([list(b"def main():\n    "), list(b"class Queue:\n   ")])
    options = dict(max_new_tokens=80, do_sample=False, pad_token_id=256)
    padded = dict(attention_mask=torch.tensor([[0] * 3 + [1] * 13, [1] * 16]))  # as of prompts
    for more in ({}, padded):
        expected = plain(tiny, "eager").generate(ids, **options, **more)
        assert torch.equal(plain(tiny, "blockdraft").generate(ids, **options, **more), expected)


def wide():
    return random_model(
        hidden_size=1024, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
        head_dim=128, moe_intermediate_size=1024, num_experts=8, router_hidden_size=128,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [128, 1024])
def test_plain_decoding_is_not_slower(width, dtype, tiny):
    """Than eager, in turns: the tiny model, whose kernels are a small part of the time, and a width
    where they are most of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = wide() if width == 1024 else copy.deepcopy(tiny)
    model, tokens = model.to(dtype), 12 if width == 1024 else 64
    ids = torch.randint(MASK, (1, 256), generator=torch.Generator().manual_seed(1))
    options = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **NEVER)
    seconds = {"eager": [], "blockdraft": []}
    for kind in [*seconds] * 5:
        plain(model, kind)
        began = time.perf_counter()
        model.generate(ids, **options)
        seconds[kind].append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    eager, ours = (statistics.median(times[1:]) for times in seconds.values())
    print(f"{width}, {dtype}: eager {eager * 1e3:.0f} ms, blockdraft {ours * 1e3:.0f} ms")
    assert ours <= eager


@pytest.mark.parametrize("q_length", [1, 5])
@pytest.mark.parametrize("window", [None, 24, 100])
@pytest.mark.parametrize("length", [7, 16, 33, 70])
def test_attention_over_a_cache(length, window, q_length):
    """As its memory lies: lengths and padding on no border of pages, and windows."""
    query, key, value = (
        torch.randn(3, heads, n, 16, generator=torch.Generator().manual_seed(n))
        for heads, n in ((4, q_length), (2, length), (2, length))
    )
    real = torch.ones(3, length, dtype=torch.bool)
    real[1, : length // 3] = real[2, : length - q_length - 1] = False
    place = torch.arange(length)
    late = place[length - q_length :, None]
    seen = (place <= late) & (place > late - (window or length))
    for mask in (None, real):
        got, _ = attention(
            torch.nn.Module(), query, key, value, mask, 0.3, sliding_window=window
        )  # fmt: skip
        bias = seen if mask is None else seen & mask[:, None, None]
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, bias, scale=0.3, enable_gqa=True
        )
        assert_close(got, expected.transpose(1, 2))


def test_padding_anywhere_without_a_cache():
    query, key, value = (torch.randn(3, heads, 9, 16) for heads in (4, 2, 2))
    real = torch.rand(3, 9) < 0.6
    got, _ = attention(torch.nn.Module(), query, key, value, real, 0.3)
    seen = torch.ones(9, 9, dtype=torch.bool).tril() & real[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, seen, scale=0.3, enable_gqa=True
    )
    assert_close(got[real], expected.transpose(1, 2)[real])
    with pytest.raises(ValueError, match="left only, since there is a cache or a window"):
        attention(torch.nn.Module(), query, key, value, real, 0.3, sliding_window=4)


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q, k.double(), v),
        lambda q, k, v: (q, k[:, :, :-1], v),
        lambda q, k, v: (q[:, :3], k, v),
        lambda q, k, v: (q, k, v.transpose(2, 3).contiguous().transpose(2, 3)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change):
    tensors = change(*(torch.randn(3, heads, 9, 16) for heads in (4, 2, 2)))
    with pytest.raises(ValueError, match="query, key, value"):
        attention(torch.nn.Module(), *tensors, None)


@torch.no_grad()
def test_masks_that_are_no_order_are_refused():
    model = plain(random_model(5), "blockdraft")
    ids = torch.tensor([[1, 2, 3, 4, 5, 0]])
    with pytest.raises(ValueError, match="another pattern"):  # two sequences in one row
        model(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), use_cache=False)
    holes = dict(attention_mask=torch.tensor([[1, 1, 1, 1, 1, 0]]), use_cache=True)
    cache = model(ids[:, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="attention_mask"):
        model(ids[:, 5:], past_key_values=cache, **holes)
    with torch.enable_grad(), pytest.raises(ValueError, match="gradients"):
        model(ids)


@torch.no_grad()
def test_experts_that_are_no_swiglu_are_refused():
    register()
    module = random_model(6, hidden_act="gelu").model.layers[0].mlp.experts
    module.config._experts_implementation = "blockdraft"
    with pytest.raises(ValueError, match="SwiGLU"):
        module(torch.randn(2, 48), torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1))
