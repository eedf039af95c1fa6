"""How many drafts a pass accepts, as the probability of each draft given the ones before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Zyphra's lossless figure, and the default of every command
MEAN_TOKENS = 4.6


@dataclass(frozen=True)
class Acceptance:
    """Conditional probabilities, of which a pass multiplies two for each draft.

    drafts     [K]: by the place of the draft in the pass
    offsets    [M]: a factor by the mask row that the draft was drawn from

    A pass whose drafts come from shift s accepts draft i with probability
    `drafts[i] * offsets[s + 1 + i]`. With all `drafts` 1 the `offsets` are what `plan_branches`
    calls `offset_accept`; with all `offsets` 1 a shift only shortens the draft.
    """

    drafts: tuple[float, ...]
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("drafts", "offsets"):
            values = getattr(self, name)
            if not all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in values):
                raise ValueError(
                    f"acceptance: {name}: expected probabilities in 0..1, got {list(values)}"
                )
        if not self.offsets:
            raise ValueError("acceptance: offsets: expected at least one mask row, got none")

    def draft_len(self, shift: int) -> int:
        """D: the drafts that a proposal supplies at this shift."""
        return max(0, min(len(self.offsets) - 1 - shift, len(self.drafts)))

    def distribution(self, shift: int) -> list[float]:
        """Probability that a pass accepts 0, 1, .., D of the drafts that come from this shift."""
        reached = 1.0
        found = []
        for i in range(self.draft_len(shift)):
            p = self.drafts[i] * self.offsets[shift + 1 + i]
            found.append(reached * (1 - p))
            reached *= p
        return [*found, reached]


def iid(
    alpha: float, drafts: int, mask_rows: int, offsets: Sequence[float] | None = None
) -> Acceptance:
    """Every draft is accepted with probability alpha."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a probability in 0..1, got {alpha!r}")
    return Acceptance((alpha,) * drafts, _factors(offsets, mask_rows))


def solve_alpha(tokens: float, drafts: int) -> float:
    """The alpha with which a full draft commits `tokens` on average, which is the sum of alpha^i
    for i in 0..K."""
    if not 1 <= tokens <= drafts + 1:
        raise ValueError(
            f"mean: expected 1 .. {drafts + 1} tokens a pass (the drafts and one more), "
            f"got {tokens!r}"
        )
    low = 0.0
    high = 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**i for i in range(drafts + 1)) < tokens:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def histogram(
    counts: Sequence[float], mask_rows: int, offsets: Sequence[float] | None = None
) -> Acceptance:
    """counts [K + 1]: how often a full draft of K had 0, 1, .., K accepted. A draft of D < K then
    accepts the lesser of that and D."""
    if len(counts) < 1 or not all(c >= 0 for c in counts) or not 0 < sum(counts) < float("inf"):
        raise ValueError(
            f"histogram: expected K + 1 frequencies >= 0, not all 0, got {list(counts)}"
        )
    at_least = [sum(counts[a:]) for a in range(len(counts))]
    drafts = tuple(longer / reached if reached else 0.0 for reached, longer in pairwise(at_least))
    return Acceptance(drafts, _factors(offsets, mask_rows))


def bimodal(none: float = 0.27, everything: float = 0.28, drafts: int = 16) -> list[float]:
    """A histogram with one share for no draft, one for all of them, and the rest divided evenly
    between. The defaults are Zyphra's 27 % and 28 %, which leave 3 % for each other length."""
    each = (1 - none - everything) / (drafts - 1)
    return [none] + [each] * (drafts - 1) + [everything]


def _factors(offsets: Sequence[float] | None, mask_rows: int) -> tuple[float, ...]:
    if offsets is None:
        return (1.0,) * mask_rows
    if len(offsets) != mask_rows:
        raise ValueError(
            f"offsets: expected {mask_rows} numbers, one a mask row, got {len(offsets)}"
        )
    return tuple(offsets)


def from_options(
    drafts: int,
    mask_rows: int,
    mean: float | None = None,
    alpha: float | None = None,
    counts: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
) -> Acceptance:
    """One of mean (tokens a pass), alpha or a histogram, times the offsets; or the offsets alone;
    or MEAN_TOKENS where nothing is given."""
    options = {"mean": mean, "alpha": alpha, "histogram": counts}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"acceptance: expected one of mean, alpha, histogram, got {' and '.join(given)}"
        )
    if counts is not None:
        if len(counts) != drafts + 1:
            raise ValueError(
                f"histogram: expected {drafts + 1} frequencies, of 0 .. {drafts} accepted drafts, "
                f"got {len(counts)}"
            )
        return histogram(counts, mask_rows, offsets)
    if alpha is not None:
        return iid(alpha, drafts, mask_rows, offsets)
    if mean is None and offsets is not None:
        return iid(1.0, drafts, mask_rows, offsets)
    if mean is None:
        # a short draft cannot reach the usual mean
        mean = min(MEAN_TOKENS, (drafts + 2) / 2)
    return iid(solve_alpha(mean, drafts), drafts, mask_rows, offsets)
