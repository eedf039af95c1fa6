"""What a case asks of sampling, and the same for the peers: ids that are not allowed, or that
min-p, top-k or top-p leaves out, are -inf."""

from typing import Any

import torch

from .. import Penalties, Sampling, words_of


def sampling(parameters: dict[str, Any], device: str) -> Sampling:
    """Temperature 1 for every request, with the case's top_k, top_p and min_p."""

    def each(name: str, dtype: torch.dtype) -> torch.Tensor | None:
        if name not in parameters:
            return None
        return torch.full((parameters["B"],), parameters[name], dtype=dtype, device=device)

    ones = torch.ones(parameters["B"], device=device)
    shares = each("top_p", torch.float32), each("min_p", torch.float32)
    return Sampling(ones, each("top_k", torch.int32), *shares)


def truncates(parameters: dict[str, Any]) -> bool:
    return any(name in parameters for name in ("top_k", "top_p", "min_p"))


def allowed(
    parameters: dict[str, Any], logits: torch.Tensor, keep: torch.Tensor
) -> torch.Tensor | None:
    """bool, of the logits' shape: a random share of the ids, and those of `keep` [...,n]; None if
    the case allows all."""
    if "allowed" not in parameters:
        return None
    generator = torch.Generator(logits.device).manual_seed(1)
    some = torch.rand(logits.shape[-1], generator=generator, device=logits.device)
    mask = (some < parameters["allowed"]).expand(logits.shape).clone()
    return mask.scatter_(-1, keep, True)


def penalties(parameters: dict[str, Any], vocab: int, device: str) -> Penalties:
    """The case's number of ids, emitted one to three times by every request; none if the case has
    no such number."""
    if "penalised" not in parameters:
        return Penalties()
    B, generator = parameters["B"], torch.Generator().manual_seed(2)
    ids = torch.randperm(vocab, generator=generator)[: parameters["penalised"]].expand(B, -1)
    seen = torch.zeros(B, vocab, dtype=torch.bool).scatter_(1, ids, True)
    counts = torch.randint(1, 4, (B, vocab), generator=generator, dtype=torch.int32)
    each = torch.ones(B, device=device)
    touched = words_of(seen)
    return Penalties(
        touched.to(device), (counts * seen).to(device), 1.1 * each, 0.1 * each, 0.1 * each
    )


def penalised(logits: torch.Tensor, penalties: Penalties, seen: torch.Tensor) -> torch.Tensor:
    """vLLM's formulas over whole rows [B,R,vocab]; seen bool [B,vocab]."""
    if penalties.touched is None:
        return logits
    counts = penalties.counts[:, None]
    repetition, presence, frequency = (t[:, None, None] for t in penalties[2:5])
    x = logits.float()
    x = torch.where(seen[:, None], torch.where(x > 0, x / repetition, x * repetition), x)
    return x - frequency * counts - presence * (counts > 0)


def truncated(
    logits: torch.Tensor, parameters: dict[str, Any], mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The logits of what is allowed and kept by min-p, then top-k, then top-p, along the last
    dimension; the same logits if the case has none of them."""
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    if "min_p" in parameters:
        p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        left_out = p < parameters["min_p"] * p.amax(-1, keepdim=True)
        logits = logits.masked_fill(left_out, -torch.inf)
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
