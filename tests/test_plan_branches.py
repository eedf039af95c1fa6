"""Planned branches equal the best of all branch sets, found by trying each."""

import itertools

import pytest
import torch

from blockdraft import ops


def value(branches, accept, mask, D, K):
    """Expected drafts accepted in the pass after the next, if it is drafted from `branches`."""
    M, total = len(mask[0]) if K else 0, 0.0
    for a in range(D + 1):
        chance = 1.0
        for i in range(a):
            chance *= accept[i]
        if a < D:
            chance *= 1 - accept[a]
        fits = [c for c in branches if c <= a + 1]
        if not fits:
            continue
        shift = a + 1 - max(fits)
        run, gain = 1.0, 0.0
        for i in range(min(max(M - 1 - shift, 0), K)):
            run *= mask[i][shift + 1 + i]
            gain += run
        total += chance * gain
    return total


@pytest.mark.parametrize(
    "K, M, P", [(4, 5, 1), (4, 5, 2), (5, 6, 3), (3, 4, 4), (4, 3, 2), (3, 6, 5), (0, 4, 2)]
)
def test_equals_brute_force(K, M, P):
    generator = torch.Generator().manual_seed(K * 100 + M * 10 + P)
    accept, mask = torch.rand(20, K, generator=generator), torch.rand(K, M, generator=generator)
    length = torch.randint(-1, K + 1, (20,), generator=generator).int()
    plan = ops.plan_branches(accept, mask, P, length)
    assert plan.shape == (20, P)
    for b in range(20):
        D = int(length[b])
        chosen = [c for c in plan[b].tolist() if c > 0]
        assert chosen == sorted(set(chosen)) and all(c <= D + 1 for c in chosen)
        best = (
            max(
                value(s, accept[b].double().tolist(), mask.double().tolist(), D, K)
                for r in range(min(P, D + 1) + 1)
                for s in itertools.combinations(range(1, D + 2), r)
            )
            if D >= 0
            else 0.0
        )
        assert (
            abs(value(chosen, accept[b].double().tolist(), mask.double().tolist(), D, K) - best)
            < 1e-9
        )


def test_no_proposals():
    assert ops.plan_branches(torch.rand(3, 4), torch.rand(4, 5), 0, torch.zeros(3).int()).shape == (
        3,
        0,
    )
