"""Branches for the steady state: against brute force that walks the process itself, and against
simulation."""

from itertools import combinations

import numpy as np
import pytest

from blockdraft.reference.plan_branches import plan_branches as one_pass
from blockdraft.roofline import acceptance, devices, models, plan, simulate
from blockdraft.roofline.step import Workload

BIMODAL = acceptance.histogram(acceptance.bimodal(), 17)
DECAY = acceptance.iid(0.9, 16, 17, [1 - 0.03 * o for o in range(17)])


def walk(law, branches, passes=3000):
    """Tokens a pass by following the law of the shift pass by pass, each pass as the decoder's
    rules read."""
    M, K = len(law.offsets), len(law.drafts)
    state, total = {M - 1: 1.0}, 0.0
    for step in range(2 * passes):
        following = {}
        for shift, share in state.items():
            D, alive = max(0, min(M - 1 - shift, K)), 1.0
            live = {min(c, D + 1) for c in branches}
            for a in range(D + 1):
                go_on = law.drafts[a] * law.offsets[shift + 1 + a] if a < D else 0.0
                p, alive = share * alive * (1 - go_on), alive * go_on
                total += p * (a + 1) * (step >= passes)
                fitting = [c for c in live if c <= a + 1]
                after = min(a + 1 - max(fitting), M - 1) if fitting else M - 1
                following[after] = following.get(after, 0.0) + p
        state = {s: p for s, p in following.items() if p > 0}
    return total / passes


def random_law(seed, K, M):
    rng = np.random.default_rng(seed)
    return acceptance.Acceptance(tuple(rng.uniform(0.2, 1, K)), tuple(rng.uniform(0.5, 1, M)))


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
    law = random_law(seed, K, M)
    brute = max(walk(law, branches, 300) for branches in combinations(range(1, K + 2), P))
    found, exact = plan.best_branches(law, P)
    assert exact and found.tokens_per_pass == pytest.approx(brute, rel=1e-6)
    searched, exact = plan.best_branches(law, P, exhaustive=0)
    assert not exact and searched.tokens_per_pass == pytest.approx(brute, rel=1e-6)


@pytest.mark.parametrize("P", [2, 3])
def test_search_without_proof_equals_the_exhaustive_one(P):
    for seed in range(12):
        law = random_law(seed, 10, 11)
        assert plan.best_branches(law, P, exhaustive=0)[0].tokens_per_pass == pytest.approx(
            plan.best_branches(law, P)[0].tokens_per_pass, rel=2e-3
        )


@pytest.mark.parametrize(
    "law",
    [
        BIMODAL,
        DECAY,
        acceptance.iid(acceptance.solve_alpha(4.6, 16), 16, 17),
        random_law(9, 15, 16),
    ],
    ids=["bimodal", "offsets", "mean 4.6", "tidar"],
)
@pytest.mark.parametrize("P", [1, 3])
def test_expected_tokens_agree_with_a_million_simulated_passes(law, P):
    steady, _ = plan.best_branches(law, P)
    assert simulate.tokens_per_pass(law, steady.branches, 1_000_000) == pytest.approx(
        steady.tokens_per_pass, rel=5e-3
    )


@pytest.mark.parametrize("levels", [(0, 6, 16), (0, 2, 5, 10, 16)])
def test_bimodal_acceptance_beats_the_hand_found_levels(levels):
    """27 % none, 28 % all, 3 % each between. A level is a branch - 1."""
    assert sum(acceptance.bimodal()) == pytest.approx(1) and acceptance.bimodal()[
        1
    ] == pytest.approx(0.03)
    hand = tuple(level + 1 for level in levels)
    best, exact = plan.best_branches(BIMODAL, len(levels))
    assert exact and best.tokens_per_pass >= plan.steady_state(BIMODAL, hand).tokens_per_pass
    assert simulate.tokens_per_pass(BIMODAL, best.branches) >= simulate.tokens_per_pass(
        BIMODAL, hand
    )


