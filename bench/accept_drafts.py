"""accept_drafts over ZAYA's vocabulary. The logits determine the outcome, so that peers with other
random numbers can be checked: accepted drafts have p = q, the rejected one has p = 1e-43, and the
distribution of the draw has nearly all its mass on one id. All peers apply the token rule, also
where blockdraft applies the block rule."""

from dataclasses import dataclass
from typing import Any

import torch

from .. import Penalties, Sampling, ops, words_of
from ..roofline import costs
from ..roofline.costs import Cost
from .case import Implementation, Prepared, backends, compiled
from .truncation import allowed, penalised, penalties, sampling, truncated, truncates

VOCAB, K = 262272, 16


def cases(quick: bool) -> list[dict[str, Any]]:
    if quick:
        return [dict(B=1, rule="token", accepted=5)]
    whole = [
        dict(B=b, rule=rule, accepted=a)
        for b in (1, 8, 32)
        for rule in ("token", "block")
        for a in (5, 8)
    ]
    return whole + [
        dict(B=1, rule="token", accepted=5, top_k=50),
        dict(B=8, rule="token", accepted=5, top_k=50),
        dict(B=1, rule="token", accepted=5, top_p=0.9),
        dict(B=8, rule="token", accepted=5, top_p=0.9),
        dict(B=8, rule="token", accepted=5, min_p=0.05),
        dict(B=8, rule="token", accepted=5, top_k=50, top_p=0.9),
        dict(B=8, rule="token", accepted=5, top_k=50, top_p=0.9, min_p=0.05),
        dict(B=8, rule="token", accepted=5, allowed=0.5),
        dict(B=8, rule="token", accepted=5, penalised=1000),
        dict(B=1, rule="block", accepted=5, top_k=50, top_p=0.9),
    ]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    block = parameters["rule"] == "block"
    one = costs.accept_drafts(parameters["accepted"], K, VOCAB, itemsize, block=block)
    return parameters["B"] * one


@dataclass(frozen=True)
class Inputs:
    target: torch.Tensor
    tokens: torch.Tensor
    draft: torch.Tensor
    draft_lse: torch.Tensor
    normaliser: torch.Tensor  # draft_lse as one number, at temperature 1
    kept_draft: torch.Tensor  # the draft logits after truncation, which peers are given
    winner: torch.Tensor  # the id that the draw yields
    sampling: Sampling
    mask: torch.Tensor | None  # bool, what target rows allow
    penalties: Penalties
    seen: torch.Tensor | None  # bool [B,vocab], the ids that have penalties

    lengths: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor

    def kept(self, target: torch.Tensor, parameters: dict[str, Any]) -> torch.Tensor:
        """The target's logits as peers have to make them."""
        return truncated(penalised(target, self.penalties, self.seen), parameters, self.mask)

    def kept_row(self, request: int, row: int, parameters: dict[str, Any]) -> torch.Tensor:
        at = slice(request, request + 1), slice(row, row + 1)
        p = self.penalties
        if p.touched is not None:
            p = Penalties(*(t[at[0]] for t in p[:5]))
        logits = penalised(self.target[at], p, None if self.seen is None else self.seen[at[0]])
        return truncated(logits, parameters, None if self.mask is None else self.mask[at])[0, 0]


