"""Min-p, top-k and top-p: the laws of what they keep, by exact enumeration, and what vLLM and
transformers keep."""

import pytest
import torch
from laws import Case, distance, expected_law, kept_law, law_of
from sampling_cases import run_by

from blockdraft import Sampling, ops
from blockdraft.reference.distribution import distribution
from blockdraft.registry import OPS

BACKENDS = list(OPS["accept_drafts"].backends)
EXACT = [name for name in BACKENDS if name != "triton"]
HOW = [
    dict(min_p=0.3),
    dict(top_k=2),
    dict(top_p=0.7),
    dict(min_p=0.2, top_k=3),
    dict(min_p=0.2, top_p=0.8),
    dict(min_p=0.05, top_k=3, top_p=0.8),
]


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("how", HOW, ids=str)
def test_truncated_laws(how, rule, backend):
    """Target and drafter are truncated alike: what is emitted has the target's truncated law."""
    case = Case(4, 2, 3)
    case.q = {prefix: case.p[prefix] + x / 2 for prefix, x in case.q.items()}
    of_target = {prefix: kept_law(x, **how) for prefix, x in case.p.items()}
    of_drafter = {prefix: kept_law(x, **how) for prefix, x in case.q.items()}
    assert any((p == 0).any() for p in of_target.values())
    law, mean = law_of(
        case, rule=rule, backend=backend, sampling=how, rows=of_target.get, drawn=of_drafter.get
    )
    assert distance(law, expected_law(case, 2, of_target.get)) < 1e-6
    assert 0 < mean < 2


def by_vllm(logits, min_p, top_k, top_p):
    """What vLLM's sampler leaves of logits: min-p of the softmax, then its sort for top-k and
    top-p (v1/sample, in words)."""
    p = logits.softmax(-1)
    logits = logits.masked_fill(p < min_p * p.amax(-1, keepdim=True), -torch.inf)
    values, order = logits.sort(-1)
    values = values.masked_fill(values < values[..., -top_k, None], -torch.inf)
    drop = values.softmax(-1).cumsum(-1) <= 1 - top_p
    drop[..., -1] = False
    return logits.scatter(-1, order, values.masked_fill(drop, -torch.inf))


def by_transformers(logits, min_p, top_k, top_p):
    """Its warpers, in the order that blockdraft documents."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    for warper in (MinPLogitsWarper(min_p), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
        logits = warper(None, logits)
    return logits


@pytest.mark.parametrize("peer", [by_vllm, by_transformers], ids=["vllm", "transformers"])
@pytest.mark.parametrize("min_p, top_k, top_p", [(0.1, 40, 0.9), (0.02, 999, 0.8), (0.3, 9, 1.0)])
def test_keeps_what_others_keep(peer, min_p, top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(30, 1000, generator=generator, dtype=torch.float64)
    temperature, each = torch.full((30,), 0.7), torch.ones(30)
    if peer is by_transformers:
        pytest.importorskip("transformers")
    expected = peer(logits / temperature.double()[:, None], min_p, top_k, top_p).softmax(-1)
    none = torch.zeros(1000, dtype=torch.bool)
    got = distribution(
        logits[:, None], none, temperature, top_k * each.int(), top_p * each, min_p * each
    )[:, 0]
    assert torch.equal(got > 0, expected > 0)
    assert torch.allclose(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_min_p_of_one_keeps_the_greatest_and_its_equals(backend):
    logits = torch.zeros(4, 1, 50)
    logits[:, 0, ::7] = 3.0
    zero = torch.zeros(4, dtype=torch.int32)
    u = torch.tensor([0.0, 0.3, 0.7, 1 - 2**-53], dtype=torch.float64)[:, None]
    tokens, lse = run_by(
        ops.sample_drafts,
        backend,
        logits,
        zero + 1,
        seed=zero.long(),
        position=zero,
        drafter_sampling=Sampling(torch.ones(4), min_p=torch.ones(4)),
        uniforms=u,
    )
    assert tokens[:, 0].tolist() == [0, 14, 35, 49]
    assert torch.allclose(lse[:, 0, 1], torch.tensor(8.0).log().double(), atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_logits_are_shared_exactly(backend):
    """Half of the mass of 4,096 equal logits is that of 2,048, though their running sum rounds."""
    vocab = 4096
    zero = torch.zeros(1, dtype=torch.int32)
    tokens, lse = run_by(
        ops.sample_drafts,
        backend,
        torch.full((1, 1, vocab), 1.25),
        zero + 1,
        seed=zero.long(),
        position=zero,
        drafter_sampling=Sampling(torch.full((1,), 0.7), top_p=torch.full((1,), 0.5)),
        uniforms=torch.full((1, 1), 1 - 2**-53, dtype=torch.float64),
    )
    assert tokens.item() == vocab // 2 - 1
    assert abs(lse[0, 0, 1].exp() - vocab // 2) < 1e-3
