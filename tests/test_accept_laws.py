"""The laws of acceptance, by exact enumeration (tests/support/laws.py), and by a million draws."""

import pytest
import torch
from laws import EPS, Case, accept, breakpoints, distance, expected_law, law_of
from sampling_cases import run_by

from blockdraft import Sampling, env, ops
from blockdraft.registry import OPS

FAST = [name for name in OPS["accept_drafts"].backends if name != "reference"]
# too many calls for the interpreter
EXACT = [name for name in OPS["accept_drafts"].backends if name != "triton"]


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize(
    "vocab, K, D", [(4, 2, 2), (3, 3, 3), (2, 3, 3), (4, 1, 1), (3, 3, 1), (3, 2, 0), (4, 0, 0)]
)
def test_lossless(vocab, K, D, rule, backend):
    for seed in range(2):
        case = Case(vocab, K, seed)
        law, mean = law_of(case, D, rule=rule, backend=backend)
        assert distance(law, expected_law(case, D)) < 1e-6
        assert D == 0 or 0 < mean < D


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_greedy_drafter_is_lossless(rule, backend):
    case = Case(4, 2, 7)
    law, _ = law_of(case, rule=rule, drafter="greedy", backend=backend)
    assert distance(law, expected_law(case, 2)) < 1e-6


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("w", [0.0, 0.3, 0.8])
def test_mixed_law_with_an_unmixed_bonus(w, rule, backend):
    case = Case(3, 2, 11)

    def step(prefix):
        if len(prefix) == case.K:
            return case.p[prefix].double().softmax(0)
        return (w * case.p[prefix].double() + (1 - w) * case.q[prefix].double()).softmax(0)

    law, _ = law_of(case, rule=rule, mix=w, rows=step, backend=backend)
    assert distance(law, expected_law(case, 2, step)) < 1e-6


def test_mix_of_one_is_bit_identical():
    case = Case(4, 2, 3)
    x, _, target, draft = case.drafts()
    draft[:, :, 1] = -torch.inf  # 0 * -inf must not reach the law
    uniforms = torch.rand(
        len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    plain = accept(x, target, draft, uniforms, 2, with_logprob=True)
    mixed = accept(x, target, draft, uniforms, 2, mix=1.0, with_logprob=True)
    given = [(a, b) for a, b in zip(plain, mixed) if a is not None]
    assert len(given) >= 6 and all(torch.equal(a, b) for a, b in given)


def expected_accepted_token(case):
    """E[a] of the token rule: sum over prefixes of the mass that survives each test."""
    x, chance, target, draft = case.drafts()
    p, q = target[:, : case.K].double().softmax(-1), draft.double().softmax(-1)
    ratio = (p / q).gather(-1, x.long()[..., None])[..., 0].clamp(max=1)
    return float((chance[:, None] * ratio.cumprod(1)).sum())


def expected_accepted_block(case):
    """E[tau] of the block rule: sum of E[p_i] (arXiv 2403.10444)."""
    x, chance, target, draft = case.drafts()
    p, q = target[:, : case.K].double().softmax(-1), draft.double().softmax(-1)
    ratio = (p / q).gather(-1, x.long()[..., None])[..., 0]
    carry, total = torch.ones(len(x), dtype=torch.float64), 0.0
    for i in range(case.K):
        carry = (carry * ratio[:, i]).clamp(max=1)
        total += float((chance * carry).sum())
    return total


@pytest.mark.parametrize("vocab, K", [(4, 2), (3, 3), (2, 3)])
def test_expected_acceptance_and_block_is_never_worse(vocab, K):
    for seed in range(3):
        case = Case(vocab, K, 20 + seed)
        token, block = law_of(case, rule="token")[1], law_of(case, rule="block")[1]
        assert abs(token - expected_accepted_token(case)) < 1e-6
        assert abs(block - expected_accepted_block(case)) < 1e-6
        assert block >= token - 1e-9


def test_block_equals_token_for_a_greedy_drafter():
    case = Case(4, 3, 5)
    assert (
        abs(
            law_of(case, rule="token", drafter="greedy")[1]
            - law_of(case, rule="block", drafter="greedy")[1]
        )
        < 1e-9
    )


@pytest.mark.parametrize("rule", ["token", "block"])
def test_equal_laws_accept_everything(rule):
    case = Case(4, 2, 1)
    case.q = case.p
    x, _, target, draft = case.drafts()
    for u in (0.0, 0.5, 1 - EPS):
        verdict = accept(
            x, target, draft, torch.full((len(x), 3), u, dtype=torch.float64), 2, rule=rule
        )
        assert (verdict.accepted == 2).all()


@pytest.mark.parametrize("rule", ["token", "block"])
def test_disjoint_supports_accept_nothing(rule):
    case = Case(4, 2, 1)
    for prefix in case.p:
        case.p[prefix][2:], case.q[prefix][:2] = -torch.inf, -torch.inf
    x, chance, target, draft = case.drafts()
    x, target, draft = x[chance > 0], target[chance > 0], draft[chance > 0]
    verdict = accept(x, target, draft, torch.zeros(len(x), 3, dtype=torch.float64), 2, rule=rule)
    assert (verdict.accepted == 0).all()  # p(x) = 0 is rejected even by u = 0
    assert (verdict.next_token < 2).all()


def test_greedy_mode_is_exact_match():
    case = Case(4, 2, 9)
    x, _, target, draft = case.drafts()
    best = target.argmax(-1)
    verdict = accept(x, target, draft, torch.rand(len(x), 3, dtype=torch.float64), 2, rule="greedy")
    match = (x.long() == best[:, :2]).int().cumprod(1).sum(1)
    assert torch.equal(verdict.accepted.long(), match)
    assert torch.equal(verdict.next_token.long(), best.gather(1, match[:, None])[:, 0])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "how",
    [
        dict(),
        dict(rule="block"),
        dict(drafter="greedy"),
        dict(mix=0.3),
        dict(rule="block", mix=0.3),
    ],
    ids=str,
)
def test_each_backend_breaks_where_the_reference_does(how, backend):
    """At every threshold of the reference's law, on both sides: so its law is the same, to the
    margin."""
    x, _, target, draft = Case(2 if env.triton_interpreter() else 3, 2, 13).drafts()
    rows, uniforms = breakpoints(x, target, draft, 2, 1e-5, backend="reference", **how)
    want, got = (
        accept(x[rows], target[rows], draft[rows], uniforms, 2, backend=name, **how)
        for name in ("reference", backend)
    )
    assert len(set(zip(want.accepted.tolist(), want.next_token.tolist()))) >= 5
    assert torch.equal(got.accepted, want.accepted) and torch.equal(got.next_token, want.next_token)


