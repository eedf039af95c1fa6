"""The exact distribution of accepted tokens by enumeration. Thresholds of acceptance are found by
bisection of explicit uniforms, not assumed."""

import itertools
import math

import torch
from sampling_cases import run_by

from blockdraft import Penalties, Sampling, ops, words_of

EPS = 2.0**-40


class Case:
    """Random conditional distributions: the target's p(. | prefix) and the drafter's q(. | prefix)
    for every prefix of up to K tokens."""

    def __init__(self, vocab, K, seed, sharp=1.5):
        generator = torch.Generator().manual_seed(seed)
        self.vocab, self.K = vocab, K
        self.p, self.q = (
            {
                prefix: sharp * torch.randn(vocab, generator=generator)
                for n in range(K + 1)
                for prefix in itertools.product(range(vocab), repeat=n)
            }
            for _ in range(2)
        )

    def drafts(self, draws=True):
        """All draft tuples, their probabilities under q, and their target and draft logits."""
        tuples = list(itertools.product(range(self.vocab), repeat=self.K))
        target = torch.stack(
            [torch.stack([self.p[x[:i]] for i in range(self.K + 1)]) for x in tuples]
        )
        draft = (
            torch.stack([torch.stack([self.q[x[:i]] for i in range(self.K)]) for x in tuples])
            if self.K
            else torch.zeros(1, 0, self.vocab)
        )
        x = torch.tensor(tuples, dtype=torch.int32).reshape(len(tuples), self.K)
        chance = draft.double().softmax(-1).gather(-1, x.long()[..., None])[..., 0].prod(1)
        return x, chance, target, draft


def accept(
    x,
    target,
    draft,
    uniforms,
    D,
    rule="token",
    drafter="sampled",
    mix=None,
    backend=None,
    run=run_by,
    sampling=None,
    **kwargs,
):
    """Calls accept_drafts by a backend, through `run`, which has the signature of run_by.
    `sampling`: top_k, top_p, min_p of every request; those of `kwargs` that depend on the draft
    tokens are functions of them."""
    n = len(x)
    ones = torch.ones(n)
    each = {name: value * ones for name, value in (sampling or {}).items()}
    if "top_k" in each:
        each["top_k"] = each["top_k"].int()
    kwargs = {name: value(x) if callable(value) else value for name, value in kwargs.items()}
    return run(
        ops.accept_drafts,
        backend,
        target,
        x,
        torch.full((n,), D, dtype=torch.int32),
        torch.ones(n, 1, dtype=torch.int32),
        target.shape[1],
        seed=torch.zeros(n, dtype=torch.int64),
        position=torch.zeros(n, dtype=torch.int32),
        target_sampling=Sampling(ones, **each),
        draft_logits=draft,
        drafter=drafter,
        rule=rule,
        mix=None if mix is None else mix * ones,
        uniforms=uniforms,
        **kwargs,
    )


def bisect(predicate, n):
    """For each row, the threshold of a predicate of u in [0,1) that holds below it and fails
    above."""
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


def thresholds(x, target, draft, D, **how):
    """For every draft tuple and draft, the uniform below which the draft is accepted if those
    before it are."""
    base, found = torch.full((len(x), x.shape[1] + 1), 1 - EPS, dtype=torch.float64), []
    for i in range(D):

        def passes(u, i=i):
            uniforms = base.clone()
            uniforms[:, :i], uniforms[:, i] = 0, u
            return accept(x, target, draft, uniforms, D, **how).accepted > i

        found.append(bisect(passes, len(x)))
    return found


def patterns(n, K, limits):
    """(uniforms [n,K+1], their probability [n]) for every combination of accepting and rejecting
    tests; the caller sets the last uniform."""
    for flags in itertools.product((True, False), repeat=len(limits)):
        uniforms, weight = (
            torch.full((n, K + 1), 1 - EPS, dtype=torch.float64),
            torch.ones(n, dtype=torch.float64),
        )
        for i, (taken, t) in enumerate(zip(flags, limits)):
            uniforms[:, i] = (t / 2 if taken else (1 + t) / 2).clamp(max=1 - EPS)
            weight = weight * (t if taken else 1 - t)
        yield uniforms, weight


def cdf(x, target, draft, uniforms, D, **how):
    """[n,vocab]: the probability that the drawn token is at most y, for every y."""
    uniforms, columns = uniforms.clone(), []
    for y in range(target.shape[-1]):

        def drawn(u, y=y):
            uniforms[:, -1] = u
            return accept(x, target, draft, uniforms, D, **how).next_token <= y

        columns.append(bisect(drawn, len(x)))
    return torch.stack(columns, 1)


def outcomes(x, target, draft, D, **how):
    """(index of the draft tuple, a, y, exact probability) of every possible outcome."""
    for uniforms, weight in patterns(*x.shape, thresholds(x, target, draft, D, **how)):
        a = accept(x, target, draft, uniforms, D, **how).accepted
        chance = weight[:, None] * cdf(x, target, draft, uniforms, D, **how).diff(
            dim=1, prepend=torch.zeros(len(x), 1)
        )
        for b, y in (chance > 0).nonzero().tolist():
            yield b, int(a[b]), y, float(chance[b, y])


