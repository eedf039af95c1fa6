"""Planned branches equal the best of all branch sets, found by trying each; and, where these are
too many, the reference's."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import device_of, rows_apart

from blockdraft import env, ops
from blockdraft.ops.plan_branches import MOST_DRAFTS
from blockdraft.registry import OPS
from blockdraft.testing import poisoned

BACKENDS = list(OPS["plan_branches"].backends)
FAST = [name for name in BACKENDS if name != "reference"]
SLOW = env.triton_interpreter()


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
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_brute_force(K, M, P, backend):
    generator, device = torch.Generator().manual_seed(K * 100 + M * 10 + P), device_of(backend)
    accept, mask = torch.rand(20, K, generator=generator), torch.rand(K, M, generator=generator)
    length = torch.randint(-1, K + 1, (20,), generator=generator).int()
    given = accept.to(device), mask.to(device), P, length.to(device)
    plan = ops.plan_branches(*given, backend=backend)
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


@st.composite
def cases(draw):
    K = draw(st.integers(0, 9 if SLOW else MOST_DRAFTS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, masks = draw(st.integers(1, 3 if SLOW else 40)), draw(st.integers(1, K + 3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    accept, mask = (torch.rand(*n, generator=generator).to(dtype) for n in ((batch, K), (K, masks)))
    if draw(st.booleans()):  # certain and impossible drafts
        accept, mask = accept.round(), (3 * mask).clamp(max=1)
    length = torch.randint(-1, K + 1, (batch,), generator=generator).int()
    return accept, mask, draw(st.integers(1, K + 3)), length


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=15 if SLOW else 200, deadline=None, derandomize=True)
@given(case=cases())
def test_worth_as_much_as_the_reference_s(case, backend):
    """Of equally good sets any will do: sums are in another order."""
    accept, mask, P, length = case
    device = device_of(backend)
    inputs = [rows_apart(t).to(device) for t in (accept, mask)]
    out = poisoned(len(accept), P, dtype=torch.int32, device=device)
    ops.plan_branches(*inputs, P, length.to(device), out=out, backend=backend)
    expected = ops.plan_branches(accept, mask, P, length, backend="reference")
    chances, rates, K = accept.double().tolist(), mask.double().tolist(), accept.shape[1]
    for b, (mine, theirs) in enumerate(zip(out.tolist(), expected.tolist())):
        chosen, best = ([c for c in branches if c != -1] for branches in (mine, theirs))
        assert mine == chosen + [-1] * (P - len(chosen)) and chosen == sorted(set(chosen))
        D = int(length[b])
        assert all(1 <= c <= D + 1 for c in chosen)
        worth = [value(branches, chances[b], rates, D, K) for branches in (chosen, best)]
        assert worth[0] == pytest.approx(worth[1], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("backend", FAST)
def test_too_many_drafts_for_a_kernel(backend):
    drafts = MOST_DRAFTS + 1
    call = torch.rand(1, drafts), torch.rand(drafts, 3), 2, torch.tensor([5]).int()
    with pytest.raises(ValueError, match=f"at most {MOST_DRAFTS} drafts, not {drafts}"):
        ops.plan_branches(*call, backend=backend)
    assert ops.plan_branches(*call).shape == (1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "accept, expected",
    [(0.0, [1, -1, -1]), (1.0, [5, -1, -1])],
)
def test_a_branch_that_gains_nothing_is_left_out(accept, expected, backend):
    device = device_of(backend)
    chances, rates = torch.full((1, 4), accept, device=device), torch.full((4, 5), 0.5).to(device)
    length = torch.tensor([4], dtype=torch.int32, device=device)
    plan = ops.plan_branches(chances, rates, 3, length, backend=backend)
    assert plan.tolist() == [expected]