@pytest.mark.slow
@pytest.mark.parametrize("backend", OPS["accept_drafts"].backends)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_million_draws_follow_the_law(rule, backend):
    """The first token that a pass emits, over 64 ids, drafts and uniforms from the generator:
    G-test, seeds fixed."""
    if backend == "triton" and env.triton_interpreter():
        pytest.skip("a million requests are too many for the interpreter")
    runs, vocab, K, part = 1_000_000, 64, 2, 50_000
    generator = torch.Generator().manual_seed(1)
    target = 1.5 * torch.randn(1, K + 1, vocab, generator=generator)
    draft = target[:, :K] + torch.randn(1, K, vocab, generator=generator)
    counts, accepted = torch.zeros(vocab), 0
    for first in range(0, runs, part):
        step = dict(
            seed=torch.arange(first, first + part),
            position=torch.full((part,), 7, dtype=torch.int32),
        )
        sampling, length = Sampling(torch.ones(part)), torch.full((part,), K, dtype=torch.int32)
        q = draft.expand(part, -1, -1)
        x, _ = run_by(ops.sample_drafts, backend, q, length, drafter_sampling=sampling, **step)
        verdict = run_by(
            ops.accept_drafts,
            backend,
            target.expand(part, -1, -1),
            x,
            length,
            torch.ones(part, 1, dtype=torch.int32),
            K + 1,
            target_sampling=sampling,
            draft_logits=q,
            rule=rule,
            **step,
        )
        counts += torch.bincount(
            torch.where(verdict.accepted > 0, x[:, 0], verdict.next_token), minlength=vocab
        )
        accepted += int(verdict.accepted.sum())
    expected = target[0, 0].double().softmax(0) * runs
    g = float(2 * torch.xlogy(counts.double(), counts / expected).sum())
    print(
        f"{rule}, {backend}: G = {g:.1f} over {vocab - 1} degrees of freedom; "
        f"{accepted / runs:.2f} drafts accepted"
    )
    assert expected.min() > 5 and 0.5 * runs < accepted < 1.9 * runs
    assert g < 120  # chi2(63) exceeds it with probability 2e-5


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
@pytest.mark.parametrize("base", [0.0, 23.7, 333.0])
@pytest.mark.parametrize("temperature", [1e-12, 1e-9, 1e-8, 1e-5, 1e-3, 1.0, 1e3])
def test_lossless_through_draft_lse(temperature, base, backend):
    """Thresholds of one draft, drawn and judged at any temperature: equal logits share the mass,
    whatever their size. (Rounded to one float32, a normaliser of logits near 333
    is off by 1e-5 of 333 / temperature.)"""
    gaps = torch.tensor([0.0, 0.0, -1.0, -2.0])
    target, draft = base + gaps * temperature, base + gaps.flip(0) * temperature
    target[target < base] = target[target < base].clamp(max=base - 2e-5 * max(base, 1e-3))
    vocab = 4
    one = dict(temperature=torch.full((vocab,), temperature))
    sampling = Sampling(one["temperature"])
    step = dict(
        seed=torch.zeros(vocab, dtype=torch.int64), position=torch.zeros(vocab, dtype=torch.int32)
    )
    rows = draft.expand(vocab, 1, -1).contiguous()
    length = torch.ones(vocab, dtype=torch.int32)
    _, lse = ops.sample_drafts(rows, length, drafter_sampling=sampling, backend=backend, **step)
    p = ((target.double() - target.max()) / one["temperature"][0].double()).softmax(0)
    q = ((draft.double() - draft.max()) / one["temperature"][0].double()).softmax(0)
    judged = target.expand(vocab, 2, -1).contiguous()
    tokens = torch.arange(vocab, dtype=torch.int32)[:, None]

    def kept(u):
        uniforms = torch.stack([u, torch.zeros_like(u)], 1)
        verdict = ops.accept_drafts(
            judged,
            tokens,
            length,
            torch.ones(vocab, 1, dtype=torch.int32),
            2,
            target_sampling=sampling,
            draft_logits=rows,
            draft_lse=lse,
            uniforms=uniforms,
            backend=backend,
            **step,
        )
        assert (verdict.status == 0).all()
        return verdict.accepted > 0

    # both sides of the threshold of u below which a draft is kept
    threshold = torch.where(q > 0, (p / q).clamp(max=1), 1.0)
    drawn = q > 1e-12
    below, above = threshold - 1e-6, threshold + 1e-6
    assert kept(below.clamp(min=0))[drawn & (below >= 0)].all()
    assert not kept(above.clamp(max=1 - 2**-53))[drawn & (above < 1)].any()
