"""The laws of acceptance, by exact enumeration: thresholds are found by bisecting explicit uniforms, not assumed."""

import itertools
import math

import pytest
import torch

from blockdraft import Sampling, ops

EPS = 2.0**-40


class Case:
    """Random conditional laws: target p(. | prefix) and draft q(. | prefix) for every prefix of up to K tokens."""

    def __init__(self, vocab, K, seed, sharp=1.5):
        generator = torch.Generator().manual_seed(seed)
        self.vocab, self.K = vocab, K
        self.p, self.q = ({prefix: sharp * torch.randn(vocab, generator=generator) for n in range(K + 1)
                           for prefix in itertools.product(range(vocab), repeat=n)} for _ in range(2))

    def drafts(self, draws=True):
        """All draft tuples, their probability under q, and the logits rows they see."""
        tuples = list(itertools.product(range(self.vocab), repeat=self.K))
        target = torch.stack([torch.stack([self.p[x[:i]] for i in range(self.K + 1)]) for x in tuples])
        draft = torch.stack([torch.stack([self.q[x[:i]] for i in range(self.K)]) for x in tuples]) if self.K else \
            torch.zeros(1, 0, self.vocab)
        x = torch.tensor(tuples, dtype=torch.int32).reshape(len(tuples), self.K)
        chance = draft.double().softmax(-1).gather(-1, x.long()[..., None])[..., 0].prod(1)
        return x, chance, target, draft


def accept(x, target, draft, uniforms, D, mode="token", law="sampled", mix=None, backend=None, **kwargs):
    n = len(x)
    ones = torch.ones(n)
    return ops.accept_drafts(
        target, x, torch.full((n,), D, dtype=torch.int32), torch.ones(n, 1, dtype=torch.int32), target.shape[1],
        seed=torch.zeros(n, dtype=torch.int64), position=torch.zeros(n, dtype=torch.int32), target=Sampling(ones),
        draft_logits=draft, law=law, mode=mode, mix=None if mix is None else mix * ones, uniforms=uniforms, backend=backend,
        **kwargs)


def bisect(predicate, n):
    """Per row, the measure of {u : predicate(u)} for a predicate that holds below a threshold and fails above."""
    low, high = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    high = torch.where(predicate(high - EPS), torch.full_like(high, 2.0), high)
    low = torch.where(predicate(low), low, torch.full_like(low, -1.0))
    certain, never = high == 2, low == -1
    low, high = low.clamp(min=0), high.clamp(max=1)
    for _ in range(40):
        middle = (low + high) / 2
        yes = predicate(middle)
        low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
    return torch.where(certain, 1.0, torch.where(never, 0.0, low))


def outcomes(x, target, draft, D, **how):
    """For every draft tuple: (index, a, y, probability), exactly."""
    n, K = x.shape
    base = torch.full((n, K + 1), 1 - EPS, dtype=torch.float64)
    thresholds = []
    for i in range(D):
        def passes(u, i=i):
            uniforms = base.clone()
            uniforms[:, :i], uniforms[:, i] = 0, u
            return accept(x, target, draft, uniforms, D, **how).accepted > i
        thresholds.append(bisect(passes, n))
    for flags in itertools.product((True, False), repeat=D):
        uniforms, weight = base.clone(), torch.ones(n, dtype=torch.float64)
        for i, taken in enumerate(flags):
            t = thresholds[i]
            uniforms[:, i] = (t / 2 if taken else (1 + t) / 2).clamp(max=1 - EPS)
            weight = weight * (t if taken else 1 - t)
        a = accept(x, target, draft, uniforms, D, **how).accepted
        below = torch.zeros(n, dtype=torch.float64)
        for y in range(target.shape[-1]):
            def drawn(u, y=y):
                uniforms[:, K] = u
                return accept(x, target, draft, uniforms, D, **how).next_token <= y
            upto = bisect(drawn, n)
            for b in range(n):
                chance = float(weight[b] * (upto[b] - below[b]))
                if chance > 0:
                    yield b, int(a[b]), y, chance
            below = upto


