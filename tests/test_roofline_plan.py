"""Branches for the steady state: against brute force that walks the process itself, and against
simulation."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from blockdraft.reference.plan_branches import plan_branches as one_pass
from blockdraft.roofline import devices, models, plan, simulate
from blockdraft.roofline.acceptance import (
    Acceptance,
    bimodal,
    from_options,
    histogram,
    iid,
    solve_alpha,
)
from blockdraft.roofline.workload import Workload

BIMODAL = histogram(bimodal(), 17)
DECAY = iid(0.9, 16, 17, [1 - 0.03 * o for o in range(17)])


def walk(acceptance, branches, passes=3000):
    """Tokens a pass, by following the share of each shift pass by pass as the decoder's rules
    read."""
    M = len(acceptance.offsets)
    K = len(acceptance.drafts)
    state = {M - 1: 1.0}
    total = 0.0
    for step in range(2 * passes):
        following = {}
        for shift, share in state.items():
            D = max(0, min(M - 1 - shift, K))
            live = {min(c, D + 1) for c in branches}
            reached = share
            for a in range(D + 1):
                go_on = acceptance.drafts[a] * acceptance.offsets[shift + 1 + a] if a < D else 0.0
                p = reached * (1 - go_on)
                reached *= go_on
                total += p * (a + 1) * (step >= passes)
                fitting = [c for c in live if c <= a + 1]
                after = min(a + 1 - max(fitting), M - 1) if fitting else M - 1
                following[after] = following.get(after, 0.0) + p
        state = {s: p for s, p in following.items() if p > 0}
    return total / passes


def random_acceptance(seed, K, M):
    rng = np.random.default_rng(seed)
    return Acceptance(tuple(rng.uniform(0.2, 1, K)), tuple(rng.uniform(0.5, 1, M)))


@pytest.mark.parametrize(
    "K, M, P, seed",
    [
        (3, 4, 1, 0),
        (3, 4, 2, 1),
        (4, 5, 2, 2),
        (4, 7, 2, 3),
        (5, 4, 3, 4),
        (5, 6, 3, 5),
        (2, 3, 3, 6),
    ],
)
def test_best_branches_equal_brute_force(K, M, P, seed):
    acceptance = random_acceptance(seed, K, M)
    brute = max(walk(acceptance, branches, 300) for branches in combinations(range(1, K + 2), P))
    found, exact = plan.best_branches(acceptance, P)
    assert exact and found.tokens_per_pass == pytest.approx(brute, rel=1e-6)
    searched, exact = plan.best_branches(acceptance, P, exhaustive=0)
    assert not exact and searched.tokens_per_pass == pytest.approx(brute, rel=1e-6)


@pytest.mark.parametrize("P", [2, 3])
def test_search_without_proof_equals_the_exhaustive_one(P):
    for seed in range(12):
        acceptance = random_acceptance(seed, 10, 11)
        searched, _ = plan.best_branches(acceptance, P, exhaustive=0)
        best, _ = plan.best_branches(acceptance, P)
        assert searched.tokens_per_pass == pytest.approx(best.tokens_per_pass, rel=2e-3)


@pytest.mark.parametrize(
    "acceptance",
    [
        BIMODAL,
        DECAY,
        iid(solve_alpha(4.6, 16), 16, 17),
        random_acceptance(9, 15, 16),
    ],
    ids=["bimodal", "offsets", "mean 4.6", "tidar"],
)
@pytest.mark.parametrize("P", [1, 3])
def test_expected_tokens_agree_with_a_million_simulated_passes(acceptance, P):
    steady, _ = plan.best_branches(acceptance, P)
    simulated = simulate.tokens_per_pass(acceptance, steady.branches, 1_000_000)
    assert simulated == pytest.approx(steady.tokens_per_pass, rel=5e-3)


@pytest.mark.parametrize("levels", [(0, 6, 16), (0, 2, 5, 10, 16)])
def test_bimodal_acceptance_beats_the_hand_found_levels(levels):
    """27 % none, 28 % all, 3 % each between. A level is a branch - 1."""
    assert sum(bimodal()) == pytest.approx(1)
    assert bimodal()[1] == pytest.approx(0.03)
    hand = tuple(level + 1 for level in levels)
    best, exact = plan.best_branches(BIMODAL, len(levels))
    assert exact and best.tokens_per_pass >= plan.steady_state(BIMODAL, hand).tokens_per_pass
    simulated = simulate.tokens_per_pass(BIMODAL, best.branches)
    assert simulated >= simulate.tokens_per_pass(BIMODAL, hand)


def test_simple_cases_by_hand():
    certain = iid(1.0, 4, 5)
    assert plan.steady_state(certain, (1, 2, 3, 4, 5)).tokens_per_pass == pytest.approx(5)
    # always all 4, always branch 5
    assert plan.steady_state(certain, (5,)).tokens_per_pass == pytest.approx(5)
    # drafts 0 -> branch 1, shift 0 -> 4 drafts, shift 4 -> 0 drafts, ...: 1 and 5 in turn
    assert plan.steady_state(certain, (1,)).tokens_per_pass == pytest.approx(3)
    assert plan.steady_state(iid(0.0, 4, 5), (1, 5)).tokens_per_pass == pytest.approx(1)
    every = plan.steady_state(iid(0.7, 16, 17), range(1, 18))
    assert every.tokens_per_pass == pytest.approx((1 - 0.7**17) / 0.3)
    assert every.mean_drafts == pytest.approx(16)
    assert plan.steady_state(certain, ()).tokens_per_pass == pytest.approx(1)


def test_acceptance_forms():
    assert solve_alpha(4.6, 16) == pytest.approx(0.786, abs=5e-4)
    assert solve_alpha(7.7, 16) == pytest.approx(0.887, abs=5e-4)
    counted = histogram([5, 1, 0, 4], 4)
    assert counted.distribution(0) == pytest.approx([0.5, 0.1, 0.0, 0.4])
    assert counted.distribution(1) == pytest.approx([0.5, 0.1, 0.4])
    fading = from_options(3, 4, offsets=[1, 0.9, 0.8, 0.7])
    assert fading.distribution(1) == pytest.approx([0.2, 0.8 * 0.3, 0.8 * 0.7])


def test_offsets_mean_what_plan_branches_takes_them_for():
    """Looking one pass ahead from a full draft, `plan_branches` and this acceptance order the
    branches alike."""
    import torch

    offsets = [1.0, 0.95, 0.9, 0.5, 0.3, 0.2]
    acceptance = from_options(5, 6, offsets=offsets)
    first = Acceptance((0.6,) * 5, (1.0,) * 6).distribution(0)

    def ahead(branches):
        """Mean number of drafts that the next pass accepts."""
        total = 0.0
        for a, p in enumerate(first):
            fitting = [c for c in branches if c <= a + 1]
            if fitting:
                following = acceptance.distribution(a + 1 - max(fitting))
                total += p * sum(n * q for n, q in enumerate(following))
        return total

    for P in (1, 2, 3):
        accepted = torch.full((1, 5), 0.6)
        planned = one_pass(accepted, torch.tensor(offsets).expand(5, -1), P, torch.tensor([5]))
        chosen = planned[0].tolist()
        assert ahead(chosen) == pytest.approx(max(map(ahead, combinations(range(1, 7), P))))


def test_plan_takes_time_from_the_cost_model():
    rates = devices.ceilings(devices.load()["MI355X"], "bf16", "achieved")
    work = Workload(models.find("ZAYA1-8B"), 16, 8192, branches=())
    options = plan.plan(work, plan.candidates(BIMODAL, range(4)), rates)
    assert [len(o.steady.branches) for o in options] == [0, 1, 2, 3]
    assert options[0].steady.tokens_per_pass == 1
    assert all(fewer.pass_seconds < more.pass_seconds for fewer, more in pairwise(options))
    for o in options:
        assert o.tokens_per_s == pytest.approx(16 * o.steady.tokens_per_pass / o.pass_seconds)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: from_options(4, 5, mean=9), "mean: expected 1 .. 5 tokens"),
        (
            lambda: from_options(4, 5, mean=2, alpha=0.5),
            "expected one of mean, alpha, histogram, mixture, got mean and alpha",
        ),
        (lambda: from_options(4, 5, counts=[1, 2]), "histogram: expected 5 frequencies"),
        (
            lambda: from_options(4, 5, alpha=float("nan")),
            "alpha: expected a probability",
        ),
        (lambda: histogram([0, 0], 2), "histogram: expected"),
        (lambda: iid(0.5, 4, 5, [1, 1]), "offsets: expected 5 numbers"),
        (lambda: iid(0.5, 4, 5, [1, 1, 1, 1, 2]), "offsets: expected probabilities"),
        (lambda: plan.best_branches(BIMODAL, 18), "proposals: expected 0 .. 17"),
        (lambda: plan.steady_state(BIMODAL, (0,)), r"branches: expected integers in 1..17"),
        (lambda: simulate.tokens_per_pass(BIMODAL, (1,), 3), "simulate: expected 1000"),
    ],
)
def test_absurd_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
