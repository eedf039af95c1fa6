"""What a caller may do with a decoder: share it, enter it again, copy it, choose seeds; and what is
refused."""

import copy
import pickle
import threading

import pytest
import torch
from toy import ToyModel

from blockdraft import BlockDecoder, BlockLayout, Completion, Request

LAYOUT = BlockLayout(3, 4, 2)


@pytest.fixture
def decoder():
    return BlockDecoder(ToyModel(LAYOUT.M), LAYOUT)


def work(first_seed, count=4):
    """Requests that differ in every parameter that a batch keeps as a tensor."""
    return [
        Request(
            [0, 1, seed % 2],
            12 + seed % 7,
            seed=seed,
            temperature=(0.0, 0.8, 1.0, 1.3)[seed % 4],
            top_p=(1.0, 0.9)[seed % 2],
            mix=(1.0, 0.5)[seed // 2 % 2],
        )
        for seed in range(first_seed, first_seed + count)
    ]


OPTIONS = [
    dict(),
    dict(rule="block"),
    dict(rule="greedy", drafter="greedy"),
    dict(branches=[1, 3]),
    dict(branches="planned"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_two_threads_share_a_decoder(options):
    decoder = BlockDecoder(ToyModel(LAYOUT.M), LAYOUT, **options)
    batches = [work(10), work(20, 5)]
    alone = [decoder.generate(batch) for batch in batches]
    together, errors = [None, None], []
    barrier = threading.Barrier(2, timeout=60)

    def take_turns(tokens):
        """Hold each thread after every pass, so that the calls always overlap."""
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            pass  # the other call has ended

    def run(i):
        try:
            together[i] = decoder.generate(batches[i], take_turns)
        except Exception as error:
            errors.append(error)
        finally:
            barrier.abort()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and together == alone


@pytest.mark.parametrize("options", OPTIONS)
def test_a_decoder_is_entered_again_from_on_step(options):
    decoder = BlockDecoder(ToyModel(LAYOUT.M), LAYOUT, **options)
    outer, inner = work(10), work(20, 5)
    alone = decoder.generate(outer), decoder.generate(inner)
    nested = []
    done = decoder.generate(outer, lambda tokens: nested.append(decoder.generate(inner)))
    assert done == alone[0] and len(nested) > 2
    assert all(completions == alone[1] for completions in nested)


def test_nothing_of_a_call_stays_on_the_decoder(decoder):
    before = dict(vars(decoder))
    decoder.generate(work(10))
    assert vars(decoder) == before


def test_normalisers_keep_their_type(decoder):
    """Those that a decode starts with are those that `sample_drafts` gives later."""
    batch = decoder.batch(4, 32)
    batch.add(*work(10))
    before = batch.stage.state.draft_lse.clone()
    batch.step()
    assert (
        batch.stage.state.draft_lse.dtype == before.dtype
        and not batch.stage.state.draft_lse.equal(before)
    )


def test_on_step_counts_the_tokens(decoder):
    counts = []
    done = decoder.generate(work(10), counts.append)
    assert counts == sorted(counts) and counts[-1] == sum(len(c.tokens) for c in done)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_decoder_can_be_copied_and_pickled(options):
    decoder = BlockDecoder(ToyModel(LAYOUT.M), LAYOUT, **options)
    done = decoder.generate(work(10))
    for twin in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert twin is not decoder and twin.generate(work(10)) == done
    assert pickle.loads(pickle.dumps(done)) == done


def test_equal_seeds_and_prompts_give_equal_completions(decoder):
    assert Request([0], 40).seed == 0
    first, second, other = decoder.generate(
        [Request([0], 40), Request([0], 40, seed=0), Request([0], 40, seed=1)]
    )
    assert first == second and first.tokens != other.tokens
    assert decoder.generate([Request([0], 40)]) == [first]


def test_seed_none_draws_a_fresh_seed(decoder):
    request = Request([0], 40, seed=None)
    torch.manual_seed(0)
    done = decoder.generate([request, request])
    torch.manual_seed(0)
    done += decoder.generate([request])
    assert len({tuple(c.tokens) for c in done}) == 3
    assert request.seed is None


def test_completion_is_public():
    done = Completion([1, 2, 3], [-0.5] * 3, "length", [2, 1])
    assert done.tokens_per_forward == 1.5
    assert Completion([], [], "invalid").tokens_per_forward == 0


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(branches=5), "branches: expected 2 ascending branches in 1..4, got 5"),
        (dict(branches="all"), "branches: expected 2 ascending branches in 1..4, got 'all'"),
        (dict(branches=[1]), r"branches: expected 2 ascending branches in 1..4, got \[1\]"),
        (dict(branches=[1, 5]), r"branches: expected 2 ascending branches .*, got \[1, 5\]"),
        (dict(branches=[True, 2]), r"branches: expected 2 ascending .*, got \[True, 2\]"),
        (dict(branches=[1, "2"]), r"branches: expected 2 ascending .*, got \[1, '2'\]"),
        (dict(branches=torch.tensor([1, 2])), "branches: expected 2 ascending .*, got tensor"),
        (dict(page="16"), "page: expected a power of two of at least 8, got '16'"),
        (dict(page=True), "page: expected a power of two of at least 8, got True"),
        (dict(page=4), "page: expected a power of two of at least 8, got 4"),
        (dict(page=24), "page: expected a power of two of at least 8, got 24"),
        (dict(page=16.0), "page: expected a power of two of at least 8, got 16.0"),
        (dict(chunk=True), "chunk: expected an integer of at least 1, got True"),
        (dict(chunk=0), "chunk: expected an integer of at least 1, got 0"),
        (dict(chunk="512"), "chunk: expected an integer of at least 1, got '512'"),
        (dict(rule="best"), "rule: expected 'token' or 'block' or 'greedy', got 'best'"),
        (dict(rule=None), "rule: expected 'token' or 'block' or 'greedy', got None"),
        (dict(drafter=["greedy"]), r"drafter: expected 'sampled' or 'greedy', got \['greedy'\]"),
        (dict(layout=16), "layout: expected a BlockLayout, got 16"),
        (dict(model=None), "model: expected an object with config, .*, got NoneType"),
    ],
)
def test_wrong_decoders(bad, message):
    with pytest.raises(ValueError, match=f"^BlockDecoder: {message}"):
        BlockDecoder(**{"model": ToyModel(LAYOUT.M), "layout": LAYOUT, **bad})


