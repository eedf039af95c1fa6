"""Truncated logits for the peers: ids that top-k or top-p leaves out are -inf."""

from typing import Any

import torch

from .. import Sampling


def sampling(parameters: dict[str, Any], device: str) -> Sampling:
    """Temperature 1 for every request, with the case's top_k and top_p."""

    def each(name: str, dtype: torch.dtype) -> torch.Tensor | None:
        if name not in parameters:
            return None
        return torch.full((parameters["B"],), parameters[name], dtype=dtype, device=device)

    ones = torch.ones(parameters["B"], device=device)
    return Sampling(ones, each("top_k", torch.int32), each("top_p", torch.float32))


def truncated(logits: torch.Tensor, parameters: dict[str, Any]) -> torch.Tensor:
    """Top-k, then top-p of what top-k kept, along the last dimension; the same logits if the case
    has neither."""
    if "top_k" in parameters:
        values, indices = logits.topk(parameters["top_k"], -1)
        logits = torch.full_like(logits, -torch.inf).scatter_(-1, indices, values)
    if "top_p" in parameters:
        values, indices = logits.sort(-1, descending=True)
        p = values.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        left_out = p.cumsum(-1) - p >= parameters["top_p"]
        values = values.masked_fill(left_out, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, indices, values)
    return logits
