"""A decoder that moves between layouts as requests come and go, and how the layouts are chosen."""

import pytest
import torch
from models import random_model
from toy import ToyModel

from blockdraft import BlockDecoder, BlockLayout, Request, choose, choose_layouts

PLAIN = BlockLayout.autoregressive()
WIDE, NARROW = BlockLayout(5, 6, 3), BlockLayout(2, 3, 2)


def requests(count, temperature=0.0):
    return [
        Request([i % 7, 3, i % 5], 6 + 5 * i, seed=i, temperature=temperature) for i in range(count)
    ]


def run_all(decoder, work, capacity):
    """Add two requests a pass while there is room; returns the completions, and the layouts that
    were used."""
    batch = decoder.batch(capacity, max_tokens=60)
    waiting, tickets, done, used = list(work), [], {}, []
    while waiting or batch.active:
        room = min(2, capacity - batch.active, len(waiting))
        tickets += batch.add(*(waiting.pop(0) for _ in range(room)))
        done |= batch.step()
        used.append(batch.stage.layout)
    return [done[ticket] for ticket in tickets], used


@pytest.mark.parametrize("rule", ["token", "greedy"])
@pytest.mark.parametrize(
    "branches", [None, "planned", {1: (1, 2, 4), 3: "planned", 5: ()}], ids=str
)
def test_greedy_tokens_are_those_of_plain_decoding(rule, branches):
    model = random_model(1)
    work = requests(9)
    expected = BlockDecoder(model, PLAIN).generate(work)
    layouts = {1: WIDE, 3: NARROW, 5: PLAIN}
    done, used = run_all(BlockDecoder(model, layouts, rule=rule, branches=branches), work, 6)
    assert [c.tokens for c in done] == [c.tokens for c in expected]
    moves = list(zip(used, used[1:]))
    assert (NARROW, PLAIN) in moves and (PLAIN, NARROW) in moves and (NARROW, WIDE) in moves


def test_a_capacity_below_a_layout_s_number():
    batch = BlockDecoder(random_model(1), {1: WIDE, 3: NARROW}).batch(2, max_tokens=60)
    batch.add(*requests(2))
    batch.step()
    assert batch.stage.layout == WIDE


def test_drafts_that_fit_are_kept():
    """Moving to fewer drafts keeps the first ones, with what they were drawn from."""
    batch = BlockDecoder(random_model(1), {1: WIDE, 2: NARROW}).batch(2, max_tokens=60)
    batch.add(Request([1, 2, 3], 40, seed=1))
    batch.step(2)
    before = batch.stage.state
    drafts, lse = before.drafts[0, :2].tolist(), before.draft_lse[0, :2].clone()
    logits = batch.stage.forward.draft_logits[0, :2].clone()
    assert before.draft_len[0] > 2
    stage = batch._stages[2]
    stage.take_over(batch.stage)
    assert stage.state.draft_len.tolist() == [2, -1]
    assert stage.state.drafts[0].tolist() == drafts and torch.equal(stage.state.draft_lse[0], lse)
    assert torch.equal(stage.forward.draft_logits[0], logits)
    assert stage.state.branch[0].tolist() == [1, 3]


def test_bad_layouts():
    model = random_model(1)
    with pytest.raises(ValueError, match=r"layout: expected numbers of requests, 1 among them"):
        BlockDecoder(model, {2: WIDE})
    with pytest.raises(ValueError, match="layout: expected a BlockLayout, got 3"):
        BlockDecoder(model, {1: 3})
    with pytest.raises(ValueError, match=r"branches: expected keys \[1, 4\], got '?\[1\]"):
        BlockDecoder(model, {1: WIDE, 4: PLAIN}, branches={1: (1, 2, 3)})
    with pytest.raises(ValueError, match="branches: expected 3 ascending branches in 1..6"):
        BlockDecoder(model, {1: WIDE, 4: PLAIN}, branches=(1, 2))


def test_each_number_of_requests_gets_its_layout(monkeypatch):
    """A pass of many rows takes longer: first the most drafts pay, then fewer, then none, and a
    layout without hope is not tried again."""
    tried = []

    def seconds(model, work, layout, passes):
        tried.append((len(work), layout))
        return 1e-3 * (1 + 0.006 * len(work) * layout.rows)

    monkeypatch.setattr(choose, "measure_pass", seconds)
    work = [Request([0, 1], 120, seed=i) for i in range(3)]
    chosen = choose_layouts(ToyModel(16), work, sizes=(1, 4, 64, 1000))
    assert list(chosen) == [1, 4, 64, 1000]
    rows = [choice.layout.rows for choice in chosen.values()]
    assert rows == sorted(rows, reverse=True) and rows[0] > 8 and chosen[1000].layout == PLAIN
    counts = [len([size for size, _ in tried if size == n]) for n in chosen]
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[0] / 2
    decoder = BlockDecoder(
        random_model(1),
        {size: choice.layout for size, choice in chosen.items()},
        branches={size: choice.branches for size, choice in chosen.items()},
    )
    assert len(decoder.layouts) == 4
    with pytest.raises(ValueError, match="choose_layouts: sizes: expected numbers of requests"):
        choose_layouts(ToyModel(16), work, sizes=(2, 4))