def inputs(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Inputs:
    B, accepted = parameters["B"], parameters["accepted"]
    generator = torch.Generator().manual_seed(0)
    target = (2 * torch.randn(B, K + 1, VOCAB, generator=generator)).to(dtype).to(device)
    draft = target[:, :K].clone()
    tokens = torch.randint(VOCAB // 2, (B, K), generator=generator).int().to(device)
    chosen = sampling(parameters, device)
    if truncates(parameters):
        tokens = draft.argmax(-1).int()  # a draft that truncation keeps
    winner = VOCAB // 2 + torch.randint(VOCAB // 2, (B,), generator=generator).to(device)
    request = torch.arange(B, device=device)
    # In the rejected row the target has nearly all mass on `winner`. The draft's probability there
    # is so small that it is never accepted, but not 0 (unless truncated), since the block rule
    # would then read no further row.
    target[request, accepted, winner] = 60.0
    target[request, accepted, tokens[:, accepted].long()] = -40.0
    lengths = torch.full((B,), K, dtype=torch.int32, device=device)
    position = torch.zeros(B, dtype=torch.int32, device=device)
    changes = penalties(parameters, VOCAB, device)
    seen = None if changes.touched is None else changes.counts > 0
    _, draft_lse = ops.sample_drafts(
        draft,
        lengths,
        seed=request,
        position=position,
        drafter_sampling=chosen,
        penalties=changes,
    )
    kept = truncated(penalised(draft, changes, seen), parameters)
    needed = torch.cat([tokens.long(), tokens[:, :1].long()], 1)[..., None]
    needed = torch.cat([needed, winner[:, None, None].expand(-1, K + 1, 1)], -1)
    return Inputs(
        target,
        tokens,
        draft,
        draft_lse,
        draft_lse[..., :2].sum(-1).float(),
        kept,
        winner,
        chosen,
        allowed(parameters, target, needed),
        changes,
        seen,
        lengths,
        request,
        position,
    )


def eager(target: torch.Tensor, tokens: torch.Tensor, draft: torch.Tensor):
    """Softmax of all rows, vectorised tests, multinomial of the residual."""
    p = target.float().softmax(-1)
    q = draft.float().softmax(-1)
    index = tokens.long()[..., None]
    ratio = p[:, :K].gather(-1, index)[..., 0] / q.gather(-1, index)[..., 0]
    count = (torch.rand_like(ratio) < ratio.clamp(max=1)).int().cumprod(1).sum(1)
    rows = torch.arange(len(p), device=p.device)
    drafted = q[rows, count.clamp(max=K - 1)] * (count < K)[:, None]
    residual = (p[rows, count] - drafted).clamp(min=0)
    return count, torch.multinomial(residual, 1)[:, 0]


def inverse_cdf(target: torch.Tensor, tokens: torch.Tensor, draft: torch.Tensor, lse: torch.Tensor):
    """Only log-sum-exps of all rows, then the CDF of one row."""
    wide = target.float()
    normaliser = wide.logsumexp(-1)
    index = tokens.long()[..., None]
    log_p = wide[:, :K].gather(-1, index)[..., 0] - normaliser[:, :K]
    log_q = draft.float().gather(-1, index)[..., 0] - lse
    ratio = (log_p - log_q).exp()
    count = (torch.rand_like(ratio) < ratio).int().cumprod(1).sum(1)
    rows = torch.arange(len(wide), device=wide.device)
    at = count.clamp(max=K - 1)
    p = (wide[rows, count] - normaliser[rows, count][:, None]).exp()
    q = (draft[rows, at].float() - lse[rows, at][:, None]).exp() * (count < K)[:, None]
    cdf = (p - q).clamp(min=0).cumsum(-1)
    u = torch.rand(len(wide), 1, device=wide.device) * cdf[:, -1:]
    return count, (cdf <= u).sum(-1)


def lazy(data: Inputs, parameters: dict[str, Any]):
    """Row by row up to the first rejection."""

    def q(request: int, row: int) -> torch.Tensor:
        return (data.kept_draft[request, row].float() - data.normaliser[request, row]).exp()

    counts, picks = [], []
    for request in range(len(data.target)):
        count = 0
        while True:
            p = data.kept_row(request, count, parameters).float().softmax(-1)
            if count == K:
                break
            x = data.tokens[request, count].long()
            log_q = data.kept_draft[request, count, x].float() - data.normaliser[request, count]
            if torch.rand(()) >= p[x] / log_q.exp():
                p = (p - q(request, count)).clamp(min=0)
                break
            count += 1
        cdf = p.cumsum(0)
        counts.append(count)
        picks.append(int(torch.searchsorted(cdf, torch.rand(()).item() * cdf[-1])))
    return torch.tensor(counts), torch.tensor(picks)


def transformers(data: Inputs, parameters: dict[str, Any]):
    from transformers.generation.utils import _speculative_sampling

    def run():
        kept = data.kept(data.target, parameters)
        counts, picks = [], []
        for request in range(len(kept)):  # _speculative_sampling takes one sequence
            one = slice(request, request + 1)
            ids, matches = _speculative_sampling(
                data.tokens[one].long(), data.kept_draft[one].float(), K, kept[one].float()
            )
            counts.append(int(matches))
            picks.append(int(ids[0, -1]))
        return torch.tensor(counts), torch.tensor(picks)

    return run


def peers(data: Inputs, parameters: dict[str, Any]) -> list[Implementation]:
    """A peer's time includes the truncation of the target's rows, but not of the draft rows, which
    its drafter has truncated."""

    def eager_all():
        return eager(data.kept(data.target, parameters), data.tokens, data.kept_draft)

    def inverse_all(target, tokens, draft, lse):
        return inverse_cdf(data.kept(target, parameters), tokens, draft, lse)

    given = (data.target, data.tokens, data.kept_draft, data.normaliser)
    return [
        Implementation("eager softmax", lambda: eager_all),
        compiled("compiled lse + cdf", inverse_all, *given),
        Implementation("transformers", lambda: transformers(data, parameters)),
        Implementation("lazy rows", lambda: lambda: lazy(data, parameters)),
    ]


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    data = inputs(parameters, dtype, device)
    branch = torch.ones(parameters["B"], 1, dtype=torch.int32, device=device)
    bits = None if data.mask is None else words_of(data.mask)

    def ours(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        verdict = ops.accept_drafts(
            data.target,
            data.tokens,
            data.lengths,
            branch,
            K + 1,
            seed=data.seed,
            position=data.position,
            rule=parameters["rule"],
            target_sampling=data.sampling,
            draft_logits=data.draft,
            draft_lse=data.draft_lse,
            penalties=data.penalties,
            allowed=bits,
            backend=backend,
        )
        return verdict.accepted, verdict.next_token

    def check(result: tuple[torch.Tensor, torch.Tensor], slack: float) -> None:
        counts, picks = (t.cpu().long() for t in result)
        expected, winner = parameters["accepted"], data.winner.cpu().long()
        assert (counts == expected).all(), f"accepted: {counts.tolist()}, expected {expected} each"
        assert torch.equal(picks, winner), (
            f"next_token: {picks.tolist()}, expected {winner.tolist()}"
        )

    return Prepared(backends("accept_drafts", ours) + peers(data, parameters), check)
