"""Penalties and biases: vLLM's formulas, and the sequential law along the drafts of a pass by exact
enumeration."""

import pytest
import torch
from laws import Case, distance, expected_law, law_of, penalised_law, penalties

from blockdraft import Penalties, words_of
from blockdraft.reference.distribution import penalised
from blockdraft.registry import OPS

EXACT = [name for name in OPS["accept_drafts"].backends if name != "triton"]
VOCAB = 4


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
        penalties=lambda x: penalties(x, VOCAB),
        rows=penalised_law(case.p),
        drawn=penalised_law(case.q, follow=False),
    )
    assert distance(law, expected_law(case, 2, penalised_law(case.p))) < 1e-6
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
