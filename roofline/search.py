"""The best K, M, P and branches together, by a cost that counts batch, context and touched experts.

Layouts are tried in the order of a bound: the tokens of a pass whose drafts are always full, over
the time of the pass. The search ends where no bound exceeds what was found, so that within its
limits nothing better is left out, but for branches that were not proven best.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import comb

from .devices import Ceilings
from .plan import AUTOREGRESSIVE, Accepting, Steady, best_branches
from .step import pass_seconds
from .workload import Workload, spread

# Sets of branches that are tried one by one for each layout; more are searched without a proof
TRIED = 3000


@dataclass(frozen=True)
class Limits:
    """The greatest K, M and P. Masks beyond 2K + 1 supply no draft at any shift that a branch can
    leave, so that M ends there."""

    drafts: int = 16
    mask_rows: int = 24
    proposals: int = 8


LIMITS = Limits()


@dataclass(frozen=True)
class Found:
    """A layout with its best branches.

    exact     no set of its branches is better
    capped    which of "K", "M", "P" stand at their limit, so that more might be better
    """

    drafts: int
    mask_rows: int
    steady: Steady
    exact: bool
    pass_seconds: float
    tokens_per_s: float
    capped: tuple[str, ...] = ()

    @property
    def proposals(self) -> int:
        return len(self.steady.branches)


def search(
    w: Workload,
    accepting: Accepting,
    rates: Ceilings,
    limits: Limits = LIMITS,
    launch_us: float = 0.0,
    keep: int = 8,
) -> list[Found]:
    """The `keep` best layouts, the best first, of which autoregressive decoding is one that is
    always kept. `w` gives everything but K, M, P and the branches; what is not known of the
    acceptance continues its last value."""
    _check(limits)
    seconds = pass_seconds(w.autoregressive(), rates, launch_us)
    plain = Found(0, 1, AUTOREGRESSIVE, True, seconds, w.batch / seconds)
    best = [plain]
    for bound, layout in _bounds(w, accepting, rates, limits, launch_us):
        if len(best) >= keep and bound <= best[keep - 1].tokens_per_s:
            break
        best.append(_evaluate(w, accepting, rates, launch_us, *layout))
        best.sort(key=lambda f: -f.tokens_per_s)
    kept = best[:keep]
    if plain not in kept:
        kept.append(plain)
    return [replace(f, capped=_capped(f, limits)) for f in kept]


def _check(limits: Limits) -> None:
    for name, value, least, most in (
        ("drafts", limits.drafts, 1, 64),
        ("mask_rows", limits.mask_rows, 2, 128),
        ("proposals", limits.proposals, 1, 64),
    ):
        if not least <= value <= most:
            raise ValueError(f"max_{name}: expected {least} .. {most}, got {value!r}")


def layouts(limits: Limits) -> Iterable[tuple[int, int, int]]:
    """(K, M, P) within the limits."""
    for K in range(1, limits.drafts + 1):
        for M in range(2, min(limits.mask_rows, 2 * K + 1) + 1):
            for P in range(1, min(limits.proposals, K + 1) + 1):
                yield K, M, P


def _bounds(
    w: Workload, accepting: Accepting, rates: Ceilings, limits: Limits, launch_us: float
) -> list[tuple[float, tuple[int, int, int]]]:
    """Tokens per second that a layout cannot exceed, greatest first."""
    most = {}
    found = []
    for K, M, P in layouts(limits):
        if (K, M) not in most:
            most[K, M] = full_tokens(accepting.resized(K, M))
        work = _workload(w, K, M, spread(P, K + 1), 0.0)
        found.append((w.batch * most[K, M] / pass_seconds(work, rates, launch_us), (K, M, P)))
    return sorted(found, reverse=True)


def full_tokens(accepting: Accepting) -> float:
    """Tokens that no pass exceeds on average, whatever shifts its drafts come from: each draft has
    the best chance that any shift gives it."""
    total = 0.0
    for share, kind in accepting.parts:
        masks = len(kind.offsets)
        reached = tokens = 1.0
        for i, p in enumerate(kind.drafts[: masks - 1]):
            reached *= p * max(kind.offsets[i + 1 :])
            tokens += reached
        total += share * tokens
    return total


def _workload(w: Workload, K: int, M: int, branches: Sequence[int], accepted: float) -> Workload:
    return replace(w, verify_rows=K + 1, mask_rows=M, branches=tuple(branches), accepted=accepted)


def _evaluate(
    w: Workload, accepting: Accepting, rates: Ceilings, launch_us: float, K: int, M: int, P: int
) -> Found:
    tried = TRIED if comb(K + 1, P) <= TRIED else 0
    steady, exact = best_branches(accepting.resized(K, M), P, tried)
    work = _workload(w, K, M, steady.branches, steady.tokens_per_pass - 1)
    seconds = pass_seconds(work, rates, launch_us)
    return Found(K, M, steady, exact, seconds, w.batch * steady.tokens_per_pass / seconds)


def _capped(found: Found, limits: Limits) -> tuple[str, ...]:
    if not found.steady.branches:
        return ()
    at = {
        "K": found.drafts == limits.drafts,
        "M": found.mask_rows == limits.mask_rows,
        "P": found.proposals == limits.proposals < found.drafts + 1,
    }
    return tuple(name for name, capped in at.items() if capped)