def test_simple_cases_by_hand():
    certain = acceptance.iid(1.0, 4, 5)
    assert plan.steady_state(certain, (1, 2, 3, 4, 5)).tokens_per_pass == pytest.approx(5)
    # always all 4, always branch 5
    assert plan.steady_state(certain, (5,)).tokens_per_pass == pytest.approx(5)
    # drafts 0 -> branch 1, shift 0 -> 4 drafts, shift 4 -> 0 drafts, ...: 1 and 5 in turn
    assert plan.steady_state(certain, (1,)).tokens_per_pass == pytest.approx(3)
    assert plan.steady_state(acceptance.iid(0.0, 4, 5), (1, 5)).tokens_per_pass == pytest.approx(1)
    every = plan.steady_state(acceptance.iid(0.7, 16, 17), range(1, 18))
    assert every.tokens_per_pass == pytest.approx(
        (1 - 0.7**17) / 0.3
    ) and every.mean_drafts == pytest.approx(16)
    assert plan.steady_state(certain, ()).tokens_per_pass == pytest.approx(1)


def test_acceptance_forms():
    assert acceptance.solve_alpha(4.6, 16) == pytest.approx(0.786, abs=5e-4)
    assert acceptance.solve_alpha(7.7, 16) == pytest.approx(0.887, abs=5e-4)
    counts = [5, 1, 0, 4]
    law = acceptance.histogram(counts, 4)
    assert law.law(0) == pytest.approx([0.5, 0.1, 0.0, 0.4]) and law.law(1) == pytest.approx(
        [0.5, 0.1, 0.4]
    )
    assert acceptance.from_options(3, 4, offsets=[1, 0.9, 0.8, 0.7]).law(1) == pytest.approx(
        [0.2, 0.8 * 0.3, 0.8 * 0.7]
    )


def test_offsets_mean_what_plan_branches_takes_them_for():
    """Looking one pass ahead from a full draft, `plan_branches` and this law order the branches
    alike."""
    import torch

    offsets = [1.0, 0.95, 0.9, 0.5, 0.3, 0.2]
    law = acceptance.from_options(5, 6, offsets=offsets)
    first = acceptance.Acceptance((0.6,) * 5, (1.0,) * 6).law(0)

    def ahead(branches):
        total = 0.0
        for a, p in enumerate(first):
            fitting = [c for c in branches if c <= a + 1]
            total += (
                p * sum(n * q for n, q in enumerate(law.law(a + 1 - max(fitting))))
                if fitting
                else 0.0
            )
        return total

    for P in (1, 2, 3):
        chosen = one_pass(torch.full((1, 5), 0.6), torch.tensor(offsets), P, torch.tensor([5]))[
            0
        ].tolist()
        assert ahead(chosen) == pytest.approx(max(map(ahead, combinations(range(1, 7), P))))


def test_plan_takes_time_from_the_cost_model():
    rates = devices.ceilings(devices.load()["MI355X"], "bf16", "achieved")
    work = Workload(models.find("ZAYA1-8B"), 16, 8192, branches=())
    options = plan.plan(work, plan.candidates(BIMODAL, range(4)), rates)
    assert [len(o.steady.branches) for o in options] == [0, 1, 2, 3]
    assert options[0].steady.tokens_per_pass == 1 and all(
        a.pass_seconds < b.pass_seconds for a, b in zip(options, options[1:])
    )
    for o in options:
        assert o.tokens_per_s == pytest.approx(16 * o.steady.tokens_per_pass / o.pass_seconds)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: acceptance.from_options(4, 5, mean=9), "mean: expected 1 .. 5 tokens"),
        (
            lambda: acceptance.from_options(4, 5, mean=2, alpha=0.5),
            "expected one of mean, alpha, histogram, got mean and alpha",
        ),
        (lambda: acceptance.from_options(4, 5, counts=[1, 2]), "histogram: expected 5 frequencies"),
        (
            lambda: acceptance.from_options(4, 5, alpha=float("nan")),
            "alpha: expected a probability",
        ),
        (lambda: acceptance.histogram([0, 0], 2), "histogram: expected"),
        (lambda: acceptance.iid(0.5, 4, 5, [1, 1]), "offsets: expected 5 numbers"),
        (lambda: acceptance.iid(0.5, 4, 5, [1, 1, 1, 1, 2]), "offsets: expected probabilities"),
        (lambda: plan.best_branches(BIMODAL, 18), "proposals: expected 0 .. 17"),
        (lambda: plan.steady_state(BIMODAL, (0,)), r"branches: expected integers in 1..17"),
        (lambda: simulate.tokens_per_pass(BIMODAL, (1,), 3), "simulate: expected 1000"),
    ],
)
def test_absurd_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
