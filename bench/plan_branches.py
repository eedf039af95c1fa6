"""plan_branches for 15 drafts and 16 mask rows. Several sets of branches may be equally good, so
the check compares the value of the set: the expected number of drafts accepted in the next pass."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch

from .. import ops
from ..roofline import costs
from ..roofline.costs import Cost
from .case import Implementation, Prepared, backends

K, MASKS = 15, 16
# A pass that accepts a drafts ends on level a + 1; branch c serves levels c, c+1, ...
LEVELS = K + 1


def cases(quick: bool) -> list[dict[str, Any]]:
    return [dict(B=8, P=3)] if quick else [dict(B=b, P=p) for b in (1, 8, 32) for p in (3, 6)]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    return costs.plan_branches(parameters["B"], K, MASKS, parameters["P"], itemsize)


@dataclass(frozen=True)
class Inputs:
    accept: torch.Tensor
    mask_accept: torch.Tensor
    draft_len: torch.Tensor
    proposals: int

    def weights(self) -> torch.Tensor:
        """[B,LEVELS]: the probability that the pass ends on each level."""
        accept = self.accept.double()
        reach = torch.cat([torch.ones_like(accept[:, :1]), accept.cumprod(1)], 1)
        return reach * (1 - torch.cat([accept, torch.zeros_like(accept[:, :1])], 1))

    def gains(self) -> torch.Tensor:
        """[LEVELS]: the expected drafts accepted in the next pass, by how many levels the branch is
        below the level on which this pass ends."""
        chances = [self.mask_accept.double().diagonal(s + 1) for s in range(LEVELS)]
        return torch.stack([chance.cumprod(0).sum() for chance in chances])

    def value(self, branch: torch.Tensor) -> torch.Tensor:
        """[B]: the value of branches [B,P]."""
        return (self.weights() * served(branch, self.gains())).sum(-1)

    @cached_property
    def sets(self) -> torch.Tensor:
        """All sets of branches."""
        every = list(combinations(range(1, LEVELS + 1), self.proposals))
        return torch.tensor(every, device=self.accept.device)


def served(branch: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """The gain at each level from the largest branch that is not above it; 0 without one."""
    level = torch.arange(1, LEVELS + 1, device=branch.device)
    below = (branch[..., None] >= 1) & (branch[..., None] <= level)
    nearest = torch.where(below, branch[..., None].long(), 0).amax(-2)
    shift = (level - nearest).clamp(max=LEVELS - 1)
    return torch.where(nearest > 0, gains[shift], 0.0)


def exhaustive(data: Inputs) -> Callable[[], torch.Tensor]:
    """The best of all sets, by one matrix product; the sets are listed beforehand."""
    sets = data.sets

    def run() -> torch.Tensor:
        return sets[(data.weights() @ served(sets, data.gains()).T).argmax(1)]

    return run


def in_python(data: Inputs) -> Callable[[], torch.Tensor]:
    """Dynamic programming on lists, request by request."""

    def best(weight: list[float], gain: list[float]) -> list[int]:
        tail = [(0.0, ())] * (LEVELS + 1)  # by level: value and branches of the levels from it on
        for _ in range(data.proposals):
            longer = []
            for first in range(LEVELS):
                value = 0.0
                found = 0.0, ()
                for last in range(first, LEVELS):
                    value += weight[last] * gain[last - first]
                    total = value + tail[last + 1][0]
                    if total > found[0]:
                        found = total, (first + 1, *tail[last + 1][1])
                longer.append(found)
            tail = longer + [(0.0, ())]
        chosen = list(max(tail)[1])
        return chosen + [-1] * (data.proposals - len(chosen))

    def run() -> torch.Tensor:
        gain = data.gains().tolist()
        return torch.tensor([best(weight, gain) for weight in data.weights().tolist()])

    return run


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    B, P = parameters["B"], parameters["P"]
    generator = torch.Generator().manual_seed(0)
    accept = (0.5 + 0.5 * torch.rand(B, K, generator=generator)).to(dtype).to(device)
    mask_accept = torch.linspace(1, 0.5, MASKS).expand(K, -1).to(dtype).to(device)
    draft_len = torch.full((B,), K, dtype=torch.int32, device=device)
    data = Inputs(accept, mask_accept, draft_len, P)
    expected = data.value(exhaustive(data)())

    def ours(backend: str) -> torch.Tensor:
        return ops.plan_branches(accept, mask_accept, P, draft_len, backend=backend)

    def check(branch: torch.Tensor, slack: float) -> None:
        branch = branch.to(device)
        assert (branch[:, 1:] > branch[:, :-1]).all(), f"branch: not ascending: {branch.tolist()}"
        torch.testing.assert_close(data.value(branch), expected, rtol=1e-12, atol=0)

    peers = [
        Implementation("exhaustive", lambda: exhaustive(data)),
        Implementation("Python lists", lambda: in_python(data)),
    ]
    return Prepared(backends("plan_branches", ours) + peers, check)
