"""Acceptance attributed to position or mask offset, and mixtures of requests."""

from dataclasses import replace
from itertools import combinations

import pytest

from blockdraft.roofline import devices, models, plan, simulate
from blockdraft.roofline.acceptance import Acceptance, Mixture, by_offset, from_options, iid
from blockdraft.roofline.workload import Workload

MI300X = devices.ceilings(devices.load()["MI300X"], "bf16", "achieved")
# 0.95, 0.876, ... : 4.6 tokens a pass with 16 drafts
DECAYING = Acceptance(tuple(max(0.0, 0.95 - 0.073587 * i) for i in range(16)), (1.0,) * 17)


def as_histogram(accepting):
    return accepting.distribution(0)


def test_position_and_offset_differ_once_a_draft_is_shifted():
    """A law that decays, of mean 4.6: one proposal keeps 4.60 if a far mask is as good as a near
    one, and 3.28 if it is not."""
    reached = sum((a + 1) * p for a, p in enumerate(DECAYING.distribution(0)))
    assert reached == pytest.approx(4.6, abs=1e-3)
    far = by_offset(DECAYING)
    assert far.distribution(0) == pytest.approx(DECAYING.distribution(0))
    assert far.distribution(3)[0] == pytest.approx(1 - DECAYING.drafts[3])
    one = [plan.best_branches(a, 1)[0].tokens_per_pass for a in (DECAYING, far)]
    assert one == pytest.approx([4.60, 3.28], abs=0.01)


def test_the_best_p_moves_with_the_attribution():
    work = Workload(models.find("ZAYA1-8B"), 16, 8192, branches=())
    best = []
    for attribute in ("position", "offset"):
        accepting = from_options(16, 17, counts=as_histogram(DECAYING), attribute=attribute)
        options = plan.plan(work, plan.candidates(accepting, range(5)), MI300X)
        best.append(len(plan.best(options).steady.branches))
    assert best == [1, 2]


@pytest.mark.parametrize("branches", [(1,), (1, 5), (2, 6, 11)])
def test_offsets_and_mixtures_agree_with_simulation(branches):
    mixed = Mixture(((0.3, iid(0.4, 16, 17)), (0.7, by_offset(DECAYING))))
    for accepting in (by_offset(DECAYING), mixed):
        found = plan.steady_state(accepting, branches).tokens_per_pass
        assert simulate.tokens_per_pass(accepting, branches, 400_000) == pytest.approx(
            found, rel=5e-3
        )


def test_a_mixture_is_the_mean_of_its_kinds_and_its_best_set_is_brute_force_s():
    kinds = iid(0.3, 5, 6), by_offset(iid(0.9, 5, 6))
    mixed = Mixture(((0.25, kinds[0]), (0.75, kinds[1])))

    def mean(branches):
        low, high = (plan.steady_state(kind, branches).tokens_per_pass for kind in kinds)
        return 0.25 * low + 0.75 * high

    for count in (1, 2, 3):
        brute = max(map(mean, combinations(range(1, 7), count)))
        assert plan.best_branches(mixed, count)[0].tokens_per_pass == pytest.approx(brute)


def test_other_sizes_cut_or_continue_the_last_value():
    accepting = Acceptance((0.9, 0.5), (1.0, 0.8, 0.6))
    assert accepting.resized(3, 5) == Acceptance((0.9, 0.5, 0.5), (1.0, 0.8, 0.6, 0.6, 0.6))
    assert accepting.resized(1, 2) == Acceptance((0.9,), (1.0, 0.8))
    mixed = Mixture(((0.5, accepting), (0.5, accepting))).resized(1, 2)
    assert mixed.parts == ((0.5, accepting.resized(1, 2)),) * 2


def test_options_say_what_they_assume():
    text = from_options(16, 17).text
    assert "mean 4.6 with 16 drafts, Zyphra's lossless figure" in text and "by position" in text
    two = from_options(16, 17, mixture=[(0.3, 0.2), (0.7, 0.9)], attribute="offset")
    assert "30% at 0.2, 70% at 0.9" in two.text and "by mask offset" in two.text
    assert from_options(4, 5).drafts == from_options(16, 17).drafts[:4]
    # the text is no part of what is compared
    assert replace(from_options(4, 5, alpha=0.5), text="") == from_options(4, 5, alpha=0.5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: from_options(4, 5, mixture=[(0.5, 0.5)]), "mixture: expected shares above 0"),
        (lambda: from_options(4, 5, attribute="row"), "attribute: expected one of position"),
        (
            lambda: Mixture(((0.5, iid(0.5, 4, 5)), (0.5, iid(0.5, 3, 5)))),
            "mixture: expected the same K and M",
        ),
    ],
)
def test_absurd_mixtures(call, message):
    with pytest.raises(ValueError, match=message):
        call()
