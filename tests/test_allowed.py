"""Allowed tokens: the masks that grammars give, by row; their laws by exact enumeration."""

import pytest
import torch
from laws import Case, constrained, distance, expected_law, law_of, masks
from sampling_cases import run_by

from blockdraft import Sampling, ops, words_of
from blockdraft.registry import OPS

BACKENDS = list(OPS["accept_drafts"].backends)
EXACT = [name for name in BACKENDS if name != "triton"]


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("drafter_knows", [False, True])
def test_constrained_laws(drafter_knows, rule, backend):
    """The grammar's law over sequences, whether or not the drafter knows the grammar."""
    case = Case(4, 2, 5)
    how = dict(allowed=lambda x: masks(x, 3, 4))
    if drafter_knows:
        how |= dict(draft_allowed=lambda x: masks(x, 2, 4), drawn=constrained(case.q))
    target = constrained(case.p)
    law, mean = law_of(case, rule=rule, backend=backend, rows=target, **how)
    assert distance(law, expected_law(case, 2, target)) < 1e-6
    assert 0 < mean < 2


def call(backend, target, x, allowed, **options):
    batch, V, _ = target.shape
    zero = torch.zeros(batch, dtype=torch.int32)
    return run_by(
        ops.accept_drafts,
        backend,
        target,
        x,
        zero + V - 1,
        torch.ones(batch, 1, dtype=torch.int32),
        V,
        seed=zero.long(),
        position=zero,
        target_sampling=Sampling(torch.ones(batch)),
        allowed=words_of(allowed),
        **options,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["token", "block", "greedy"])
def test_nothing_but_what_is_allowed(rule, backend):
    """A draft that is not allowed is rejected, and a row that allows nothing is reported; what is
    not allowed may be NaN."""
    vocab = 77
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 2, vocab, generator=generator)
    draft = target[:, :1].clone()
    x = torch.tensor([[40], [41], [40]], dtype=torch.int32)
    allowed = torch.zeros(3, 2, vocab, dtype=torch.bool)
    allowed[0, :, [7, 40, 76]] = True
    allowed[1, :, [7, 40, 76]] = True
    target[0, 0, 8] = torch.nan
    target[:2, 0, 40] = 20.0
    v = call(
        backend,
        target,
        x,
        allowed,
        draft_logits=draft,
        rule=rule,
        uniforms=torch.full((3, 2), 0.5, dtype=torch.float64),
    )
    assert v.status.tolist() == [0, 0, 2] and v.accepted.tolist() == [1, 0, -1]
    assert v.next_token[0].item() in (7, 40, 76) and v.next_token[1].item() == 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_few_allowed_ids_far_below_the_others(backend):
    vocab = 700 if backend == "triton" else 9000
    target = torch.full((1, 1, vocab), 300.0)
    target[0, 0, [vocab // 2, vocab - 1]] = torch.tensor([-200.0, -200.0])
    allowed = target == -200
    v = call(
        backend,
        target,
        torch.zeros(1, 0, dtype=torch.int32),
        allowed,
        uniforms=torch.full((1, 1), 0.75, dtype=torch.float64),
        with_logprob=True,
    )
    assert v.next_token.item() == vocab - 1
    assert abs(v.target_logprob.item() + 0.6931472) < 1e-6
