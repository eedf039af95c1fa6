"""How many drafts a pass accepts, as the probability of each draft given the ones before it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Acceptance:
    """drafts [K]: conditional acceptance of draft i, by its place in the pass. offsets [M]: a
    factor by the mask offset that the token came from. A pass whose drafts come from shift s tests
    draft i at `drafts[i] * offsets[s + 1 + i]`.

    With all `drafts` 1 this is `plan_branches`' `offset_accept`; with all `offsets` 1 only the
    length of the tail matters.
    """

    drafts: tuple[float, ...]
    offsets: tuple[float, ...]

    def __post_init__(self):
        for name in ("drafts", "offsets"):
            values = getattr(self, name)
            if not all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in values):
                raise ValueError(
                    f"acceptance: {name}: expected probabilities in 0..1, got {list(values)}"
                )
        if not self.offsets:
            raise ValueError("acceptance: offsets: expected at least one mask row, got none")

    def draft_len(self, shift: int) -> int:
        """D: drafts that a proposal at this shift supplies."""
        return max(0, min(len(self.offsets) - 1 - shift, len(self.drafts)))

    def law(self, shift: int) -> list[float]:
        """Probability of each number accepted, 0..D, in a pass whose drafts come from this
        shift."""
        alive, law = 1.0, []
        for i in range(self.draft_len(shift)):
            p = self.drafts[i] * self.offsets[shift + 1 + i]
            law.append(alive * (1 - p))
            alive *= p
        return [*law, alive]


def iid(
    alpha: float, drafts: int, mask_rows: int, offsets: Sequence[float] | None = None
) -> Acceptance:
    """Every draft is accepted with probability alpha."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a probability in 0..1, got {alpha!r}")
    return Acceptance((alpha,) * drafts, _factors(offsets, mask_rows))


def solve_alpha(tokens: float, drafts: int) -> float:
    """The alpha whose full drafts commit `tokens` a pass on average: sum of alpha^i for i in
    0..K."""
    if not 1 <= tokens <= drafts + 1:
        raise ValueError(
            f"mean: expected 1 .. {drafts + 1} tokens a pass (the drafts and one more), got {tokens!r}"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if sum(middle**i for i in range(drafts + 1)) < tokens else (low, middle)
        )
    return (low + high) / 2


def histogram(
    counts: Sequence[float], mask_rows: int, offsets: Sequence[float] | None = None
) -> Acceptance:
    """counts[a]: how often a full draft of K had a accepted, K + 1 entries. A shorter draft of D
    accepts min(a, D)."""
    if len(counts) < 1 or not all(c >= 0 for c in counts) or not 0 < sum(counts) < float("inf"):
        raise ValueError(
            f"histogram: expected K + 1 frequencies >= 0, not all 0, got {list(counts)}"
        )
    above = [sum(counts[a:]) for a in range(len(counts))]
    drafts = tuple(above[i + 1] / above[i] if above[i] else 0.0 for i in range(len(counts) - 1))
    return Acceptance(drafts, _factors(offsets, mask_rows))


def bimodal(none: float = 0.27, everything: float = 0.28, drafts: int = 16) -> list[float]:
    """A histogram with a share for no draft and one for all, the rest even between (Zyphra's 27 %
    and 28 %, then 3 % each)."""
    return [none] + [(1 - none - everything) / (drafts - 1)] * (drafts - 1) + [everything]


def _factors(offsets, mask_rows: int) -> tuple[float, ...]:
    if offsets is not None and len(offsets) != mask_rows:
        raise ValueError(
            f"offsets: expected {mask_rows} numbers, one a mask row, got {len(offsets)}"
        )
    return tuple(offsets) if offsets is not None else (1.0,) * mask_rows


def from_options(
    drafts: int,
    mask_rows: int,
    mean: float | None = None,
    alpha: float | None = None,
    counts: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
) -> Acceptance:
    """One of mean (tokens a pass), alpha or a histogram, times the offsets; offsets alone; by
    default Zyphra's mean of 4.6."""
    given = [
        name
        for name, value in (("mean", mean), ("alpha", alpha), ("histogram", counts))
        if value is not None
    ]
    if len(given) > 1:
        raise ValueError(
            f"acceptance: expected one of mean, alpha, histogram, got {' and '.join(given)}"
        )
    if counts is not None:
        if len(counts) != drafts + 1:
            raise ValueError(
                f"histogram: expected {drafts + 1} frequencies, of 0 .. {drafts} accepted drafts, got {len(counts)}"
            )
        return histogram(counts, mask_rows, offsets)
    if alpha is None and mean is None and offsets is not None:
        return iid(1.0, drafts, mask_rows, offsets)
    if alpha is None:
        alpha = solve_alpha(min(4.6, (drafts + 2) / 2) if mean is None else mean, drafts)
    return iid(alpha, drafts, mask_rows, offsets)
