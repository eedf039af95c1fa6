"""What a checkpoint folder may hold: every other config, index and tensor is refused by name.
Models and decoders can be pickled and copied."""

import copy
import dataclasses
import json
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from blockdraft import BlockDecoder, BlockLayout, Request, ops
from blockdraft.models.cache import PagedCache
from blockdraft.models.checkpoint import read
from blockdraft.models.config import ZayaConfig
from blockdraft.models.weights import assemble, shapes
from blockdraft.models.zaya import ZayaModel
from blockdraft.ops import _native

SMALL = dict(
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
    sliding_window=5,
    layer_types=["hybrid", "hybrid_sliding"],
    mask_token_id=10,
)
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "moe_intermediate_size",
    "num_experts",
    "num_experts_per_tok",
    "router_hidden_size",
    "cca_time0",
    "cca_time1",
    "max_position_embeddings",
)
SWITCHES = ("attention_bias", "lm_head_bias", "tie_word_embeddings")
NAN, INFINITY, HUGE = math.nan, math.inf, 10**5000  # Python does not print an integer that long


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def rope(theta=1e4, **others):
    return {kind: {"rope_theta": theta, **others} for kind in ("hybrid", "hybrid_sliding")}


NOT_A_COUNT = [True, False, "2", 2.0, 2.5, -1, [2], {"2": 2}, NAN, INFINITY, HUGE, nested(2000)]
NOT_A_ROPE = [
    *[rope(theta) for theta in (None, True, "1e4", [1e4], 0, -1.0, NAN, INFINITY, 10**400)],
    *[rope(partial_rotary_factor=share) for share in (None, True, "0.5", 0, -0.5, 1.5, NAN)],
    *[rope(rope_type=kind) for kind in ("yarn", None, ["default"])],
    *[{}, [], "default", 5, True, {"hybrid": None}, {"hybrid_sliding": rope()}, nested(2000)],
]
WRONG = {
    **{name: [*NOT_A_COUNT, None, 0, 10**12] for name in SIZES},
    **{name: [None, 0, 1, 1.0, "true", [], nested(2000)] for name in SWITCHES},
    "sliding_window": [*NOT_A_COUNT, None, 0, 2**31],
    "mask_token_id": [*NOT_A_COUNT, "257", 11],
    "num_valid_vocab": [*NOT_A_COUNT, 0, 12],
    "eos_token_id": [*NOT_A_COUNT[:6], *NOT_A_COUNT[7:], 2**31, ["2"], [[2]], [2, True], [None]],
    "rms_norm_eps": [None, True, "1e-5", [1e-5], 0, 0.0, -1e-5, 2.0, NAN, INFINITY, HUGE],
    "hidden_act": [None, 1, True, "gelu", ["silu"], nested(2000)],
    "layer_types": [
        *[["hybrid"], ["hybrid"] * 3, [["hybrid"]] * 2, [None] * 2, ["full_attention"] * 2],
        *[0, False, 2, "hybrid", "", {}, {"hybrid": 1}, {"a": 1, "b": 2}, nested(2000), HUGE],
    ],
    "rope_parameters": NOT_A_ROPE,
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 12)
    | st.floats()
    | st.sampled_from([10**400, -(10**400), 2**31, 2**63, "hybrid", "default", "silu"])
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["hybrid", "hybrid_sliding", "rope_theta", "rope_type", "a"]), inner
        )
    ),
    max_leaves=6,
)


def test_every_field_has_wrong_values():
    assert set(WRONG) == {field.name for field in dataclasses.fields(ZayaConfig)}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_refused_by_name(name):
    ZayaConfig(**SMALL)
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=f"^ZayaConfig: {name}: expected .+, got ") as caught:
            ZayaConfig(**{**SMALL, name: value})
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", WRONG)
@given(value=JSON)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_value_makes_a_config_or_an_error_that_names_it(name, value):
    try:
        config = ZayaConfig(**{**SMALL, name: value})
    except ValueError as error:
        # a small vocabulary leaves the ids of SMALL outside it: then they are named
        beside = ("mask_token_id", "num_valid_vocab") if name == "vocab_size" else ()
        named = str(error).partition(":")[2]
        assert any(field in named for field in (name, *beside))
        return
    assert math.isfinite(config.rope_theta(1)) and 0 <= config.rotary_dim(1) <= config.head_dim
    assert config.window(1) >= 0 and all(token >= 0 for token in config.stop_tokens)


