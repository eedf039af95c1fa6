"""Passes replayed from graphs decode as passes that run. The graphs are torch operators, recorded;
CUDA's own were never captured here."""

import pytest
import torch
from models import random_model
from replay import Graphs
from traffic import requests, soak

from blockdraft import BlockDecoder, BlockLayout, Request, graph

PLAIN = BlockLayout.autoregressive()


@pytest.fixture
def graphs(monkeypatch):
    found = Graphs()
    monkeypatch.setattr(graph, "capture", found.capture)
    return found


def replaying(*given, **options):
    decoder = BlockDecoder(*given, **options)
    decoder.graphs = True
    return decoder


@pytest.mark.parametrize(
    "layout, branches",
    [
        (BlockLayout(3, 4, 2), None),
        (BlockLayout(3, 4, 2), "planned"),
        (PLAIN, None),
        ({1: BlockLayout(5, 6, 3), 3: BlockLayout(2, 3, 2), 5: PLAIN}, None),
    ],
    ids=["fixed", "planned", "plain", "moving"],
)
def test_a_soak(graphs, layout, branches):
    """Requests with all options come and go, and the options' tensors grow."""
    model, work = random_model(1), requests(16)
    given = dict(capacity=6, pages=60, steps=600)
    expected, _ = soak(BlockDecoder(model, layout, branches=branches, page=8), work, **given)
    done, _ = soak(replaying(model, layout, branches=branches, page=8), work, **given)
    assert done == expected
    assert len(graphs.replays) > 4 and sum(graphs.replays) > 50


@pytest.mark.parametrize(
    "options",
    [
        [dict(stop=(6,)), dict(stop=(1, 2, 5)), {}],
        [dict(logit_bias={3: 2.0}), dict(logit_bias={1: 3.0, 2: 3.0, 5: 3.0})],
        [dict(top_logprobs=1), dict(top_logprobs=4), dict(top_logprobs=2)],
        [dict(allowed=(1, 2, 3)), dict(frequency_penalty=1.0), dict(top_k=2)],
    ],
    ids=lambda options: "-".join(options[0]),
)
def test_an_option_comes_alone(graphs, options):
    """While the first request's passes are replayed; after each, two passes more are."""
    model = random_model(1)

    def decode(decoder):
        batch, done = decoder.batch(4, max_tokens=200), {}
        for more in ({}, *options):
            batch.add(Request([1, 2], 100, seed=3, **more))
            done |= batch.step(4)
        while batch.active:
            done |= batch.step()
        return done

    layout = BlockLayout(3, 4, 2)
    assert decode(replaying(model, layout)) == decode(BlockDecoder(model, layout))
    assert graphs.replays


def test_one_graph_of_each_half_for_a_batch_that_stays_the_same(graphs):
    decoder = replaying(random_model(1), BlockLayout(3, 4, 2))
    batch = decoder.batch(2, max_tokens=200)
    batch.add(*requests(1, longest=1))
    batch.step(10)
    assert graphs.replays == [9, 9]


def test_a_function_that_waits_is_refused(graphs):
    x = torch.ones(3)
    run = graph.Replayed(lambda: x.add_(x.sum().item()), torch.device("cpu"))
    run()
    with pytest.raises(AssertionError, match="waits for the device"):
        run()


def test_without_a_gpu_there_are_no_graphs():
    with pytest.raises(ValueError, match="graphs: expected None or False on a CPU, got True"):
        BlockDecoder(random_model(1), BlockLayout(3, 4, 2), graphs=True)
