"""The distribution of a whole decode of several passes: a G-test of 2e5 decodes of the toy model
against the autoregressive distribution.

All decodes run as one batch through the real BlockDecoder and the real ops. Two subtle mistakes
must fail the same test.
"""

import itertools
import math
from functools import partial

import pytest
import torch
from toy import ToyModel

from blockdraft import Batch, BlockDecoder, BlockLayout, Request, ops, rng
from blockdraft.registry import OPS, Backend

RUNS, LENGTH = 200_000, 6
LIMIT = 120.0  # chi2(63) exceeds it with probability 2e-5


def continuations(target):
    """Probability of each of the 2**LENGTH continuations of token 0 (whose own predecessor counts
    as 0)."""
    p = target.double().softmax(-1)
    probabilities = []
    for code in range(2**LENGTH):
        before, last, probability = 0, 0, 1.0
        for i in reversed(range(LENGTH)):
            token = code >> i & 1
            probability *= float(p[2 * before + last, token])
            before, last = last, token
        probabilities.append(probability)
    return torch.tensor(probabilities, dtype=torch.float64)


def g_statistic(layout, runs=RUNS, mask_rows=4, **options):
    model = ToyModel(mask_rows)
    decoder = BlockDecoder(model, layout, **options)
    done = decoder.generate([Request([0], LENGTH, seed=1000 + i) for i in range(runs)])
    codes = torch.tensor([int("".join(map(str, c.tokens)), 2) for c in done])
    assert all(len(c.tokens) == LENGTH for c in done)
    observed = torch.bincount(codes, minlength=2**LENGTH).double()
    expected = continuations(model.target) * runs
    assert expected.min() > 5
    steps = sum(len(c.committed) for c in done) / runs
    return float(2 * torch.xlogy(observed, observed / expected).sum()), steps


CASES = {
    "every branch": (BlockLayout(3, 4, 4), {}),
    "missing branches": (BlockLayout(3, 4, 2), dict(branches=[2, 4])),
    "adaptive branches": (BlockLayout(3, 4, 2), dict(branches="planned")),
    "causal proposals, M below V": (
        BlockLayout(3, 3, 2, bidirectional=False),
        dict(branches=[1, 3]),
    ),
    "greedy drafter": (BlockLayout(3, 4, 2), dict(branches=[1, 3], drafter="greedy")),
}


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("case", CASES)
def test_decode_follows_the_autoregressive_distribution(case, rule):
    layout, options = CASES[case]
    g, steps = g_statistic(layout, rule=rule, **options)
    freedom = 2**LENGTH - 1
    print(f"{case}, {rule}: G = {g:.1f}, {freedom} degrees of freedom, {steps:.2f} passes a decode")
    assert g < LIMIT
    assert steps < LENGTH - 1  # drafts really are accepted


@pytest.mark.parametrize("rule", ["token", "block"])
def test_moving_between_layouts_keeps_the_distribution(monkeypatch, rule):
    """After every pass to another layout, with more drafts, with fewer, and with none."""
    layouts = {1: BlockLayout(3, 4, 4), 2: BlockLayout.autoregressive(), 3: BlockLayout(2, 4, 1)}
    order = itertools.cycle([1, 3, 1, 2])
    monkeypatch.setattr(Batch, "_stage_for", lambda self, active: self._stages[next(order)])
    g, steps = g_statistic(layouts, rule=rule)
    print(f"moving, {rule}: G = {g:.1f}, {steps:.2f} passes a decode")
    assert g < LIMIT and steps < LENGTH - 1


def test_autoregressive_decode_follows_it_too():
    assert g_statistic(BlockLayout.autoregressive())[0] < LIMIT


def test_keys_of_token_positions_would_be_caught(monkeypatch):
    """Mutant: uniforms are keyed by the token's position, which the block rule visits again in the
    next pass."""
    proper = rng.uniform

    def by_token(seed, position, rows, purpose):
        if purpose != rng.ACCEPT:
            return proper(seed, position, rows, purpose)
        return torch.cat([proper(seed, position + i, 1, purpose) for i in range(rows)], 1)

    monkeypatch.setattr(rng, "uniform", by_token)
    # the reference is the backend that draws from `rng`
    reference = partial(ops.accept_drafts, backend="reference")
    monkeypatch.setattr(ops, "accept_drafts", reference)
    g, _ = g_statistic(BlockLayout(3, 4, 4), rule="block")
    print(f"keyed by token position: G = {g:.0f}")
    assert g > LIMIT


def test_truncating_accepted_tokens_would_be_caught(monkeypatch):
    """Mutant: when no proposal matches the accepted length, drop accepted tokens down to one that
    does."""
    op = OPS["accept_drafts"]

    def truncating(proper):
        def run(*values):
            proper(*values)
            args = op.unflatten(*values)
            reached = (args.branch >= 1) & (args.branch <= args.accepted[:, None] + 1)
            level = torch.where(reached, args.branch, 0).amax(1)
            cut = (level > 0) & (level <= args.accepted)
            a = torch.where(cut, level - 1, args.accepted)
            drafts = args.draft_tokens
            kept = drafts.gather(1, a.clamp(0, drafts.shape[1] - 1)[:, None].long())[:, 0]
            args.next_token.copy_(torch.where(cut, kept, args.next_token))
            args.accepted.copy_(a)
            args.shift.zero_()

        return run

    for name, backend in op.backends.items():
        mutant = Backend(truncating(backend.run), backend.unsupported)
        monkeypatch.setitem(op.backends, name, mutant)
    layout, options = CASES["missing branches"]
    g, _ = g_statistic(layout, **options)
    print(f"truncating: G = {g:.0f}")
    assert g > LIMIT


def test_limit_is_the_quantile_it_claims():
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy gives the quantile")
    assert math.isclose(scipy_stats.chi2.sf(LIMIT, 63), 2e-5, rel_tol=0.5)
