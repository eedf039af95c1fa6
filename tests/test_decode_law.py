"""The law of a whole multi-step decode over a tiny vocabulary: G-test of 2e5 decodes against the
autoregressive law.

The toy model is a second-order Markov chain over two tokens; its drafter a disturbed copy. All
decodes run as one batch through the real BlockDecoder and the real ops. Two subtle mistakes must
fail the same test.
"""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from blockdraft import BlockDecoder, BlockLayout, Request, decode, rng

RUNS, LENGTH, MASK = 200_000, 6, 2
LIMIT = 120.0  # chi2(63) exceeds it with probability 2e-5


class ToyModel:
    """`hidden` is the row of a table of logits: context (two tokens), and mask offset for a
    proposal's rows."""

    config = SimpleNamespace(vocab_size=3, num_valid_vocab=2, mask_token_id=MASK)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, mask_rows):
        generator = torch.Generator().manual_seed(3)
        self.target = torch.randn(4, 2, generator=generator)
        drafts = self.target[:, None] + torch.randn(4, mask_rows, 2, generator=generator)
        table = torch.cat([self.target, drafts.flatten(0, 1)])
        self.table = torch.cat([table, torch.zeros(len(table), 1)], 1)
        self.mask_rows = mask_rows

    def new_cache(self, max_tokens, page):
        zero = torch.zeros(len(max_tokens), dtype=torch.int32)
        return SimpleNamespace(
            prefix_lens=zero.clone(), last=zero.long(), max_tokens=max(max_tokens), tokens=None
        )

    def forward(self, tokens, rows, cache):
        masks = rows.branch.shape[1] * rows.mask_rows
        tokens = tokens.unflatten(0, (len(rows.branch), -1)).long()
        verify = cache.tokens = tokens[:, : tokens.shape[1] - masks]
        context = torch.cat([cache.last[:, None], verify[:, :-1]], 1) * 2 + verify.clamp(max=1)
        # a proposal of branch c continues verify row c-1, whatever stands in the rows between
        root = context.gather(1, rows.branch.clamp(min=1).long() - 1)
        drafted = 4 + root[..., None] * self.mask_rows + torch.arange(self.mask_rows)
        return torch.cat([context, drafted.flatten(1)], 1).flatten()[:, None].float()

    def logits(self, hidden):
        return self.table[hidden[..., 0].long()]

    def commit(self, accepted, rows, cache):
        kept = cache.tokens.gather(1, accepted.clamp(min=0).long()[:, None])[:, 0]
        cache.last = torch.where(accepted >= 0, kept, cache.last)
        cache.prefix_lens += accepted + 1

    def law(self):
        """Probability of each of the 2**LENGTH continuations of token 0 (whose own predecessor
        counts as 0)."""
        p = self.target.double().softmax(-1)
        law = []
        for code in range(2**LENGTH):
            before, last, chance = 0, 0, 1.0
            for i in reversed(range(LENGTH)):
                token = code >> i & 1
                chance *= float(p[2 * before + last, token])
                before, last = last, token
            law.append(chance)
        return torch.tensor(law, dtype=torch.float64)


def g_statistic(layout, runs=RUNS, **options):
    model = ToyModel(layout.M)
    decoder = BlockDecoder(model, layout, **options)
    done = decoder.generate([Request([0], LENGTH, seed=1000 + i) for i in range(runs)])
    codes = torch.tensor([int("".join(map(str, c.tokens)), 2) for c in done])
    assert all(len(c.tokens) == LENGTH for c in done)
    observed = torch.bincount(codes, minlength=2**LENGTH).double()
    expected = model.law() * runs
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
def test_decode_follows_the_autoregressive_law(case, rule):
    layout, options = CASES[case]
    g, steps = g_statistic(layout, rule=rule, **options)
    print(
        f"{case}, {rule}: G = {g:.1f} over {2**LENGTH - 1} degrees of freedom, {steps:.2f} passes a decode"
    )
    assert g < LIMIT
    assert steps < LENGTH - 1  # drafts really are accepted


def test_autoregressive_decode_follows_the_law_too():
    assert g_statistic(BlockLayout.autoregressive())[0] < LIMIT


def test_keys_of_token_positions_would_be_caught(monkeypatch):
    """Mutant: uniforms keyed by the token's position, which block rule visits again in the next
    step."""
    proper = rng.uniform

    def by_token(seed, position, rows, purpose):
        if purpose != rng.ACCEPT:
            return proper(seed, position, rows, purpose)
        return torch.cat([proper(seed, position + i, 1, purpose) for i in range(rows)], 1)

    monkeypatch.setattr(rng, "uniform", by_token)
    # which uses rng
    monkeypatch.setattr(
        decode.ops, "accept_drafts", partial(decode.ops.accept_drafts, backend="reference")
    )
    g, _ = g_statistic(BlockLayout(3, 4, 4), rule="block")
    print(f"keyed by token position: G = {g:.0f}")
    assert g > LIMIT


def test_truncating_accepted_tokens_would_be_caught(monkeypatch):
    """Mutant: when no proposal matches the accepted length, drop accepted tokens down to one that
    does."""
    proper = decode.ops.accept_drafts

    def truncating(logits, drafts, draft_len, branch, *args, **kwargs):
        verdict = proper(logits, drafts, draft_len, branch, *args, **kwargs)
        level = torch.where(
            (branch >= 1) & (branch <= verdict.accepted[:, None] + 1), branch, 0
        ).amax(1)
        cut = (level > 0) & (level <= verdict.accepted)
        a = torch.where(cut, level - 1, verdict.accepted)
        y = torch.where(
            cut,
            drafts.gather(1, a.clamp(min=0, max=drafts.shape[1] - 1)[:, None].long())[:, 0],
            verdict.next_token,
        )
        return verdict._replace(accepted=a, next_token=y, shift=torch.zeros_like(verdict.shift))

    monkeypatch.setattr(decode.ops, "accept_drafts", truncating)
    layout, options = CASES["missing branches"]
    g, _ = g_statistic(layout, **options)
    print(f"truncating: G = {g:.0f}")
    assert g > LIMIT


def test_limit_is_the_quantile_it_claims():
    scipy_stats = pytest.importorskip("scipy.stats", reason="scipy gives the quantile")
    assert math.isclose(scipy_stats.chi2.sf(LIMIT, 63), 2e-5, rel_tol=0.5)