@pytest.mark.parametrize("layers", [10**7, 10**15])
def test_a_config_of_too_many_layers_builds_nothing(tmp_path, layers):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "zaya", "num_hidden_layers": layers})
    )
    with pytest.raises(ValueError, match=r"num_hidden_layers: expected an integer in 1..4096, got"):
        ZayaModel.load(tmp_path)


def test_none_and_empty_stand_for_defaults():
    config = ZayaConfig(**{**SMALL, "layer_types": None, "eos_token_id": None})
    assert config.layer_types == ("hybrid",) * 2 and config.num_valid_vocab == 11
    assert config.stop_tokens == () and ZayaConfig(eos_token_id=[1, 2]).stop_tokens == (1, 2)
    assert dataclasses.replace(config) == config


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"layer_types": ' + "[" * 10**5 + "]" * 10**5 + "}", "one nested too deeply"),
        ('{"hidden_size": ' + "1" * 10**4 + "}", "expected a JSON file, got"),
        ("[1]", "expected a JSON object, got list"),
        ("{", "expected a JSON file, got"),
        ("\xff", "expected a JSON file, got"),
        ('{"model_type": [["zaya"]]}', r"expected model_type 'zaya', got \[\['zaya'\]\]"),
        ('{"model_type": "zaya", "rms_norm_eps": Infinity}', "rms_norm_eps: expected .+, got inf"),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        ZayaConfig.load(tmp_path)


def test_a_folder_is_a_path():
    with pytest.raises(ValueError, match="folder: expected a path, got None"):
        ZayaConfig.load(None)


def random_tensors(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(s, generator=generator) for name, s in shapes(config).items()}


def checkpoint(folder, **changes):
    """A folder with SMALL's config and random tensors; a changed tensor's dots are written __."""
    folder.mkdir(exist_ok=True)
    config = ZayaConfig(**SMALL)
    tensors = random_tensors(config)
    tensors.update({name.replace("__", "."): t for name, t in changes.items()})
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**SMALL, "model_type": "zaya"}))
    return folder


@pytest.mark.parametrize("escape", ["relative", "absolute", "dots"])
def test_an_index_names_no_files_outside_its_folder(tmp_path, escape):
    outside = checkpoint(tmp_path / "outside") / "model.safetensors"
    folder = checkpoint(tmp_path / "inside")
    (folder / "deeper").mkdir()
    shard = {
        "relative": "../outside/model.safetensors",
        "absolute": str(outside),
        "dots": "deeper/../../outside/model.safetensors",
    }[escape]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": shard}})
    )
    message = "weight_map: model.norm.weight: expected the name of a .safetensors file in the same"
    with pytest.raises(ValueError, match=message):
        ZayaModel.load(folder)


@pytest.mark.parametrize("shard", [None, 1, True, ["a"], {}, "", ".", "..", "model.bin"])
def test_an_index_names_safetensors_files(tmp_path, shard):
    checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(ValueError, match="weight_map: model.norm.weight: expected the name of"):
        ZayaModel.load(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], "model.safetensors", {}])
def test_an_index_has_a_weight_map(tmp_path, weight_map):
    checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="expected (a weight_map|[*].safetensors), got"):
        ZayaModel.load(tmp_path)


def test_a_linked_shard_is_read(tmp_path):
    """Hugging Face's cache keeps the files elsewhere and links to them."""
    stored = checkpoint(tmp_path / "stored") / "model.safetensors"
    folder = checkpoint(tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(stored)
    ZayaModel.load(folder)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_tensor_in_two_shards_is_refused(tmp_path, indexed):
    checkpoint(tmp_path)
    save_file({"model.norm.weight": torch.zeros(8)}, tmp_path / "more.safetensors")
    if indexed:
        shards = {"model.norm.weight": "more.safetensors", "lm_head.weight": "model.safetensors"}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match="expected each tensor in one file only, got 'model.norm"):
        ZayaModel.load(tmp_path)


@pytest.mark.parametrize("stored", [torch.int32, torch.int8, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    "name", ["model__norm__weight", "model__layers__1__mlp__gate__balancing_biases"]
)
def test_only_floats_are_converted(tmp_path, stored, name):
    size = shapes(ZayaConfig(**SMALL))[name.replace("__", ".")]
    folder = checkpoint(tmp_path, **{name: torch.ones(size).to(stored)})
    message = f"{name.replace('__', '.')}: expected .*float.+ to convert.*, got {stored}"
    for dtype in (None, torch.bfloat16):
        with pytest.raises(ValueError, match=message):
            ZayaModel.load(folder, dtype)


def test_conversion_keeps_the_balancing_biases(tmp_path):
    weight = torch.randn(8, dtype=torch.float64)
    folder = checkpoint(tmp_path, model__norm__weight=weight)
    weights = ZayaModel.load(folder, torch.bfloat16).weights
    assert torch.equal(weights.norm, weight.bfloat16())
    assert weights.layers[0].router["balancing_bias"].dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int32, 16])
