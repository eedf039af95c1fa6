"""A batch whose requests come and go: each request's tokens are those of its solo run, pages and
slots come back, and what does not fit changes nothing."""

from types import SimpleNamespace

import pytest
import torch
from models import random_model
from traffic import never_twice, requests, soak

from blockdraft import BlockDecoder, BlockLayout, Request
from blockdraft.models.cache import OutOfPages

LAYOUT = BlockLayout(3, 4, 2)


def solo(decoder, request):
    return decoder.generate([request])[0]


def is_prefix(short, whole):
    length = len(short.tokens)
    names = ("tokens", "logprobs", "top_logprobs")
    return all(getattr(short, name) == getattr(whole, name)[:length] for name in names)


def same_as_alone(decoder, work, done):
    aborted = 0
    for i, request in enumerate(work):
        alone = solo(decoder, request)
        if done[i].reason == "abort":
            assert is_prefix(done[i], alone)
            aborted += 1
        else:
            assert done[i] == alone
    return aborted


@pytest.mark.parametrize("rule", ["token", "block"])
def test_requests_come_and_go(rule):
    decoder = BlockDecoder(random_model(1), LAYOUT, rule=rule, page=8)
    work = requests(24)
    done, refused = soak(decoder, work, capacity=5, pages=30, steps=600)
    aborted = same_as_alone(decoder, work, done)
    assert refused > 0 and 0 < aborted < 12, "the case exercises neither limits nor aborts"


@pytest.mark.slow
def test_soak():
    """64 slots, 400 requests: everything that is given out comes back."""
    decoder = BlockDecoder(random_model(1), LAYOUT, page=8)
    work = requests(400, seed=1)
    done, refused = soak(decoder, work, capacity=64, pages=80, steps=2000, seed=1)
    assert same_as_alone(decoder, work, done) > 0 and refused > 0


def test_what_requests_change_is_seen():
    """Their tokens obey the masks, at temperature 0 as without drafts; a bias forces a token, and
    a penalty forbids its repetition."""
    asked = dict(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.2)
    work = [
        Request([1, 2, 3], 40, allowed=(0, 2, 5), **asked),
        Request([1, 2, 3], 40, allowed=never_twice, **asked),
        Request([1, 2, 3], 40, logit_bias={6: 100.0}),
        Request([1, 2, 3], 7, presence_penalty=1000.0),
        Request([1, 2, 3], 40, **asked),
    ]
    model = random_model(1)
    done = BlockDecoder(model, BlockLayout(3, 4, 3)).generate(work)
    plain = BlockDecoder(model, BlockLayout.autoregressive()).generate(work)
    assert [done[i].tokens for i in (0, 1, 4)] == [plain[i].tokens for i in (0, 1, 4)]
    assert sum(c.tokens_per_forward for c in done) / len(done) > 1.1
    assert set(done[0].tokens) <= {0, 2, 5}
    assert all(a != b for a, b in zip(done[1].tokens, done[1].tokens[1:]))
    assert set(done[2].tokens) == {6} and len(set(done[3].tokens)) == 7
    assert done[4].tokens != done[1].tokens


def test_top_logprobs():
    """Of greedy requests the first id is the token, and there are as many as wanted, but for a mask
    of two ids."""
    asked = dict(temperature=0.0, top_logprobs=4)
    work = [Request([1, 2], 30, **asked), Request([3], 30, allowed=(2, 6), **asked)]
    done = BlockDecoder(random_model(1), BlockLayout(3, 4, 3)).generate([*work, Request([4], 30)])
    for completion, count in zip(done, (4, 2)):
        assert [len(row) for row in completion.top_logprobs] == [count] * 30
        first = [row[0] for row in completion.top_logprobs]
        assert first == list(zip(completion.tokens, completion.logprobs))
        for row in completion.top_logprobs:
            assert [p for _, p in row] == sorted((p for _, p in row), reverse=True)
    assert abs(sum(torch.tensor(p).exp() for _, p in done[1].top_logprobs[0]) - 1) < 1e-5
    assert done[2].top_logprobs == []


def test_a_grammar_that_fails_can_be_asked_again():
    """Nothing of the pass is kept."""
    fails = [False, True, True, False]

    def grammar(emitted, drafts):
        if fails and fails.pop(0):
            raise RuntimeError("no grammar")
        return never_twice(emitted, drafts)

    decoder = BlockDecoder(random_model(1), LAYOUT, page=8)
    batch = decoder.batch(2, max_tokens=80)
    work = Request([1], 30, allowed=grammar), Request([2], 30, seed=3)
    tickets = batch.add(*work)
    done = {}
    failed = 0
    while batch.active:
        try:
            done |= batch.step()
        except RuntimeError:
            failed += 1
    assert failed == 2 and not fails
    assert [done[t] for t in tickets] == [solo(decoder, r) for r in work]


