"""Which branches to spend P proposals on in the steady state, and which P pays.

The state between passes is the shift s at which the drafts under test were taken: there are
D = clamp(M-1-s, 0, K) of them, so that a branch far below the accepted length shortens the next
draft. A branch c is used as min(c, D+1). A pass that accepts a drafts continues from the largest
branch c <= a+1, which makes the next shift a+1-c. Without such a branch nothing is drafted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

from .acceptance import Acceptance, Mixture
from .devices import Ceilings
from .step import pass_seconds
from .workload import Workload

if TYPE_CHECKING:
    import numpy as np

Branches = tuple[int, ...]
Accepting = Acceptance | Mixture

# Up to so many sets of branches are tried one by one; more are searched, without a proof
EXHAUSTIVE = 200_000
# A chance of returning to the start makes the steady state unique. It moves the result by as little
RESTART = 1e-10
# Sets whose linear systems are solved together, which bounds the memory
TOGETHER = 4096
# Relative differences below this are rounding
EQUAL = 1e-12


@dataclass(frozen=True)
class Steady:
    """The steady state of one set of branches.

    tokens_per_pass    commits, the bonus or residual token included
    mean_drafts        drafts under test
    shift_share        [s]: share of the passes whose drafts came from shift s
    """

    branches: Branches
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


def steady_state(acceptance: Accepting, branches: Iterable[int]) -> Steady:
    return _best(acceptance, [tuple(branches)])


def _solve(acceptance: Accepting, sets: list[Branches]) -> tuple["np.ndarray", "np.ndarray"]:
    """Tokens a pass [sets] and shares of the shifts [sets, M] of many sets, solved together: the
    means over the kinds of requests."""
    found = [(share, *_solve_kind(kind, sets)) for share, kind in acceptance.parts]
    tokens = sum(share * of_kind for share, of_kind, _ in found)
    return tokens, sum(share * shifts for share, _, shifts in found)


def _solve_kind(acceptance: Acceptance, sets: list[Branches]) -> tuple["np.ndarray", "np.ndarray"]:
    import numpy as np

    states = len(acceptance.offsets)
    best = _largest_branch(acceptance, sets)
    distributions = [acceptance.distribution(s) for s in range(states)]
    commits = np.array([sum(p * (a + 1) for a, p in enumerate(d)) for d in distributions])
    # every way on from a state: from shift s with a drafts accepted, which are all or not
    ways = [
        (s, a, p, a + 1 == len(d)) for s, d in enumerate(distributions) for a, p in enumerate(d)
    ]
    start, accepted, chance, full = map(np.array, zip(*ways, strict=True))
    branch = best[:, accepted + 1]
    # where all D drafts are accepted, every branch above D+1 is used as D+1
    branch = np.where(full & (best[:, -1:] > accepted), accepted + 1, branch)
    # the last shift supplies no drafts: there a pass ends without a branch
    shift = np.where(branch > 0, np.minimum(accepted + 1 - branch, states - 1), states - 1)
    places = np.arange(len(sets))[:, None] * states**2 + start * states + shift
    weights = np.broadcast_to(chance, places.shape).ravel()
    move = np.bincount(places.ravel(), weights, len(sets) * states**2)
    move = move.reshape(len(sets), states, states)
    share = _stationary(move)
    return share @ commits, share


def _largest_branch(acceptance: Acceptance, sets: list[Branches]) -> "np.ndarray":
    """[sets, V + 1]: the largest branch of each set that is <= 0, 1, .., V; 0 where none is."""
    import numpy as np

    V = len(acceptance.drafts) + 1
    member = np.zeros((len(sets), V + 1), bool)
    # all sets that are solved together have the same number of branches
    branches = np.array(sets).reshape(len(sets), -1)
    if branches.size:
        wrong = branches[(branches < 1) | (branches > V)]
        if wrong.size or branches.dtype.kind not in "iu":
            raise ValueError(f"branches: expected integers in 1..{V}, got {list(sets[0])}")
        member[np.arange(len(sets))[:, None], branches] = True
    return np.maximum.accumulate(np.where(member, np.arange(V + 1), 0), 1)


def _stationary(move: "np.ndarray") -> "np.ndarray":
    """[sets, states]: the share of each state, given the chances to move from one to another."""
    import numpy as np

    states = move.shape[1]
    move = move * (1 - RESTART)
    move[:, :, -1] += RESTART
    # the last equation of x = x move follows from the others; that of a sum of 1 takes its place
    system = move.transpose(0, 2, 1) - np.eye(states)
    system[:, -1] = 1.0
    right = np.zeros((len(move), states, 1))
    right[:, -1] = 1.0
    return np.linalg.solve(system, right)[..., 0].clip(0)


@lru_cache(maxsize=256)
def best_branches(
    acceptance: Accepting, proposals: int, exhaustive: int = EXHAUSTIVE
) -> tuple[Steady, bool]:
    """The best set of `proposals` branches, the same for every pass, and whether it is proven best.

    All sets are tried where there are at most `exhaustive`. Otherwise branches are added one by one
    and then exchanged until no exchange helps.
    """
    V = len(acceptance.drafts) + 1
    if not 0 <= proposals <= V:
        raise ValueError(f"proposals: expected 0 .. {V} (one for each branch), got {proposals!r}")
    every = range(1, V + 1)
    if comb(V, proposals) <= exhaustive:
        return _best(acceptance, combinations(every, proposals)), True
    found = steady_state(acceptance, ())
    for _ in range(proposals):
        held = set(found.branches)
        grown = [tuple(sorted(held | {c})) for c in every if c not in held]
        found = _best(acceptance, grown)
    return _exchange(acceptance, found, every), False


def _exchange(acceptance: Accepting, found: Steady, every: range) -> Steady:
    """The set after exchanging single branches as long as that helps."""
    while True:
        held = set(found.branches)
        swaps = [
            tuple(sorted(held - {old} | {new}))
            for old in found.branches
            for new in every
            if new not in held
        ]
        if not swaps:
            return found
        better = _best(acceptance, swaps)
        if better.tokens_per_pass <= found.tokens_per_pass * (1 + EQUAL):
            return found
        found = better


def _best(acceptance: Accepting, sets: Iterable[Branches]) -> Steady:
    """The first of the best sets."""
    sets = list(sets)
    best = None
    for start in range(0, len(sets), TOGETHER):
        tokens, share = _solve(acceptance, sets[start : start + TOGETHER])
        n = int((tokens > tokens.max() * (1 - EQUAL)).argmax())
        if best is None or tokens[n] > best.tokens_per_pass * (1 + EQUAL):
            shares = tuple(map(float, share[n]))
            draft_len = acceptance.parts[0][1].draft_len
            drafts = sum(p * draft_len(s) for s, p in enumerate(shares))
            best = Steady(sets[start + n], float(tokens[n]), drafts, shares)
    return best


def candidates(acceptance: Accepting, proposals: Iterable[int]) -> list[tuple[Steady, bool]]:
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
        seconds = pass_seconds(drafting(w, steady), ceilings, launch_us)
        options.append(Option(steady, exact, seconds, w.batch * steady.tokens_per_pass / seconds))
    return options


def best(options: Iterable[Option]) -> Option:
    """The option with most tokens per second."""
    return max(options, key=lambda o: o.tokens_per_s)


def drafting(w: Workload, steady: Steady) -> Workload:
    """The workload with the branches and the mean acceptance of a steady state; without branches
    that of autoregressive decoding."""
    if not steady.branches:
        return w.autoregressive()
    return replace(w, branches=steady.branches, accepted=steady.tokens_per_pass - 1)
