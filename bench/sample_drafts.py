"""sample_drafts over ZAYA's vocabulary. One id of each row has nearly all mass, so that the token
is known and peers with other random numbers can be checked. In cases with truncation no id has;
there the token must be one that truncation keeps."""

from collections.abc import Callable
from typing import Any

import torch

from .. import ops, words_of
from ..roofline import costs
from ..roofline.costs import Cost
from .case import Implementation, Prepared, backends, compiled
from .truncation import allowed, penalised, penalties, sampling, truncated, truncates

VOCAB = 262272
Output = tuple[torch.Tensor, torch.Tensor]


def cases(quick: bool) -> list[dict[str, Any]]:
    if quick:
        return [dict(B=1, K=4)]
    return [dict(B=b, K=16) for b in (1, 8, 32)] + [
        dict(B=1, K=16, top_k=50),
        dict(B=8, K=16, top_k=50),
        dict(B=1, K=16, top_p=0.9),
        dict(B=8, K=16, top_p=0.9),
        dict(B=8, K=16, min_p=0.05),
        dict(B=1, K=16, top_k=50, top_p=0.9),
        dict(B=8, K=16, top_k=50, top_p=0.9),
        dict(B=8, K=16, top_k=50, top_p=0.9, min_p=0.05),
        dict(B=8, K=16, allowed=0.5),
        dict(B=8, K=16, penalised=1000),
    ]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    return parameters["B"] * costs.sample_drafts(parameters["K"], VOCAB, itemsize)


def eager(logits: torch.Tensor) -> Output:
    """Softmax of all rows, then multinomial."""
    wide = logits.float()
    normaliser = wide.logsumexp(-1)
    p = (wide - normaliser[..., None]).exp()
    return torch.multinomial(p.flatten(0, 1), 1).reshape(normaliser.shape), normaliser


def inverse_cdf(logits: torch.Tensor) -> Output:
    wide = logits.float()
    normaliser = wide.logsumexp(-1)
    cdf = (wide - normaliser[..., None]).exp().cumsum(-1)
    u = torch.rand(*normaliser.shape, 1, device=wide.device) * cdf[..., -1:]
    return (cdf <= u).sum(-1), normaliser


def gumbel(logits: torch.Tensor) -> Output:
    """Without a cumulative sum: the argmax of the logits plus Gumbel noise."""
    wide = logits.float()
    noise = torch.empty_like(wide).exponential_().log()
    return (wide - noise).argmax(-1), wide.logsumexp(-1)


def peers(
    logits: torch.Tensor, kept: Callable[[torch.Tensor], torch.Tensor]
) -> list[Implementation]:
    def of_kept(draw: Callable[[torch.Tensor], Output]) -> Callable[[torch.Tensor], Output]:
        return lambda logits: draw(kept(logits))

    return [
        Implementation("eager softmax", lambda: lambda: of_kept(eager)(logits)),
        compiled("compiled lse + cdf", of_kept(inverse_cdf), logits),
        compiled("compiled gumbel", of_kept(gumbel), logits),
    ]


def checker(
    logits: torch.Tensor,
    winner: torch.Tensor | None,
    kept: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[Output, float], None]:
    """The token must be the winner or, without one, at least as likely as the least likely kept id.
    (Implementations may keep any of equal logits.)"""
    left = kept(logits.double())
    least = left.masked_fill(left == -torch.inf, torch.inf).amin(-1).cpu()
    expected = left.logsumexp(-1).cpu()
    logits = logits.cpu()

    def check(result: Output, slack: float) -> None:
        tokens, normaliser = (t.cpu() for t in result)
        if winner is not None:
            assert torch.equal(tokens.long(), winner.cpu()), (
                f"draft_tokens: {tokens.tolist()}, expected {winner.tolist()}"
            )
        drawn = logits.gather(-1, tokens.long()[..., None])[..., 0].double()
        assert (drawn >= least).all(), f"draft_tokens: {tokens.tolist()} are not all kept"
        if normaliser.dim() == 3:  # blockdraft's two numbers, at temperature 1
            normaliser = normaliser[..., :2].sum(-1)
        error = (normaliser - expected).abs().max().item()
        assert error < 1e-4, f"draft_lse: error {error:.1e}, expected less than 1e-4"

    return check


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    B, K = parameters["B"], parameters["K"]
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(B, K, VOCAB, generator=generator)).to(dtype).to(device)
    chosen = sampling(parameters, device)
    winner = None
    if not truncates(parameters):
        winner = torch.randint(VOCAB, (B, K), generator=generator).to(device)
        logits.scatter_(2, winner[..., None], 60.0)
    needed = torch.zeros(B, K, 1, dtype=torch.int64, device=device)
    mask = allowed(parameters, logits, needed if winner is None else winner[..., None])
    bits = None if mask is None else words_of(mask)
    changes = penalties(parameters, VOCAB, device)
    seen = None if changes.touched is None else changes.counts > 0

    def rest(logits: torch.Tensor) -> torch.Tensor:
        return truncated(logits, parameters, mask)

    def kept(logits: torch.Tensor) -> torch.Tensor:
        return rest(penalised(logits, changes, seen))

    lengths = torch.full((B,), K, dtype=torch.int32, device=device)
    position = torch.zeros(B, dtype=torch.int32, device=device)
    seed = torch.arange(B, device=device)

    def ours(backend: str) -> Output:
        return ops.sample_drafts(
            logits,
            lengths,
            seed=seed,
            position=position,
            drafter_sampling=chosen,
            penalties=changes,
            allowed=bits,
            backend=backend,
        )

    implementations = backends("sample_drafts", ours) + peers(logits, kept)
    return Prepared(implementations, checker(penalised(logits, changes, seen), winner, rest))