def law_of(case, D=None, rows=None, **how):
    """Law of the first D+1 tokens: what acceptance emits, completed by the target; and E[accepted]."""
    D = case.K if D is None else D
    x, chance, target, draft = case.drafts()
    if how.get("law") == "greedy":
        chance = torch.full_like(chance, 0.0).index_fill(0, torch.tensor([len(x) // 3]), 1.0)
    step = rows or (lambda prefix: case.p[prefix].double().softmax(0))
    total, mean = {}, 0.0
    for b, a, y, weight in outcomes(x, target, draft, D, **how):
        weight *= float(chance[b])
        mean += weight * a
        emitted = (*x[b, :a].tolist(), y)
        frontier = {emitted: weight}
        while len(next(iter(frontier))) <= D:
            frontier = {(*s, z): w * float(step(s)[z]) for s, w in frontier.items() for z in range(case.vocab)}
        for s, w in frontier.items():
            total[s] = total.get(s, 0.0) + w
    return total, mean


def expected_law(case, D, step=None):
    step = step or (lambda prefix: case.p[prefix].double().softmax(0))
    return {s: math.prod(float(step(s[:i])[s[i]]) for i in range(D + 1))
            for s in itertools.product(range(case.vocab), repeat=D + 1)}


def distance(a, b):
    return max(abs(a.get(s, 0.0) - b.get(s, 0.0)) for s in set(a) | set(b))


@pytest.mark.parametrize("mode", ["token", "block"])
@pytest.mark.parametrize("vocab, K, D", [(4, 2, 2), (3, 3, 3), (2, 3, 3), (4, 1, 1), (3, 3, 1), (3, 2, 0), (4, 0, 0)])
def test_lossless(vocab, K, D, mode):
    for seed in range(2):
        case = Case(vocab, K, seed)
        law, mean = law_of(case, D, mode=mode)
        assert distance(law, expected_law(case, D)) < 1e-6
        assert D == 0 or 0 < mean < D


@pytest.mark.parametrize("mode", ["token", "block"])
def test_greedy_drafter_is_lossless(mode):
    case = Case(4, 2, 7)
    law, _ = law_of(case, mode=mode, law="greedy")
    x, _, _, _ = case.drafts()
    assert distance(law, expected_law(case, 2)) < 1e-6


@pytest.mark.parametrize("mode", ["token", "block"])
@pytest.mark.parametrize("w", [0.0, 0.3, 0.8])
def test_mixed_law_with_an_unmixed_bonus(w, mode):
    case = Case(3, 2, 11)

    def step(prefix):
        if len(prefix) == case.K:
            return case.p[prefix].double().softmax(0)
        return (w * case.p[prefix].double() + (1 - w) * case.q[prefix].double()).softmax(0)

    law, _ = law_of(case, mode=mode, mix=w, rows=step)
    assert distance(law, expected_law(case, 2, step)) < 1e-6


def test_mix_of_one_is_bit_identical():
    case = Case(4, 2, 3)
    x, _, target, draft = case.drafts()
    draft[:, :, 1] = -torch.inf  # 0 * -inf must not reach the law
    uniforms = torch.rand(len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = accept(x, target, draft, uniforms, 2, with_logprob=True)
    mixed = accept(x, target, draft, uniforms, 2, mix=1.0, with_logprob=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed))


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
        token, block = law_of(case, mode="token")[1], law_of(case, mode="block")[1]
        assert abs(token - expected_accepted_token(case)) < 1e-6
        assert abs(block - expected_accepted_block(case)) < 1e-6
        assert block >= token - 1e-9


def test_block_equals_token_for_a_greedy_drafter():
    case = Case(4, 3, 5)
    assert abs(law_of(case, mode="token", law="greedy")[1] - law_of(case, mode="block", law="greedy")[1]) < 1e-9


@pytest.mark.parametrize("mode", ["token", "block"])
def test_equal_laws_accept_everything(mode):
    case = Case(4, 2, 1)
    case.q = case.p
    x, _, target, draft = case.drafts()
    for u in (0.0, 0.5, 1 - EPS):
        verdict = accept(x, target, draft, torch.full((len(x), 3), u, dtype=torch.float64), 2, mode=mode)
        assert (verdict.accepted == 2).all()


@pytest.mark.parametrize("mode", ["token", "block"])
def test_disjoint_supports_accept_nothing(mode):
    case = Case(4, 2, 1)
    for prefix in case.p:
        case.p[prefix][2:], case.q[prefix][:2] = -torch.inf, -torch.inf
    x, chance, target, draft = case.drafts()
    x, target, draft = x[chance > 0], target[chance > 0], draft[chance > 0]
    verdict = accept(x, target, draft, torch.zeros(len(x), 3, dtype=torch.float64), 2, mode=mode)
    assert (verdict.accepted == 0).all()  # p(x) = 0 is rejected even by u = 0
    assert (verdict.next_token < 2).all()


def test_greedy_mode_is_exact_match():
    case = Case(4, 2, 9)
    x, _, target, draft = case.drafts()
    best = target.argmax(-1)
    verdict = accept(x, target, draft, torch.rand(len(x), 3, dtype=torch.float64), 2, mode="greedy")
    match = (x.long() == best[:, :2]).int().cumprod(1).sum(1)
    assert torch.equal(verdict.accepted.long(), match)
    assert torch.equal(verdict.next_token.long(), best.gather(1, match[:, None])[:, 0])
