"""Which branches to spend P proposals on in the steady state, and which P pays.

The state between passes is the shift s at which the drafts under test were taken: D = clamp(M-1-s,
0, K) of them, so that a branch far below the accepted length shortens the next draft. A pass that
accepts a of them uses the largest live branch c <= a+1 (a fixed branch c is live as min(c, D+1));
the next shift is a+1-c, and without such a branch nothing is drafted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from math import comb

from .acceptance import Acceptance
from .devices import Ceilings
from .step import Workload, pass_seconds

# sets of branches that are tried one by one; beyond, a search that is not proven best
EXHAUSTIVE = 200_000
# chance of returning to the start, which makes the chain's law unique; it moves the result by as
# little
RESTART = 1e-10


@dataclass(frozen=True)
class Steady:
    """The steady state of one set of branches. tokens_per_pass: commits, the bonus or residual
    token included. shift_share[s]: share of passes whose drafts came from shift s; mean_drafts:
    drafts under test."""

    branches: tuple[int, ...]
    tokens_per_pass: float
    mean_drafts: float
    shift_share: tuple[float, ...]


@dataclass(frozen=True)
class Option:
    """One P with its best branches. exact: no set of that size is better."""

    steady: Steady
    exact: bool
    pass_seconds: float
    tokens_per_s: float


AUTOREGRESSIVE = Steady((), 1.0, 0.0, ())


def steady_state(acceptance: Acceptance, branches: Iterable[int]) -> Steady:
    return _best(acceptance, [tuple(branches)])


def _solve(acceptance: Acceptance, sets: list[tuple[int, ...]]):
    """Tokens a pass [sets] and shares of the shifts [sets, M] of many sets, solved together."""
    import numpy as np

    V, states = len(acceptance.drafts) + 1, len(acceptance.offsets)
    member = np.zeros((len(sets), V + 1), bool)
    for n, branches in enumerate(sets):
        if not all(isinstance(c, int) and 1 <= c <= V for c in branches):
            raise ValueError(f"branches: expected integers in 1..{V}, got {list(branches)}")
        member[n, list(branches)] = True
    level = np.arange(V + 1)
    best = np.maximum.accumulate(np.where(member, level, 0), 1)  # largest branch <= level; 0: none
    top = best[:, -1]
    move, commits = np.zeros((len(sets), states, states)), np.zeros(states)
    every = np.arange(len(sets))
    for s in range(states):
        law = acceptance.law(s)
        for a, p in enumerate(law):
            commits[s] += p * (a + 1)
            branch = best[:, a + 1]
            if a + 1 == len(law):  # branches above D+1 stand at D+1
                branch = np.where(top > a, a + 1, branch)
            # with nothing drafted the shift is that of a proposal used up
            shift = np.where(branch > 0, np.minimum(a + 1 - branch, states - 1), states - 1)
            move[every, s, shift] += p
    move *= 1 - RESTART
    move[:, :, -1] += RESTART
    system = move.transpose(0, 2, 1) - np.eye(states)
    system[:, -1] = 1.0
    right = np.zeros((len(sets), states, 1))
    right[:, -1] = 1.0
    share = np.linalg.solve(system, right)[..., 0].clip(0)
    return share @ commits, share


@lru_cache(maxsize=256)
def best_branches(
    acceptance: Acceptance, proposals: int, exhaustive: int = EXHAUSTIVE
) -> tuple[Steady, bool]:
    """The best set of `proposals` branches for every pass, and whether that is certain: all sets
    are tried where there are at most `exhaustive`, otherwise branches are added one by one and then
    exchanged until no exchange helps."""
    V = len(acceptance.drafts) + 1
    if not 0 <= proposals <= V:
        raise ValueError(f"proposals: expected 0 .. {V} (one for each branch), got {proposals!r}")
    if comb(V, proposals) <= exhaustive:
        return _best(acceptance, combinations(range(1, V + 1), proposals)), True
    found = steady_state(acceptance, ())
    for _ in range(proposals):
        grown = [
            tuple(sorted({*found.branches, c})) for c in range(1, V + 1) if c not in found.branches
        ]
        found = _best(acceptance, grown)
    while True:
        swaps = [
            tuple(sorted({*found.branches, new} - {old}))
            for old in found.branches
            for new in range(1, V + 1)
            if new not in found.branches
        ]
        better = _best(acceptance, swaps) if swaps else found
        if better.tokens_per_pass <= found.tokens_per_pass * (1 + 1e-12):
            return found, False
        found = better


def _best(acceptance: Acceptance, sets: Iterable[tuple[int, ...]], chunk: int = 4096) -> Steady:
    """The first of the best sets."""
    sets, best = list(sets), None
    for start in range(0, len(sets), chunk):
        tokens, share = _solve(acceptance, sets[start : start + chunk])
        n = int((tokens > tokens.max() * (1 - 1e-12)).argmax())
        if best is None or tokens[n] > best.tokens_per_pass * (1 + 1e-12):
            law = tuple(map(float, share[n]))
            drafts = sum(p * acceptance.draft_len(s) for s, p in enumerate(law))
            best = Steady(sets[start + n], float(tokens[n]), drafts, law)
    return best


def candidates(acceptance: Acceptance, proposals: Iterable[int]) -> list[tuple[Steady, bool]]:
    """The best branches for each P, as `best_branches` gives them; P = 0 is autoregressive
    decoding."""
    return [
        best_branches(acceptance, count) if count else (AUTOREGRESSIVE, True) for count in proposals
    ]


def plan(
    w: Workload, choices: Iterable[tuple[Steady, bool]], ceilings: Ceilings, launch_us: float = 0.0
) -> list[Option]:
    """The time of a pass and tokens per second of the whole batch for each of the `candidates`. `w`
    gives everything but the branches and the mean acceptance."""
    options = []
    for steady, exact in choices:
        drafting = replace(w, branches=steady.branches, accepted=steady.tokens_per_pass - 1)
        seconds = pass_seconds(
            drafting if steady.branches else w.autoregressive(), ceilings, launch_us
        )
        options.append(Option(steady, exact, seconds, w.batch * steady.tokens_per_pass / seconds))
    return options
