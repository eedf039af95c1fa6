from typing import NamedTuple

import torch

from .. import reference, rng
from ..contract import F64, I32, I64, Check
from ..registry import Op, Out, Scratch, by_name
from ..types import NO_PENALTIES, Penalties, Sampling
from . import _native, _sampling, _triton
from .accept_drafts import DRAFTERS


def sample_drafts(
    logits: torch.Tensor,
    draft_len: torch.Tensor,
    *,
    seed: torch.Tensor,
    position: torch.Tensor,
    drafter_sampling: Sampling,
    drafter: str = "sampled",
    penalties: Penalties = NO_PENALTIES,
    allowed: torch.Tensor | None = None,
    num_valid_vocab: int | None = None,
    mask_token: int = -1,
    uniforms: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    workspace: torch.Tensor | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the next drafts from the drafter's logits, one per row, independently.

    logits       bf16 | fp16 | fp32 [B,K,vocab]: mask rows shift+1 .. shift+K of the chosen proposal
    draft_len    int32 [B]; rows from draft_len on are dead and not read
    seed, position, num_valid_vocab, mask_token  as in accept_drafts; position is that of the pass
                                                 which computed the logits
    drafter_sampling  Sampling: temperature, top-k, top-p, min-p of q
    penalties    Penalties of q, as in accept_drafts
    allowed      int32 [B,K,W] or None: the ids that a row allows, as in accept_drafts
    drafter      "sampled": draw from q; "greedy": take the argmax, whatever the temperature
    uniforms     float64 [B,K] in [0,1) instead of `rng`'s
    workspace    float64 of `sample_drafts_workspace`'s shape, made if None
    out          (draft_tokens, draft_lse), made if None
    Returns draft_tokens int32 [B,K], -1 in dead rows and in rows with NaN, +inf or no finite logit;
    draft_lse float64 [B,K,4], the row's distribution: its normaliser in two numbers that are exact
    at any temperature, a logit m near the row's greatest and l with
    log q(x) = (logit - m) / temperature - l; and its cut in two, a logit c and an id t: truncation
    kept ids of a logit above c, or of c itself up to id t (-inf where it kept all). All are 0 where
    the token is -1. Where the argmax was taken, l is that of the raw logits (temperature 1), which
    are not cut. Raises ValueError or TypeError.
    """
    check = Check("sample_drafts")
    check.tensor("logits", logits, "B K vocab")
    check.tensor("draft_len", draft_len, "B", I32)
    check.tensor("seed", seed, "B", I64)
    check.tensor("position", position, "B", I32)
    check.sampling("drafter_sampling", drafter_sampling)
    check.choice("drafter", drafter, DRAFTERS)
    check.dims["W"] = -(-check.dims["vocab"] // 32)
    check.penalties(penalties)
    check.tensor("allowed", allowed, "B K W", I32, optional=True)
    num_valid_vocab = check.vocabulary(num_valid_vocab, mask_token)
    check.values("draft_len", draft_len, -1, check.dims["K"], f"-1 .. K = {check.dims['K']}")
    check.uniforms(uniforms, "B K")
    draft_tokens, draft_lse = check.outputs(out, ("B K", "B K 4"), I32 + F64, dict(logits=logits))
    shape = sample_drafts_workspace(logits, _sampling.truncates(drafter_sampling))
    workspace = check.workspace(workspace, logits, shape, torch.float64)
    args = Args(
        logits=logits,
        draft_len=draft_len,
        seed=seed,
        position=position,
        uniforms=uniforms,
        drafter_sampling=drafter_sampling,
        penalties=penalties,
        allowed=allowed,
        greedy=drafter == "greedy",
        num_valid_vocab=num_valid_vocab,
        vocab_block=_sampling.vocab_block(check.dims["vocab"]),
        mask_token=mask_token,
        draft_tokens=draft_tokens,
        draft_lse=draft_lse,
        workspace=workspace,
    )
    OP(backend, args)
    return draft_tokens, draft_lse


class Args(NamedTuple):
    penalties: Penalties  # first: a GPU kernel reads them again from the start of its arguments
    logits: torch.Tensor
    draft_len: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    uniforms: torch.Tensor | None
    drafter_sampling: Sampling
    allowed: torch.Tensor | None
    greedy: bool
    num_valid_vocab: int
    vocab_block: int
    mask_token: int
    draft_tokens: Out
    draft_lse: Out
    workspace: Scratch | None


def sample_drafts_workspace(logits: torch.Tensor, truncated: bool = True) -> tuple[int, ...]:
    """Shape of the float64 workspace of `sample_drafts`; empty on a CPU. truncated: whether there
    is top-k, top-p or min-p."""
    return _sampling.workspace_shape(logits, logits.shape[1], truncated)


def _uniforms(args: Args) -> torch.Tensor:
    if args.uniforms is not None:
        return args.uniforms
    return rng.uniform(args.seed, args.position, args.logits.shape[1], rng.DRAFT)


OP = Op("sample_drafts", Args)
_triton.register(OP)
_native.register(OP)
OP.register("reference", by_name(OP, reference.sample_drafts, uniforms=_uniforms))
