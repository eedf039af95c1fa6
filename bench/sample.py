"""sample_drafts over ZAYA's vocabulary. One logit of each row has all but no rest of the mass, so
that random peers can be checked: the token is known."""

import torch

from .. import Sampling, ops
from ..roofline import costs
from .rows import DTYPES, Implementation, Row, backends

VOCAB = 262272


def cases(quick):
    return [dict(B=1, K=4)] if quick else [dict(B=b, K=16) for b in (1, 8, 32)]


def build(case, dtype, device):
    B, K = case["B"], case["K"]
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(B, K, VOCAB, generator=generator)).to(DTYPES[dtype]).to(device)
    winner = torch.randint(VOCAB, (B, K), generator=generator).to(device)
    logits.scatter_(2, winner[..., None], 60.0)
    i32 = dict(dtype=torch.int32, device=device)
    lengths, ones = torch.full((B,), K, **i32), torch.ones(B, device=device)
    seed, position = torch.arange(B, device=device), torch.zeros(B, **i32)

    def mine(backend):
        return ops.sample_drafts(
            logits,
            lengths,
            seed=seed,
            position=position,
            drafter_sampling=Sampling(ones),
            backend=backend,
        )

    def eager():
        """Softmax of all rows, then multinomial."""
        wide = logits.float()
        normal = wide.logsumexp(-1)
        p = (wide - normal[..., None]).exp()
        return torch.multinomial(p.flatten(0, 1), 1).reshape(B, K), normal

    def inverse_cdf(logits):
        wide = logits.float()
        normal = wide.logsumexp(-1)
        cdf = (wide - normal[..., None]).exp().cumsum(-1)
        return (cdf <= torch.rand(B, K, 1, device=wide.device) * cdf[..., -1:]).sum(-1), normal

    def gumbel(logits):
        """No cumulative sum: the largest logit with Gumbel noise."""
        wide = logits.float()
        return (wide - torch.empty_like(wide).exponential_().log()).argmax(-1), wide.logsumexp(-1)

    def compiled(function):
        def prepare():
            run = torch.compile(function, dynamic=False)
            run(logits)
            return lambda: run(logits)

        return prepare

    peers = [
        Implementation("eager softmax", lambda: eager),
        Implementation("compiled lse + cdf", compiled(inverse_cdf)),
        Implementation("compiled gumbel", compiled(gumbel)),
    ]

    def check(result, slack):
        tokens, normal = (t.cpu() for t in result)
        assert torch.equal(tokens.long(), winner.cpu()), (
            f"draft_tokens: {tokens.tolist()}, expected {winner.tolist()}"
        )
        assert (normal - 60.0).abs().max() < 1e-4, f"draft_lse: {normal.tolist()}, expected 60 each"

    return Row(
        "sample",
        case,
        dtype,
        B * costs.sample_drafts(K, VOCAB, logits.element_size()),
        backends("sample_drafts", mine) + peers,
        check,
    )
