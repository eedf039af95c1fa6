"""Penalties and biases: vLLM's formulas, and the sequential law along the drafts of a pass by exact
enumeration."""

import pytest
import torch
from laws import Case, distance, expected_law, law_of

from blockdraft import Penalties, words_of
from blockdraft.reference.distribution import penalised
from blockdraft.registry import OPS

EXACT = [name for name in OPS["accept_drafts"].backends if name != "triton"]
VOCAB = 4
ASKED = dict(repetition=1.7, presence=0.6, frequency=0.4)
COUNTS = [0, -1, 2, -1]  # of the prompt; biased only; emitted twice; never touched
BIAS = {1: -0.7, 2: 1.1}


def penalties(n, asked=ASKED, counts=COUNTS, bias=BIAS):
    """Those of n requests with the same past."""
    touched = torch.tensor([c >= 0 or i in bias for i, c in enumerate(counts)])

    def each(values, dtype=torch.float32):
        return torch.tensor([values] * n, dtype=dtype)

    return Penalties(
        touched=words_of(touched.expand(n, VOCAB)),
        counts=each(counts, torch.int32),
        **{name: each(value) for name, value in asked.items()},
        bias_ids=each([*bias, 2**31 - 1], torch.int32),
        bias=each([*bias.values(), 9.0]),
    )


def law_after(logits, follow=True):
    """The distribution after a prefix, one token at a time: the formulas, id by id. `follow`:
    whether the prefix counts as emitted."""

    def law(prefix):
        x = logits[prefix].tolist()
        for i in range(VOCAB):
            count = COUNTS[i]
            for token in prefix if follow else ():
                if token == i:
                    count = max(count, 0) + 1
            x[i] += BIAS.get(i, 0)
            if count >= 0:
                x[i] = x[i] / ASKED["repetition"] if x[i] > 0 else x[i] * ASKED["repetition"]
            if count > 0:
                x[i] -= ASKED["frequency"] * count + ASKED["presence"]
        return torch.tensor(x, dtype=torch.float64).softmax(-1)

    return law


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_penalised_laws(rule, backend):
    """The law of a decoding that takes one token at a time, whose counts grow; the drafter counts
    what was emitted before the pass."""
    case = Case(VOCAB, 2, 8)
    law, mean = law_of(
        case,
        rule=rule,
        backend=backend,
        penalties=lambda x: penalties(len(x)),
        rows=law_after(case.p),
        drawn=law_after(case.q, follow=False),
    )
    assert distance(law, expected_law(case, 2, law_after(case.p))) < 1e-6
    assert 0 < mean < 2


def test_formulas_are_those_of_transformers_and_vllm():
    """transformers has the repetition; vLLM's others are one line each."""
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 100, generator=generator)
    past = torch.randint(100, (5, 40), generator=generator)
    counts = torch.zeros(5, 100, dtype=torch.int32)
    counts.scatter_add_(1, past[:, 10:], torch.ones(5, 30, dtype=torch.int32))
    seen = torch.zeros(5, 100, dtype=torch.bool).scatter_(1, past, True)
    each = torch.ones(5)
    got = penalised(
        logits[:, None], Penalties(words_of(seen), counts, 1.3 * each, 0.5 * each, 0.2 * each)
    )[:, 0]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(past, logits.clone())
    expected = expected - 0.2 * counts - 0.5 * (counts > 0)
    assert torch.allclose(got, expected, atol=1e-6)
