"""Which branches the next pass drafts from, by how often drafts like its own were accepted."""

from typing import TYPE_CHECKING

import torch

from .plan import Plan

if TYPE_CHECKING:
    from .decode_state import State

# Classes of a draft's confidence q(x) end here
EDGES = (0.03, 0.07, 0.12, 0.2, 0.3, 0.45, 0.6, 0.75, 0.88, 0.96)
# Every rate starts at a guess that weighs as much as so many drafts
GUESS = 16
# Counts halve in so many passes, so that rates follow the traffic
HALF_LIFE = 4096


class Planner:
    """Counts, over all requests of a batch, how drafts fare, by two accounts.

    By confidence: the first draft of a pass, or a later one, of a class of q(x). It says how far
    this request's drafts will be accepted. By mask: draft i, from mask m of its proposal. It says
    what the proposals of the next pass will be worth; a far mask that supplies the first draft
    fares worse than one behind many drafts that were accepted, since those come in easy text.

    counts  float64 [2, confidence classes * 2 + K * M]: drafts judged, and accepted; those of an
            earlier batch of the same K and M may be continued
    """

    def __init__(self, state: "State", counts: torch.Tensor | None = None) -> None:
        layout, device = state.layout, state.anchor.device
        self.state = state
        self._edges = torch.tensor(EDGES, dtype=torch.float64, device=device)
        classes = len(EDGES) + 1
        self._account = 2 * classes  # where the account by mask begins
        self._draft = torch.arange(layout.K, device=device)
        self._later = (self._draft > 0) * classes
        self._pair = self._account + self._draft * layout.M
        self._place = torch.zeros(2, *state.drafts.shape, dtype=torch.long, device=device)
        if counts is None:
            guess = torch.cat([_by_confidence(), _by_mask(layout.K, layout.M)]).to(device)
            counts = GUESS * torch.stack([torch.ones_like(guess), guess])
        self.counts = counts
        self._rates = torch.empty_like(counts[0])
        self._accept = torch.zeros(state.drafts.shape, dtype=torch.float64, device=device)
        self._best = Plan()
        self._best.ops.plan_branches(
            self._accept, self._by_mask(), layout.P, state.draft_len, out=state.branch
        )

    def measure(self) -> None:
        """Count the drafts of the pass that were judged; to be called between acceptance and
        `State.emit`."""
        tried, kept = self.judged()
        # both accounts count each draft
        counted = torch.stack([tried, kept]).double()[:, None].expand(2, 2, *tried.shape)
        self.counts *= 0.5 ** (1 / HALF_LIFE)
        self.counts.index_add_(1, self._place.flatten(), counted.flatten(1))

    def judged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """bool [B,K], of the drafts of the pass: those that were judged, and that were kept. The
        first draft that is not kept was judged, the ones after it were not."""
        accepted = self.state.verdict.accepted[:, None]
        tried = (self._draft <= accepted) & (self._draft < self.state.draft_len[:, None])
        return tried, self._draft < accepted

    def look(self, draft_logits: torch.Tensor, temperature: torch.Tensor | None) -> None:
        """Class the drafts of the next pass. `temperature` [B]: of the distribution that
        they were drawn from; None: they are the greatest logits."""
        s = self.state
        logit = draft_logits.gather(-1, s.drafts.clamp(min=0).long()[..., None])[..., 0]
        below = logit - s.draft_lse[..., 0]
        if temperature is not None:
            below /= torch.where(temperature > 0, temperature, 1.0)[:, None]
        confidence = (below - s.draft_lse[..., 1]).exp()
        torch.add(self._later, torch.bucketize(confidence, self._edges), out=self._place[0])
        torch.add(self._pair, s.offset, out=self._place[1])

    def choose(self) -> None:
        """Set the branches of the next pass."""
        torch.take(self._rate(), self._place[0], out=self._accept)
        self._best.run()

    def _rate(self) -> torch.Tensor:
        tried, kept = self.counts
        return torch.div(kept, tried, out=self._rates)

    def by_mask(self) -> torch.Tensor:
        """float64 [K,M]: the rate of draft i from mask m, given that those before it are kept."""
        return self._by_mask().clone()

    def _by_mask(self) -> torch.Tensor:
        """It changes with the counts when the next branches are chosen."""
        return self._rate()[self._account :].view(self.state.layout.K, self.state.layout.M)


def _by_confidence() -> torch.Tensor:
    edges = torch.tensor([0.0, *EDGES, 1.0], dtype=torch.float64)
    return (0.15 + 0.75 * (edges[1:] + edges[:-1]) / 2).repeat(2)


def _by_mask(K: int, M: int) -> torch.Tensor:
    """A first draft fares worse the farther its mask is; what follows accepted drafts, better."""
    draft = torch.arange(K)[:, None].double()
    ahead = (torch.arange(M) - 1 - draft).clamp(min=0)  # the shift
    return torch.where(draft == 0, 0.6 * 0.8**ahead, 0.65 * 0.95**ahead).flatten()
