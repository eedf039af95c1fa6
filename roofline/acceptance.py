"""How many drafts a pass accepts, as the probability of each draft given the ones before it; the
same for every request (`Acceptance`), or of several kinds of requests (`Mixture`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

# Zyphra's lossless figure with its number of drafts, and the default of every command
MEAN_TOKENS = 4.6
MEAN_DRAFTS = 16

# What a law that was measured with full drafts says of a mask row: its place among the drafts
# decides, so that a far mask is as good as a near one (position); or its place in the proposal does
# (offset)
ATTRIBUTES = ("position", "offset")


@dataclass(frozen=True)
class Acceptance:
    """Conditional probabilities, of which a pass multiplies two for each draft.

    drafts     [K]: by the place of the draft in the pass
    offsets    [M]: a factor by the mask row that the draft was drawn from

    A pass whose drafts come from shift s accepts draft i with probability
    `drafts[i] * offsets[s + 1 + i]`; with all `offsets` 1 a shift only shortens the draft.

    pairs      [K][M]: the probability of draft i from mask m, where that was counted, in place of
               the product; `plan_branches` calls it `mask_accept`
    text       what is assumed, as it is printed
    """

    drafts: tuple[float, ...]
    offsets: tuple[float, ...]
    pairs: tuple[tuple[float, ...], ...] = ()
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("drafts", "offsets"):
            values = getattr(self, name)
            if not all(isinstance(p, (int, float)) and 0 <= p <= 1 for p in values):
                raise ValueError(
                    f"acceptance: {name}: expected probabilities in 0..1, got {list(values)}"
                )
        if not self.offsets:
            raise ValueError("acceptance: offsets: expected at least one mask row, got none")

    @property
    def parts(self) -> tuple[tuple[float, "Acceptance"], ...]:
        """As those of a Mixture."""
        return ((1.0, self),)

    def resized(self, drafts: int, mask_rows: int) -> "Acceptance":
        """For K and M of other sizes. Beyond what is known, the last value holds."""
        pairs = tuple(_sized(row, mask_rows) for row in self.pairs)
        return replace(
            self,
            drafts=_sized(self.drafts, drafts),
            offsets=_sized(self.offsets, mask_rows),
            pairs=_sized(pairs, drafts) if pairs else (),
        )

    def draft_len(self, shift: int) -> int:
        """D: the drafts that a proposal supplies at this shift."""
        return max(0, min(len(self.offsets) - 1 - shift, len(self.drafts)))

    def distribution(self, shift: int) -> list[float]:
        """Probability that a pass accepts 0, 1, .., D of the drafts that come from this shift."""
        reached = 1.0
        found = []
        for i in range(self.draft_len(shift)):
            mask = shift + 1 + i
            p = self.pairs[i][mask] if self.pairs else self.drafts[i] * self.offsets[mask]
            found.append(reached * (1 - p))
            reached *= p
        return [*found, reached]


@dataclass(frozen=True)
class Mixture:
    """Several kinds of requests, each with its share of the requests under way and its acceptance.
    A request keeps its kind; all of them run with the same branches."""

    parts: tuple[tuple[float, Acceptance], ...]
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.parts]
        if not shares or not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"mixture: expected shares above 0 that sum to 1, got {shares}")
        if len({(len(a.drafts), len(a.offsets)) for _, a in self.parts}) > 1:
            raise ValueError("mixture: expected the same K and M of every kind, got several")

    @property
    def drafts(self) -> tuple[float, ...]:
        """Of the first kind: their number is that of all."""
        return self.parts[0][1].drafts

    @property
    def offsets(self) -> tuple[float, ...]:
        """Of the first kind: their number is that of all."""
        return self.parts[0][1].offsets

    def resized(self, drafts: int, mask_rows: int) -> "Mixture":
        parts = ((share, part.resized(drafts, mask_rows)) for share, part in self.parts)
        return replace(self, parts=tuple(parts))


def counted(pairs: Sequence[Sequence[float]]) -> Acceptance:
    """pairs [K][M]: the probability of draft i from mask m, given that those before it are
    accepted."""
    rows = tuple(map(tuple, pairs))
    return Acceptance((1.0,) * len(rows), (1.0,) * len(rows[0]), rows, "as counted")


def _sized(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Cut, or continued by the last value."""
    last = values[-1:] or (1.0,)
    return (values + last * max(0, count - len(values)))[:count]


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