def test_a_grammar_of_the_wrong_shape_is_refused():
    decoder = BlockDecoder(random_model(1), LAYOUT, page=8)
    batch = decoder.batch(2, max_tokens=80)
    batch.add(Request([1], 30, allowed=lambda emitted, drafts: torch.zeros(1, 2)))
    expected = r"Request: allowed: expected a function that returns int32 \[1, 1\], got .*float32"
    with pytest.raises(ValueError, match=expected):
        batch.step()


def test_a_full_batch_refuses_and_stays_intact():
    decoder = BlockDecoder(random_model(1), LAYOUT, page=8)
    work = requests(3, seed=2)
    batch = decoder.batch(2, max_tokens=80)
    tickets = batch.add(*work[:2])
    with pytest.raises(OverflowError, match="Batch.add: requests: expected at most 0, .* got 1"):
        batch.add(work[2])
    done = {}
    while batch.active:
        done |= batch.step()
    assert [done[t] for t in tickets] == [solo(decoder, r) for r in work[:2]]


def test_exhausted_pages_fail_one_request():
    decoder = BlockDecoder(random_model(1), LAYOUT, page=8)
    fits, too_long = Request([1] * 20, 20, seed=1), Request([1] * 30, 40, seed=2)
    batch = decoder.batch(3, max_tokens=80, pages=16)
    (ticket,) = batch.add(fits)
    free = batch.cache.free_pages
    with pytest.raises(OutOfPages, match="at most 4 free pages of 8, got 74, which need 10"):
        batch.add(fits, too_long)  # neither of the two is added
    assert batch.cache.free_pages == free and batch.active == 1
    done = {}
    while batch.active:
        done |= batch.step(4)
    assert done == {ticket: solo(decoder, fits)}


def test_a_failing_prefill_leaves_the_batch_as_it_was(monkeypatch):
    decoder = BlockDecoder(random_model(1), LAYOUT, page=8)
    batch = decoder.batch(2, max_tokens=80)
    request, other = requests(2, seed=4)
    (ticket,) = batch.add(request)
    free = batch.cache.free_pages

    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(decoder.model, "prefill", fail)
        with pytest.raises(KeyboardInterrupt):
            batch.add(Request([1, 2, 3], 4, top_p=0.5))
    assert batch.cache.free_pages == free and batch.active == 1 and batch.add() == []
    (second,) = batch.add(other)
    done = {}
    while batch.active:
        done |= batch.step()
    assert done == {ticket: solo(decoder, request), second: solo(decoder, other)}


def test_a_cache_refuses_before_it_takes_pages():
    cache = random_model(1).new_cache(2, 40, page=8)
    free = cache.free_pages
    for bad in ((2, 8), (-1, 8), (0, 41), (0, -1), (True, 8)):
        with pytest.raises(ValueError, match="PagedCache: (request|tokens): expected an integer"):
            cache.open(*bad)
    assert cache.free_pages == free


def test_bad_arguments():
    decoder = BlockDecoder(random_model(1), LAYOUT)
    with pytest.raises(ValueError, match="BlockDecoder.batch: capacity: expected an integer"):
        decoder.batch(0, 10)
    batch = decoder.batch(1, max_tokens=10)
    with pytest.raises(ValueError, match="max_new_tokens of at most 10 together, got 12"):
        batch.add(Request([1, 2], 10))
    with pytest.raises(ValueError, match="Batch.abort: ticket: expected an active one, got 7"):
        batch.abort(7)
    with pytest.raises(ValueError, match="steps_per_sync: expected an integer of at least 1"):
        decoder.generate([Request([1], 4)], steps_per_sync=0)


@pytest.mark.parametrize("passes", [2, 7])
def test_passes_between_two_looks_change_nothing(passes):
    decoder = BlockDecoder(random_model(1), LAYOUT)
    work = requests(5, seed=3)
    assert decoder.generate(work, steps_per_sync=passes) == decoder.generate(work)


def test_a_plan_runs_again_on_the_same_tensors():
    from blockdraft import Plan, ops

    x, weight = torch.randn(3, 16), torch.randn(8, 16)
    plan = Plan()
    out = plan.ops.linear(x, weight)
    normed, _ = plan.ops.residual_norm(out, torch.ones(8), 1e-5)
    assert len(plan) == 2
    for _ in range(2):
        x.copy_(torch.randn(3, 16))
        plan.run()
        expected, _ = ops.residual_norm(ops.linear(x, weight), torch.ones(8), 1e-5)
        assert torch.equal(normed, expected)
    with pytest.raises(ValueError, match="linear: weight: expected shape"):
        plan.ops.linear(x, weight[:, :4])
    assert torch.equal(ops.linear(x, weight), out)  # nothing records any more

    def double(x):
        return 2 * x

    with pytest.raises(TypeError, match="Plan: double: expected an op of blockdraft"):
        Plan(SimpleNamespace(double=double)).ops.double(x)