def test_a_wrong_dtype_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match="dtype: expected None, bfloat16, float16 or float32"):
        read(checkpoint(tmp_path), dtype)


WRONG_FOR_A_CACHE = {
    "page": ["16", 16.0, True, None, [16], -16, 0, 4, 24, HUGE, 2**31],
    "pages": ["5", 5.0, True, [5], -1, 2**31],
    "requests": ["5", 5.0, True, None, [5], 0, -1, 2**31],
    "max_tokens": ["55", 5.0, True, None, [5], -1, 2**31, HUGE],
    "dtype": ["bfloat16", None, torch.int32],
    "config": [None, SMALL],
}


@pytest.mark.parametrize("name", WRONG_FOR_A_CACHE)
def test_a_cache_names_what_it_refuses(name):
    given = dict(config=ZayaConfig(**SMALL), requests=2, max_tokens=9)
    given |= dict(dtype=torch.float32, page=8)
    PagedCache(**given)
    for value in WRONG_FOR_A_CACHE[name]:
        with pytest.raises(ValueError, match=f"^PagedCache: {name}: expected .+, got ") as caught:
            PagedCache(**{**given, name: value})
        assert len(str(caught.value)) < 500


NAMESPACE = SimpleNamespace(
    cca_qkv=ops.cca_qkv,
    block_attention=ops.block_attention,
    zaya_router=ops.zaya_router,
    fused_moe=ops.fused_moe,
    linear=ops.linear,
    residual_norm=ops.residual_norm,
    commit=ops.commit,
)
COPIES = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}


def random_model(**given):
    config = ZayaConfig(**SMALL)
    return ZayaModel(config, assemble(config, random_tensors(config)), **given)


@torch.no_grad()
def prefilled(model):
    cache = model.new_cache(2, 20, page=8)
    cache.open(0, 20)
    cache.open(1, 9)
    hidden = model.prefill([list(range(10)) * 2, [3, 1, 4]], cache, chunk=7)
    return model.logits(hidden), cache


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("namespace", ["module", "functions"])
def test_a_copied_model_gives_the_same_bits(copied, namespace):
    model = random_model() if namespace == "module" else random_model(ops=NAMESPACE)
    logits, cache = prefilled(model)
    twin = COPIES[copied](model)
    twin_logits, twin_cache = prefilled(twin)
    assert logits.isfinite().all() and torch.equal(twin_logits, logits)
    for name in ("k", "v", "conv_state", "late_state", "prefix_lens"):
        assert torch.equal(getattr(twin_cache, name), getattr(cache, name)), name
    assert twin.config == model.config and twin.dtype == model.dtype
    assert twin.ops is model.ops if namespace == "module" else twin.ops == model.ops
    assert model.ops is (ops if namespace == "module" else NAMESPACE)
    # the copy has weights of its own, and a tied head stays tied
    assert twin.weights.embedding.data_ptr() != model.weights.embedding.data_ptr()
    assert twin.weights.lm_head is twin.weights.embedding


@pytest.mark.parametrize("copied", COPIES)
def test_a_copied_decoder_gives_the_same_tokens(copied):
    decoder = BlockDecoder(random_model(), BlockLayout.tidar(4, P=2), page=8)
    requests = [Request([3, 1, 4], 12, seed=5), Request([2], 7, temperature=0.0)]
    before = COPIES[copied](decoder)
    done = decoder.generate(requests)
    after = COPIES[copied](decoder)
    assert before.generate(requests) == done and after.generate(requests) == done


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_pass_of_a_converted_checkpoint_is_on_kernels(tmp_path, dtype):
    """A weight of another dtype would leave an op to its reference, which nobody would notice."""
    if _native.MISSING:
        pytest.skip(_native.MISSING)
    config = ZayaConfig(**SMALL | dict(hidden_size=48, head_dim=16, router_hidden_size=16))
    tensors = {name: t.to(dtype) for name, t in random_tensors(config).items()}
    model = ZayaModel(config, assemble(config, tensors))
    batch = BlockDecoder(model, BlockLayout.autoregressive()).batch(1, 20)
    planned = batch.stage.forward
    for plan in (planned._run, planned._commit, batch.stage.accepting):
        for call in plan._calls:
            # linear has its own choice
            assert call.op == "linear" or "_cpp" in str(call.kernel), call.kernel
