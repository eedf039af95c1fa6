"""accept_drafts over ZAYA's vocabulary. The logits decide the outcome, so that random peers can be
checked: accepted drafts have p = q, the rejected one p = 1e-43, and the draw has nearly all its
mass on one id."""

import torch

from .. import Sampling, ops
from ..roofline import costs
from .rows import DTYPES, Implementation, Row, backends

VOCAB, K = 262272, 16


def cases(quick):
    if quick:
        return [dict(B=1, rule="token", accepted=5)]
    return [
        dict(B=b, rule=rule, accepted=a)
        for b in (1, 8, 32)
        for rule in ("token", "block")
        for a in (5, 8)
    ]


def build(case, dtype, device):
    B, a, rule = case["B"], case["accepted"], case["rule"]
    generator = torch.Generator().manual_seed(0)
    target = (2 * torch.randn(B, K + 1, VOCAB, generator=generator)).to(DTYPES[dtype]).to(device)
    draft = target[:, :K].clone()
    tokens = torch.randint(VOCAB // 2, (B, K), generator=generator).int().to(device)
    winner = VOCAB // 2 + torch.randint(VOCAB // 2, (B,), generator=generator).to(device)
    row = torch.arange(B, device=device)
    # the rejected row: the target is all but certain of `winner`; its draft has so small a
    # probability that it is never accepted, but not 0, after which the block rule would not read on
    target[row, a, winner] = 60.0
    target[row, a, tokens[:, a].long()] = -40.0
    i32 = dict(dtype=torch.int32, device=device)
    lengths, branch = torch.full((B,), K, **i32), torch.full((B, 1), 1, **i32)
    ones = torch.ones(B, device=device)
    seed, position = torch.arange(B, device=device), torch.zeros(B, **i32)
    lse = torch.stack([draft[:, i].float().logsumexp(-1) for i in range(K)], 1)

    def mine(backend):
        verdict = ops.accept_drafts(
            target,
            tokens,
            lengths,
            branch,
            K + 1,
            seed=seed,
            position=position,
            rule=rule,
            target_sampling=Sampling(ones),
            draft_logits=draft,
            draft_lse=lse,
            backend=backend,
        )
        return verdict.accepted, verdict.next_token

    def eager(target, tokens, draft):
        """Softmax of all rows, one vectorised test, multinomial of the residual."""
        p, q = target.float().softmax(-1), draft.float().softmax(-1)
        index = tokens.long()[..., None]
        ratio = p[:, :K].gather(-1, index)[..., 0] / q.gather(-1, index)[..., 0]
        count = (torch.rand_like(ratio) < ratio.clamp(max=1)).int().cumprod(1).sum(1)
        rows = torch.arange(len(p), device=p.device)
        drafted = q[rows, count.clamp(max=K - 1)] * (count < K)[:, None]
        residual = (p[rows, count] - drafted).clamp(min=0)
        return count, torch.multinomial(residual, 1)[:, 0]

    def inverse_cdf(target, tokens, draft, lse):
        """No softmax of whole tensors: log-sum-exps, then the CDF of one row; compiled."""
        wide = target.float()
        normal = wide.logsumexp(-1)
        index = tokens.long()[..., None]
        log_ratio = (wide[:, :K].gather(-1, index)[..., 0] - normal[:, :K]) - (
            draft.float().gather(-1, index)[..., 0] - lse
        )
        count = (torch.rand_like(log_ratio) < log_ratio.exp()).int().cumprod(1).sum(1)
        rows = torch.arange(len(wide), device=wide.device)
        at = count.clamp(max=K - 1)
        p = (wide[rows, count] - normal[rows, count][:, None]).exp()
        q = (draft[rows, at].float() - lse[rows, at][:, None]).exp() * (count < K)[:, None]
        cdf = (p - q).clamp(min=0).cumsum(-1)
        u = torch.rand(len(wide), 1, device=wide.device) * cdf[:, -1:]
        return count, (cdf <= u).sum(-1)

    def lazy(target, tokens, draft, lse):
        """Row by row, and none after the first rejection."""
        counts, picks = [], []
        for b in range(len(target)):
            count = 0
            while True:
                p = target[b, count].float().softmax(-1)
                if count == K:
                    break
                x = tokens[b, count]
                if torch.rand(()) >= p[x] / (draft[b, count, x].float() - lse[b, count]).exp():
                    p = (p - (draft[b, count].float() - lse[b, count]).exp()).clamp(min=0)
                    break
                count += 1
            cdf = p.cumsum(0)
            counts.append(count)
            picks.append(int(torch.searchsorted(cdf, torch.rand(()).item() * cdf[-1])))
        return torch.tensor(counts), torch.tensor(picks)

    def transformers():
        from transformers.generation.utils import _speculative_sampling

        def run():
            counts, picks = [], []
            for b in range(B):  # it takes one sequence
                ids, matches = _speculative_sampling(
                    tokens[b : b + 1].long(), draft[b : b + 1].float(), K, target[b : b + 1].float()
                )
                counts.append(int(matches))
                picks.append(int(ids[0, -1]))
            return torch.tensor(counts), torch.tensor(picks)

        return run

    def compiled(function, *inputs):
        def prepare():
            run = torch.compile(function, dynamic=False)
            run(*inputs)
            return lambda: run(*inputs)

        return prepare

    # all peers apply the token rule; in block rule they are what its users would otherwise run
    peers = [
        Implementation("eager softmax", lambda: lambda: eager(target, tokens, draft)),
        Implementation("compiled lse + cdf", compiled(inverse_cdf, target, tokens, draft, lse)),
        Implementation("transformers", transformers),
        Implementation("lazy rows", lambda: lambda: lazy(target, tokens, draft, lse)),
    ]

    def check(result, slack):
        counts, picks = (t.cpu().long() for t in result)
        assert (counts == a).all(), f"accepted: {counts.tolist()}, expected {a} each"
        assert torch.equal(picks, winner.cpu().long()), (
            f"next_token: {picks.tolist()}, expected {winner.tolist()}"
        )

    cost = B * costs.accept_drafts(a, K, VOCAB, target.element_size(), block=rule == "block")
    return Row("accept", case, dtype, cost, backends("accept_drafts", mine) + peers, check)
