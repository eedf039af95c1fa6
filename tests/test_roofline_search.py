"""K, M, P and branches together: against every layout, one by one."""

from dataclasses import replace
from itertools import combinations

import pytest

from blockdraft.roofline import devices, models, plan, search, simulate
from blockdraft.roofline.acceptance import Acceptance, Mixture, by_offset, from_options, iid
from blockdraft.roofline.step import pass_seconds
from blockdraft.roofline.workload import Workload

MI300X = devices.ceilings(devices.load()["MI300X"], "bf16", "achieved")
WORK = Workload(models.find("ZAYA1-8B"), 16, 8192, branches=())
DECAYING = Acceptance(tuple(max(0.0, 0.95 - 0.073587 * i) for i in range(16)), (1.0,) * 17)
MIXED = Mixture(((0.4, iid(0.3, 16, 17)), (0.6, by_offset(iid(0.95, 16, 17)))))

KINDS = ["position", "offset", "mixture"]


def brute(work, accepting, limits):
    """Tokens per second of the best layout and set of branches."""
    plain = work.autoregressive()
    best = work.batch / pass_seconds(plain, MI300X), (0, 1, ())
    for K in range(1, limits.drafts + 1):
        for M in range(2, limits.mask_rows + 1):
            sized = accepting.resized(K, M)
            for P in range(1, min(limits.proposals, K + 1) + 1):
                for branches in combinations(range(1, K + 2), P):
                    tokens = plan.steady_state(sized, branches).tokens_per_pass
                    layout = replace(
                        work,
                        verify_rows=K + 1,
                        mask_rows=M,
                        branches=branches,
                        accepted=tokens - 1,
                    )
                    rate = work.batch * tokens / pass_seconds(layout, MI300X)
                    best = max(best, (rate, (K, M, branches)))
    return best


@pytest.mark.parametrize("accepting", [DECAYING, by_offset(DECAYING), MIXED], ids=KINDS)
@pytest.mark.parametrize("batch", [1, 16, 64])
def test_search_equals_brute_force(accepting, batch):
    work = replace(WORK, batch=batch)
    limits = search.Limits(4, 9, 3)
    found = search.search(work, accepting, MI300X, limits)[0]
    rate, layout = brute(work, accepting, limits)
    assert found.tokens_per_s == pytest.approx(rate, rel=1e-9)
    assert (found.drafts, found.mask_rows, found.steady.branches) == layout and found.exact


def test_no_pass_exceeds_the_bound():
    for accepting in (DECAYING, by_offset(DECAYING), MIXED, iid(1.0, 16, 17)):
        sized = accepting.resized(5, 7)
        most = search.full_tokens(sized)
        for count in (1, 3, 6):
            assert plan.best_branches(sized, count)[0].tokens_per_pass <= most + 1e-9


def test_fewer_drafts_beat_more_where_far_masks_are_worse():
    """Batch 16, 8k, MI300X: K = 5 yields 10 % more than the best P of K = 16."""
    far = by_offset(DECAYING)
    found = search.search(WORK, far, MI300X)[0]
    sixteen = plan.plan(WORK, plan.candidates(far, range(9)), MI300X)
    assert found.drafts == 5
    assert found.tokens_per_s > 1.1 * plan.best(sixteen).tokens_per_s
    simulated = simulate.tokens_per_pass(
        far.resized(found.drafts, found.mask_rows), found.steady.branches, 400_000
    )
    assert simulated == pytest.approx(found.steady.tokens_per_pass, rel=5e-3)


def test_a_best_at_a_limit_is_marked():
    certain = from_options(16, 17, alpha=1.0)
    found = search.search(WORK, certain, MI300X, search.Limits(4, 9, 2))
    assert "K" in found[0].capped and found[-1].steady.branches == ()
    free = search.search(WORK, from_options(16, 17), MI300X)
    assert free[0].capped == ()


@pytest.mark.parametrize(
    "limits, message",
    [
        (search.Limits(0), "max_drafts: expected 1 .. 64, got 0"),
        (search.Limits(4, 1), "max_mask_rows: expected 2 .. 128, got 1"),
        (search.Limits(4, 4, 0), "max_proposals: expected 1 .. 64, got 0"),
    ],
)
def test_absurd_limits(limits, message):
    with pytest.raises(ValueError, match=message):
        search.search(WORK, DECAYING, MI300X, limits)
