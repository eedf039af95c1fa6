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

from blockdraft import Batch, BlockDecoder, BlockLayout, Request, ops, rng, words_of
from blockdraft.logit_changes import PenaltyTable
from blockdraft.registry import OPS, Backend

RUNS, LENGTH = 200_000, 6
LIMIT = 120.0  # chi2(63) exceeds it with probability 2e-5


def continuations(target, change=lambda logits, emitted: logits):
    """Probability of each of the 2**LENGTH continuations of token 0 (whose own predecessor counts
    as 0). `change` makes the logits of a token from the model's, and from what was emitted."""
    probabilities = []
    for code in itertools.product(range(2), repeat=LENGTH):
        probability = 1.0
        for i, token in enumerate(code):
            before, last = (0, 0, *code[:i])[-2:]
            logits = change(target[2 * before + last].double(), code[:i])
            probability *= float(logits.softmax(-1)[token])
        probabilities.append(probability)
    return torch.tensor(probabilities, dtype=torch.float64)


def g_statistic(
    layout, runs=RUNS, mask_rows=4, asked=None, change=lambda logits, emitted: logits, **options
):
    """`asked` of each request, which then draws from logits that `change` makes."""
    model = ToyModel(mask_rows)
    decoder = BlockDecoder(model, layout, **options)
    asked = asked or {}
    done = decoder.generate([Request([0], LENGTH, seed=1000 + i, **asked) for i in range(runs)])
    codes = torch.tensor([int("".join(map(str, c.tokens)), 2) for c in done])
    assert all(len(c.tokens) == LENGTH for c in done)
    observed = torch.bincount(codes, minlength=2**LENGTH).double()
    expected = continuations(model.target, change) * runs
    assert (observed[expected == 0] == 0).all()
    observed, expected = observed[expected > 0], expected[expected > 0]
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


PENALTIES = dict(
    repetition_penalty=1.6, presence_penalty=0.3, frequency_penalty=0.25, logit_bias={1: 0.9}
)


def penalised(logits, emitted):
    """By vLLM's formulas; the prompt is token 0."""
    x = logits.tolist()
    x[1] += PENALTIES["logit_bias"][1]
    for token in range(2):
        count = emitted.count(token)
        if token == 0 or count:
            repetition = PENALTIES["repetition_penalty"]
            x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
        x[token] -= PENALTIES["frequency_penalty"] * count
        x[token] -= PENALTIES["presence_penalty"] * (count > 0)
    return torch.tensor(x, dtype=torch.float64)


def may_follow(emitted):
    """bool [3]: a grammar: no token three times in a row."""
    return torch.tensor([*((t,) * 2 != tuple(emitted[-2:]) for t in range(2)), False])


def grammar(emitted, drafts):
    """What a request's `allowed` is asked; rows behind a draft that is not allowed are of no use,
    and allow nothing."""
    rows = [may_follow([*emitted, *drafts[:i]]) for i in range(len(drafts) + 1)]
    right = [bool(row[draft]) for row, draft in zip(rows, drafts)]
    for i in range(1, len(rows)):
        rows[i] &= all(right[:i])
    return words_of(torch.stack(rows))


def constrained(logits, emitted):
    return logits.masked_fill(~may_follow(emitted)[:2], -torch.inf)


CHANGES = {
    "penalties": (125_000, PENALTIES, penalised),  # so that more than 5 are expected of each
    "grammar": (20_000, dict(allowed=grammar), constrained),
    "both": (
        20_000,
        PENALTIES | dict(allowed=grammar),
        lambda logits, emitted: constrained(penalised(logits, emitted), emitted),
    ),
}


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("name", CHANGES)
def test_penalties_and_grammars_follow_their_law(name, rule):
    """That of a decoding which takes one token at a time, with counts and masks of its own."""
    runs, asked, change = CHANGES[name]
    g, steps = g_statistic(BlockLayout(3, 4, 4), runs, asked=asked, change=change, rule=rule)
    print(f"{name}, {rule}: G = {g:.1f}, {steps:.2f} passes a decode")
    assert g < LIMIT and steps < LENGTH - 1


def test_counts_that_stand_still_would_be_caught(monkeypatch):
    """Mutant: what was emitted in earlier passes does not count."""
    monkeypatch.setattr(PenaltyTable, "count", lambda *args: None)
    runs, asked, change = CHANGES["penalties"]
    g, _ = g_statistic(BlockLayout(3, 4, 4), runs, asked=asked, change=change)
    print(f"counts that stand still: G = {g:.0f}")
    assert g > LIMIT


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
