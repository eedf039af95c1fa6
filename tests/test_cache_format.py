"""Models whose keys and values are cached in fp8: decoding is lossless with respect to them."""

import itertools

import pytest
import torch
from models import random_model as any_model

from blockdraft import BlockDecoder, BlockLayout, Request
from blockdraft.models.cache import CacheFormat, PagedCache
from blockdraft.models.quantize import cache_format
from blockdraft.ops import _native

pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason="the extension is not built")
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
TEXT = [1, 5, 2, 2, 7, 0, 3, 6, 4, 4, 1, 7, 3, 3, 0, 5, 6, 2, 1, 0, 7, 7, 5, 4, 2, 6]


def random_model():
    """One that the C++ kernels take."""
    return any_model(head_dim=16)


def low(dtype=FN):
    model = random_model()
    model.cache_format = cache_format(model, TEXT, dtype)
    return model


@torch.no_grad()
def last_logits(model, prompts, chunk):
    cache = model.new_cache(len(prompts), len(prompts[0]), page=8)
    for request, prompt in enumerate(prompts):
        cache.open(request, len(prompt))
    hidden = model.prefill(prompts, cache, chunk)
    return model.logits(hidden.unflatten(0, (len(prompts), -1))[:, -1])


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=str)
def test_it_does_not_matter_where_a_pass_ends(dtype):
    """Rows attend to keys of their own pass as to cached ones. A sum in another order may take a
    few numbers past a middle, which is much less than what fp8 changes."""
    plain = last_logits(random_model(), [TEXT], len(TEXT))
    whole, pieces, single = (last_logits(low(dtype), [TEXT], n) for n in (len(TEXT), 5, 1))
    changed = (whole - plain).abs().max()
    assert changed > 1e-3
    for other in (pieces, single):
        assert (other - whole).abs().max() < 0.05 * changed


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=str)
def test_greedy_decoding_is_that_of_single_tokens(dtype):
    model = low(dtype)
    requests = [Request(TEXT[:n], 24, temperature=0.0) for n in (3, 9, 26)]
    plain = BlockDecoder(model, BlockLayout.autoregressive(), page=8).generate(requests)
    block = BlockDecoder(model, BlockLayout(3, 4, 2), branches=[1, 3], page=8).generate(requests)
    assert [done.tokens for done in block] == [done.tokens for done in plain]


def test_sampled_law_is_that_of_the_quantised_model():
    model, prompt, runs = low(), TEXT[:6], 8000
    ids = range(8)  # 8 is the mask
    law = torch.ones(8, 8, 8, dtype=torch.double)
    for length in range(3):
        prompts = [prompt + list(more) for more in itertools.product(ids, repeat=length)]
        logits = last_logits(model, prompts, 1)[:, :8].double()
        law *= logits.softmax(-1).view((8,) * (length + 1) + (1,) * (2 - length))
    decoder = BlockDecoder(model, BlockLayout(3, 4, 2), branches=[1, 3], page=8)
    done = decoder.generate([Request(prompt, 3, seed=seed) for seed in range(runs)])
    tokens = torch.tensor([each.tokens for each in done])
    seen = torch.bincount(tokens @ torch.tensor([64, 8, 1]), minlength=512).double()
    expected = law.flatten() * runs
    rare = expected < 5
    seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    statistic = 2 * torch.xlogy(seen, seen / expected).sum()
    freedom = len(expected) - 1
    assert freedom > 10 and abs(expected.sum() - runs) < 1e-3
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=str)
def test_scales_are_powers_of_two_with_room_for_twice_the_largest(dtype):
    model = random_model()
    cache = model.new_cache(1, len(TEXT), page=8)
    cache.open(0, len(TEXT))
    model.prefill([TEXT], cache)
    form = cache_format(model, TEXT, dtype)
    assert form.dtype == dtype
    for scale, numbers in ((form.k_scale, cache.k), (form.v_scale, cache.v)):
        room = scale * torch.finfo(dtype).max / numbers.abs().amax((1, 2, 4))
        assert (torch.frexp(scale).mantissa == 0.5).all()
        assert (room >= 2).all() and (room < 4).all()


def test_what_is_refused():
    model = random_model()
    with pytest.raises(ValueError, match="^cache_format: dtype: expected one of .+, got "):
        cache_format(model, TEXT, torch.bfloat16)
    with pytest.raises(ValueError, match="^cache_format: tokens: expected some, got none"):
        cache_format(model, [])
    ones = torch.ones(2, 1)
    for wrong, name in (
        (FN, "format"),
        (CacheFormat(torch.float16, ones, ones), "format.dtype"),
        (CacheFormat(FN, ones[0], ones), "format.k_scale"),
        (CacheFormat(FN, ones, ones.expand(2, 2)), "format.v_scale"),
    ):
        with pytest.raises(ValueError, match=f"^PagedCache: {name}: expected .+, got "):
            PagedCache(model.config, 1, 8, torch.float32, format=wrong)