def breakpoints(x, target, draft, D, margin, **how):
    """(rows of the arguments, uniforms [N,K+1]) for every combination of tests: each uniform is
    next to its threshold, and the last one next to each step of the drawn token's CDF."""
    n, rows, uniforms = len(x), [], []
    limits = thresholds(x, target, draft, D, **how)
    for pattern, (middle, _) in zip(
        itertools.product((True, False), repeat=D), patterns(n, x.shape[1], limits)
    ):
        steps = cdf(x, target, draft, middle, D, **how)
        for step in steps.unbind(1):
            for side in (-margin, margin):
                u = middle.clone()
                for i, taken in enumerate(pattern):
                    u[:, i] = limits[i] * (1 - margin if taken else 1 + margin)
                u[:, -1] = step + side
                rows.append(torch.arange(n))
                uniforms.append(u.clamp(0, 1 - EPS))
    return torch.cat(rows), torch.cat(uniforms)


def law_of(case, D=None, rows=None, drawn=None, **how):
    """The distribution of the first D+1 tokens, which acceptance emits and the target completes;
    and the expected number of accepted drafts. `rows` and `drawn` are the target's distribution
    after a prefix and the drafter's, if they are not the softmax of the logits."""
    D = case.K if D is None else D
    x, chance, target, draft = case.drafts()
    if drawn is not None:
        chance = torch.tensor(
            [
                math.prod(float(drawn(t[:i])[t[i]]) for i in range(case.K))
                for t in map(tuple, x.tolist())
            ]
        ).double()
        x, target, draft, chance = (t[chance > 0] for t in (x, target, draft, chance))
    if how.get("drafter") == "greedy":
        chance = torch.full_like(chance, 0.0).index_fill(0, torch.tensor([len(x) // 3]), 1.0)
    step = rows or (lambda prefix: case.p[prefix].double().softmax(0))
    total, mean = {}, 0.0
    for b, a, y, weight in outcomes(x, target, draft, D, **how):
        weight *= float(chance[b])
        mean += weight * a
        emitted = (*x[b, :a].tolist(), y)
        frontier = {emitted: weight}
        while len(next(iter(frontier))) <= D:
            frontier = {
                (*s, z): w * float(step(s)[z])
                for s, w in frontier.items()
                for z in range(case.vocab)
            }
        for s, w in frontier.items():
            total[s] = total.get(s, 0.0) + w
    return total, mean


def expected_law(case, D, step=None):
    step = step or (lambda prefix: case.p[prefix].double().softmax(0))
    return {
        s: math.prod(float(step(s[:i])[s[i]]) for i in range(D + 1))
        for s in itertools.product(range(case.vocab), repeat=D + 1)
    }


def distance(a, b):
    return max(abs(a.get(s, 0.0) - b.get(s, 0.0)) for s in set(a) | set(b))


def kept_law(logits, min_p=0.0, top_k=0, top_p=1.0):
    """The softmax of what is kept, made id by id in the order of their probabilities."""
    p = logits.double().softmax(-1).tolist()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    order = [i for i in order if p[i] >= min_p * p[order[0]]]
    order = order[:top_k] if top_k else order
    total, before, kept = sum(p[i] for i in order), 0.0, []
    for i in order:
        if before < top_p * total or top_p == 1:
            kept.append(i)
        before += p[i]
    out = torch.zeros(len(p), dtype=torch.float64)
    out[kept] = torch.tensor([p[i] for i in kept], dtype=torch.float64)
    return out / out.sum()


def grammar(prefix, vocab):
    """bool [vocab]: what may follow: no id twice in a row, and the last id only after 0."""
    allowed = torch.ones(vocab, dtype=torch.bool)
    if prefix:
        allowed[prefix[-1]] = False
    allowed[-1] = bool(prefix) and prefix[-1] == 0
    return allowed


def masks(x, rows, vocab):
    """The words of so many rows for each of the draft tuples x."""
    of = [[grammar(tuple(t[:i]), vocab) for i in range(rows)] for t in x.tolist()]
    return words_of(torch.stack([torch.stack(row) for row in of]))


def constrained(logits):
    """The softmax of what the grammar allows after a prefix."""

    def law(prefix):
        x = logits[prefix].double()
        return x.masked_fill(~grammar(prefix, len(x)), -torch.inf).softmax(-1)

    return law


ASKED = dict(repetition=1.7, presence=0.6, frequency=0.4)
# of the prompt; biased only; emitted twice; never touched; emitted once; never touched
COUNTS = [0, -1, 2, -1, 1, -1]
BIAS = {1: -0.7, 2: 1.1}


def penalties(x, vocab):
    """Those of requests with the same past, for each of the draft tuples x."""
    n, counts = len(x), COUNTS[:vocab]
    touched = torch.tensor([c >= 0 or i in BIAS for i, c in enumerate(counts)])

    def each(values, dtype=torch.float32):
        return torch.tensor([values] * n, dtype=dtype)

    return Penalties(
        touched=words_of(touched.expand(n, vocab)),
        counts=each(counts, torch.int32),
        **{name: each(value) for name, value in ASKED.items()},
        bias_ids=each([*BIAS, 2**31 - 1], torch.int32),
        bias=each([*BIAS.values(), 9.0]),
    )


def penalised_law(logits, follow=True):
    """The distribution after a prefix, one token at a time: the formulas, id by id. `follow`:
    whether the prefix counts as emitted."""

    def law(prefix):
        x = logits[prefix].tolist()
        for i in range(len(x)):
            count = COUNTS[i]
            for token in prefix if follow else ():
                if token == i:
                    count = max(count, 0) + 1
            x[i] += BIAS.get(i, 0)
            if count >= 0:
                x[i] = x[i] / ASKED["repetition"] if x[i] > 0 else x[i] * ASKED["repetition"]
            if count > 0:
                x[i] -= ASKED["frequency"] * count + ASKED["presence"]
        return torch.tensor(x, dtype=torch.float64).softmax(-1)

    return law