class Written(Exception):
    """Raised where a call that should have been refused begins its work."""


REQUEST = Request([0], 4)


@pytest.mark.parametrize(
    "requests, message",
    [
        ([], "requests: expected at least one, got an empty batch"),
        (REQUEST, r"requests: expected a list of Request, got Request\("),
        ((r for r in [REQUEST]), "requests: expected a list of Request, got <generator"),
        (None, "requests: expected a list of Request, got None"),
        ([REQUEST, [0, 1]], r"requests: expected a list of Request, got \[0, 1\] at 1"),
        (["ab"], "requests: expected a list of Request, got 'ab' at 0"),
        ([Request([3], 4)], "prompt: expected ids in 0..2, got 3"),
    ],
)
def test_wrong_batches(decoder, monkeypatch, requests, message):
    def begin(*args):
        raise Written

    monkeypatch.setattr(ToyModel, "new_cache", begin)
    with pytest.raises(ValueError, match=f"^BlockDecoder.generate: {message}"):
        decoder.generate(requests)


def test_wrong_on_step(decoder):
    with pytest.raises(ValueError, match="BlockDecoder.generate: on_step: expected a function"):
        decoder.generate([REQUEST], on_step=5)


@pytest.mark.parametrize(
    "bad, name",
    [
        (dict(seed="0"), "seed"),
        (dict(seed=True), "seed"),
        (dict(seed=1.0), "seed"),
        (dict(prompt=[True]), "prompt"),
        (dict(prompt=torch.tensor([1])), "prompt"),
        (dict(max_new_tokens=True), "max_new_tokens"),
        (dict(temperature=True), "temperature"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(temperature=1e39), "temperature"),
        (dict(temperature=10**400), "temperature"),
        (dict(draft_temperature=1e39), "draft_temperature"),
        (dict(draft_temperature="1"), "draft_temperature"),
        (dict(top_k=2.0), "top_k"),
        (dict(top_p=1e-50), "top_p"),
        (dict(top_p=1.1), "top_p"),
        (dict(mix=float("nan")), "mix"),
        (dict(top_logprobs=21), "top_logprobs"),
        (dict(stop=[-1]), "stop"),
        (dict(stop="ab"), "stop"),
        (dict(repetition_penalty=0), "repetition_penalty"),
        (dict(presence_penalty=float("inf")), "presence_penalty"),
        (dict(frequency_penalty="1"), "frequency_penalty"),
        (dict(logit_bias=[(1, 2.0)]), "logit_bias"),
        (dict(logit_bias={-1: 2.0}), "logit_bias"),
        (dict(logit_bias={1: float("nan")}), "logit_bias"),
        (dict(allowed=()), "allowed"),
        (dict(allowed=[1.0]), "allowed"),
    ],
)
def test_wrong_requests(bad, name):
    with pytest.raises(ValueError, match=f"^Request: {name}: expected .*, got "):
        Request(**{"prompt": [1], "max_new_tokens": 4, **bad})
