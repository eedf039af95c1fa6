"""choose_layout: what it promises follows from what it measures, and is what a decode yields."""

import pytest
import torch
from toy import ToyModel

from blockdraft import BlockDecoder, BlockLayout, Request, choose, choose_layout

MASKS = 16


@pytest.fixture
def model():
    return ToyModel(MASKS)


def requests(count, length=400):
    return [Request([0, 1], length, seed=i) for i in range(count)]


def clock(monkeypatch, seconds):
    """Passes take `seconds(layout)`."""
    monkeypatch.setattr(
        choose, "measure_pass", lambda model, requests, layout, passes: seconds(layout)
    )


def test_acceptance_is_that_of_the_toy(model):
    """Its drafts at an offset agree with its target by the sum of min(p, q)."""
    found = choose.measure_acceptance(model, requests(400), block=4)
    assert len(found.pairs) == 3 and all(len(row) == 4 for row in found.pairs)
    p = model.target.softmax(-1)
    q = model.table[4:, :2].unflatten(0, (4, MASKS)).softmax(-1)
    agreement = torch.minimum(p[:, None, None], q[None]).sum(-1)
    counted = [found.pairs[i][m] for i in range(3) for m in range(i + 1, 4)]
    assert agreement.min() - 0.05 < min(counted) and max(counted) < agreement.max() + 0.05


def test_free_passes_choose_the_most_drafts(model, monkeypatch):
    clock(monkeypatch, lambda layout: 1e-3)
    best, *others = choose_layout(model, requests(50, 60))
    assert best.layout.P == best.layout.V and best.tokens_per_pass > 1.3
    assert best.tokens_per_s == pytest.approx(50 * best.tokens_per_pass / 1e-3)
    assert all(a.tokens_per_s >= b.tokens_per_s for a, b in zip(others, others[1:]) if b.layout.P)
    layouts = [choice.layout for choice in (best, *others)]
    assert len({*layouts}) == len(layouts) and BlockLayout.autoregressive() in layouts


def test_costly_rows_choose_plain_decoding(model, monkeypatch):
    clock(monkeypatch, lambda layout: 1e-3 * layout.rows)
    assert choose_layout(model, requests(50, 60))[0].layout == BlockLayout.autoregressive()


def test_a_near_tie_goes_to_plain_decoding(model, monkeypatch):
    clock(monkeypatch, lambda layout: 1e-3)
    yields = choose_layout(model, requests(50, 60))[0].tokens_per_pass
    clock(monkeypatch, lambda layout: 1e-3 * (1 if layout.P == 0 else yields / 1.01))
    assert choose_layout(model, requests(50, 60))[0].layout.P == 0


def test_a_decode_yields_what_was_promised(model, monkeypatch):
    clock(monkeypatch, lambda layout: 1e-3)
    work = requests(300, 100)
    for choice in choose_layout(model, work)[:3]:
        decoder = BlockDecoder(model, choice.layout, branches=list(choice.branches))
        done = decoder.generate(work)
        found = sum(c.tokens_per_forward for c in done) / len(done)
        assert found == pytest.approx(choice.tokens_per_pass, rel=0.06)


def test_passes_are_timed_and_reported(model):
    seen = []
    choices = choose_layout(model, requests(1, 8), passes=1, report=lambda *at: seen.append(at))
    assert all(choice.pass_s > 0 for choice in choices)
    count = len(choices) + choose.ROUNDS * (choose.FINALISTS + 1)
    assert seen == [(i, count) for i in range(1, count + 1)]


def test_the_best_are_timed_again(model, monkeypatch):
    """One slow measurement of the best layout does not hide it."""
    clock(monkeypatch, lambda layout: 1e-3)
    (best, *_) = choose_layout(model, requests(50, 60))
    asked = []

    def slow_once(layout):
        asked.append(layout)
        return 1.05e-3 if layout == best.layout and asked.count(layout) == 1 else 1e-3

    clock(monkeypatch, slow_once)
    found = choose_layout(model, requests(50, 60))[0]
    assert found.layout == best.layout and found.pass_s == 1e-3
    assert found.tokens_per_s == pytest.approx(best.tokens_per_s)


@pytest.mark.parametrize("slower", [1.4, 100])
def test_finalists_that_become_slow(model, monkeypatch, slower):
    """Each layout is there once, and none that was timed once comes first."""
    clock(monkeypatch, lambda layout: 1e-3)
    first = [choice.layout for choice in choose_layout(model, requests(50, 60))]
    asked = []

    def slow_again(layout):
        asked.append(layout)
        known = layout.P == 0 or asked.count(layout) == 1
        return 1e-3 if known else slower * 1e-3

    clock(monkeypatch, slow_again)
    found = [choice.layout for choice in choose_layout(model, requests(50, 60))]
    assert len(found) == len(first) and {*found} == {*first}
    finalists = [*first[: choose.FINALISTS], BlockLayout.autoregressive()]
    assert found[0] in finalists and (slower < 2 or found[0].P == 0)


def test_requests_near_the_model_s_longest(model, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 100, raising=False)
    near = [Request([0] * 90, 10)]
    assert choose.measure_pass(model, near, BlockLayout(15, 16, 1), passes=2) > 0


def test_bad_arguments(model):
    with pytest.raises(ValueError, match="choose_layout: requests: expected at least one"):
        choose_layout(model, [])
    with pytest.raises(ValueError, match="choose_layout: passes: expected 1 or more, got 0"):
        choose_layout(model, requests(1), passes=0)
