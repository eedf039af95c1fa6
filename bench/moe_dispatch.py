"""moe_dispatch of uniformly routed tokens, one in 17 of which skips the experts."""

from typing import Any

import torch

from .. import ops
from ..roofline import costs
from ..roofline.costs import Cost
from .case import Implementation, Prepared, backends, compiled

EXPERTS = 16
Output = tuple[torch.Tensor, torch.Tensor]  # order, offsets


def cases(quick: bool) -> list[dict[str, Any]]:
    return [dict(T=272)] if quick else [dict(T=t) for t in (16, 272, 1024, 8192)]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    return costs.moe_dispatch(parameters["T"], EXPERTS)


def sort_and_search(experts: torch.Tensor) -> Output:
    """Stable sort by expert, skips last; the offsets by binary search."""
    key = torch.where(experts < 0, EXPERTS, experts).flatten()
    ranked, order = key.sort(stable=True)
    bounds = torch.arange(EXPERTS + 1, device=key.device, dtype=key.dtype)
    return order.masked_fill(ranked == EXPERTS, -1), torch.searchsorted(ranked, bounds)


def one_hot(experts: torch.Tensor) -> Output:
    """The indices that are set in a mask of experts by tokens, as in transformers' experts."""
    mask = experts.flatten() == torch.arange(EXPERTS, device=experts.device)[:, None]
    order = mask.nonzero()[:, 1]
    offsets = torch.cat([order.new_zeros(1), mask.sum(1).cumsum(0)])
    skips = order.new_full((experts.numel() - len(order),), -1)
    return torch.cat([order, skips]), offsets


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    """`dtype` has no effect, since the op works on integers."""
    generator = torch.Generator().manual_seed(0)
    experts = torch.randint(-1, EXPERTS, (parameters["T"], 1), generator=generator)
    experts = experts.int().to(device)
    tokens = list(range(parameters["T"]))
    of_token = experts[:, 0].tolist()
    order = [t for e in range(EXPERTS) for t in tokens if of_token[t] == e]
    expected = order + [-1] * of_token.count(-1)
    bounds = [sum(0 <= e < first for e in of_token) for first in range(EXPERTS + 1)]

    def check(result: Output, slack: float) -> None:
        assert result[0].tolist() == expected, "order: differs"
        assert result[1].tolist() == bounds, f"offsets: {result[1].tolist()}, expected {bounds}"

    peers = [
        Implementation("sort + search", lambda: lambda: sort_and_search(experts)),
        compiled("compiled sort + search", sort_and_search, experts),
        Implementation("one-hot mask", lambda: lambda: one_hot(experts)),
    ]
    ours = backends("moe_dispatch", lambda name: ops.moe_dispatch(experts, EXPERTS, backend=name))
    return Prepared(ours + peers, check)
