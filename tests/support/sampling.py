"""The parameters that GPU kernels of the samplers would get, with outputs of invalid values and a
workspace of NaN."""

import torch
from harness import captured, recorded

from blockdraft import Accepted, ops
from blockdraft.ops import _sampling


def _workspace(logits: torch.Tensor, rows: int) -> torch.Tensor:
    batch, _, vocab = logits.shape
    blocks = -(-vocab // _sampling.vocab_block(vocab))
    doubles = _sampling.HEADER_DOUBLES + _sampling.VOCAB_BLOCK_DOUBLES * blocks
    # NaN without a bit that is 0, so that counts start wrong too.
    return torch.full((batch, rows, doubles), -1, dtype=torch.int64).view(torch.float64)


def accept_params(*args, with_logprob: bool = False, top_n: int = 0, **options):
    """The parameters, the outputs to which they point, and the Args, which must be kept alive."""
    batch, V, _ = args[0].shape
    outputs = Accepted(
        *(torch.full((batch,), -77, dtype=torch.int32) for _ in range(6)),
        torch.full((batch, V), torch.nan) if with_logprob else None,
        torch.full((batch, V, top_n), -77, dtype=torch.int32) if top_n else None,
        torch.full((batch, V, top_n), torch.nan) if top_n else None,
    )
    op, made = captured(ops.accept_drafts, *args, out=outputs, **options)
    made = made._replace(workspace=_workspace(args[0], 2 * V - 1))
    return recorded(op, made), outputs, made


def sample_params(logits, draft_len, **options):
    """Likewise for sample_drafts."""
    batch, K, _ = logits.shape
    outputs = (
        torch.full((batch, K), -77, dtype=torch.int32),
        torch.full((batch, K, 4), torch.nan, dtype=torch.float64),
    )
    op, made = captured(ops.sample_drafts, logits, draft_len, out=outputs, **options)
    made = made._replace(workspace=_workspace(logits, K))
    return recorded(op, made), outputs, made