def by_offset(accepting: Acceptance) -> Acceptance:
    """A law of full drafts that starts at mask 1, attributed to the mask rows: draft i of a full
    draft came from mask 1 + i, and keeps that chance wherever it comes to stand. Where every draft
    has the same chance, that changes nothing."""
    if len(set(accepting.drafts)) <= 1:
        return accepting
    masks = _sized((1.0, *accepting.drafts), len(accepting.offsets))
    offsets = tuple(p * factor for p, factor in zip(masks, accepting.offsets, strict=True))
    return replace(accepting, drafts=(1.0,) * len(accepting.drafts), offsets=offsets)


def from_options(
    drafts: int,
    mask_rows: int,
    mean: float | None = None,
    alpha: float | None = None,
    counts: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
    mixture: Sequence[tuple[float, float]] | None = None,
    attribute: str = "position",
) -> Acceptance | Mixture:
    """One of mean (tokens a pass), alpha, a histogram or a mixture of (share, alpha), attributed to
    position or offset, times the offsets; or the offsets alone; or, where nothing is given, the
    alpha with which MEAN_DRAFTS drafts yield MEAN_TOKENS."""
    if attribute not in ATTRIBUTES:
        raise ValueError(f"attribute: expected one of {', '.join(ATTRIBUTES)}, got {attribute!r}")
    options = {"mean": mean, "alpha": alpha, "histogram": counts, "mixture": mixture}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"acceptance: expected one of {', '.join(options)}, got {' and '.join(given)}"
        )
    if mixture is not None:
        found = [(s, iid(a, drafts, mask_rows, offsets)) for s, a in mixture]
        kinds = ", ".join(f"{s:.0%} at {a:g}" for s, a in mixture)
        text = f"requests of {len(found)} kinds, {kinds} a draft"
    elif counts is not None:
        if len(counts) != drafts + 1:
            raise ValueError(
                f"histogram: expected {drafts + 1} frequencies, of 0 .. {drafts} accepted drafts, "
                f"got {len(counts)}"
            )
        found = [(1.0, histogram(counts, mask_rows, offsets))]
        text = "the histogram's, anew for each pass"
    elif mean is None and alpha is None and offsets is not None:
        text = "the offsets' own"
        return replace(iid(1.0, drafts, mask_rows, offsets), text=text)
    else:
        chance, text = _chance(drafts, mean, alpha)
        found = [(1.0, iid(chance, drafts, mask_rows, offsets))]
    if attribute == "offset":
        found = [(share, by_offset(part)) for share, part in found]
        text += "; by mask offset: a far mask keeps its own chance wherever it stands"
    else:
        text += "; by position: a far mask is as good as a near one"
    if offsets is not None:
        text += "; times --offsets"
    if mixture is not None:
        return Mixture(tuple(found), text)
    return replace(found[0][1], text=text)


def _chance(drafts: int, mean: float | None, alpha: float | None) -> tuple[float, str]:
    """The chance of each draft, and what it rests on."""
    if alpha is not None:
        return alpha, f"{alpha:g} a draft, independent"
    if mean is not None:
        chance = solve_alpha(mean, drafts)
        return chance, f"{chance:.3f} a draft, independent (mean {mean:g} with {drafts} drafts)"
    chance = solve_alpha(MEAN_TOKENS, MEAN_DRAFTS)
    origin = f"mean {MEAN_TOKENS:g} with {MEAN_DRAFTS} drafts, Zyphra's lossless figure"
    return chance, f"{chance:.3f} a draft, independent ({origin})"
