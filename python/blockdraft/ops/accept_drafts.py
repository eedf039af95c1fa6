from typing import NamedTuple

import torch

from .. import reference, rng
from ..contract import F32, I32, I64, Check
from ..registry import Op, Out, Scratch, by_name
from ..types import MAX_TOP, NO_PENALTIES, Accepted, Penalties, Sampling, is_integer
from . import _native, _sampling, _triton

RULES = ("token", "block", "greedy")  # how drafts are accepted
DRAFTERS = ("sampled", "greedy")  # how drafts were drawn


def accept_drafts(
    target_logits: torch.Tensor,
    draft_tokens: torch.Tensor,
    draft_len: torch.Tensor,
    branch: torch.Tensor,
    mask_rows: int,
    *,
    seed: torch.Tensor,
    position: torch.Tensor,
    target_sampling: Sampling,
    drafter_sampling: Sampling | None = None,
    draft_logits: torch.Tensor | None = None,
    draft_lse: torch.Tensor | None = None,
    drafter: str = "sampled",
    penalties: Penalties = NO_PENALTIES,
    allowed: torch.Tensor | None = None,
    draft_allowed: torch.Tensor | None = None,
    mix: torch.Tensor | None = None,
    rule: str = "token",
    num_valid_vocab: int | None = None,
    mask_token: int = -1,
    remaining: torch.Tensor | None = None,
    uniforms: torch.Tensor | None = None,
    with_logprob: bool = False,
    top_n: int = 0,
    out: Accepted | None = None,
    workspace: torch.Tensor | None = None,
    backend: str | None = None,
) -> Accepted:
    """Accept drafts, draw the next token, and choose the proposal that supplies the next drafts.

    target_logits  bf16 | fp16 | fp32 [B,V,vocab]: verify rows; row i verifies draft i, row D gives
                   the bonus token
    draft_tokens int32 [B,K], K = V-1; an id outside the vocabulary (-1) is never accepted
    draft_len    int32 [B], D in -1..K; -1: the request is idle and emits nothing
    branch       int32 [B,P] of this pass; mask_rows: rows of a proposal
    seed         int64 [B]; position int32 [B], which differs in every step of a request (see `rng`)
    target_sampling, drafter_sampling  Sampling: temperature, top-k, top-p, min-p of p and of q; the
                                       latter defaults to the former
    draft_logits [B,K,vocab], target_logits' dtype: what the drafts were drawn from; needed if
                 drafter is "sampled", and for mix
    draft_lse    float64 [B,K,4] of sample_drafts for these drafts; saves measuring and truncating
                 the draft rows, so that NaN or +inf in a row that is not read otherwise goes
                 unnoticed
    drafter      "sampled": q is drafter_sampling's distribution of draft_logits; "greedy": q has
                 all mass on the draft
    penalties    Penalties of p and q, applied after mixing: repetition, presence, frequency, biases
    allowed      int32 [B,V,W] or None, W = ceil(vocab/32): the ids that a verify row allows, bit
                 id % 32 of word id / 32 (as xgrammar and llguidance fill it); the others have
                 probability 0 in p. Where nothing is allowed, the row is one of nothing but -inf
    draft_allowed int32 [B,K,W] or None: likewise for q, as in the call of sample_drafts
    mix          float32 [B] in 0..1 or None: p is the distribution of the raw logits
                 mix * target + (1-mix) * draft, except in the bonus row; q is unchanged. 1 is
                 bit-identical to None. Below 1 the output no longer has the target's distribution
    rule         "token": accept with probability min(1, p/q), else draw from (p-q)+; "block": joint
                 rule; "greedy": exact match with the argmax. A request at target temperature 0 is
                 greedy in each. Token and greedy read rows up to the first rejection; block reads
                 the rows of all drafts up to the first x with p(x) = 0, and the bonus row if it
                 draws from it
    num_valid_vocab, mask_token  ids from num_valid_vocab on, and mask_token (-1: none), have
                                 probability 0 in p and q
    remaining    int32 [B] or None: tokens that the request may still emit, including this step's;
                 limits the next draft_len
    uniforms     float64 [B,K+1] in [0,1) instead of `rng`'s: K for the drafts, then the draw's
    out          Accepted whose tensors are written (None for what is not wanted), made if None
    workspace    float64 of `accept_drafts_workspace`'s shape, made if None
    with_logprob also return target_logprob: of the committed tokens, in the unmixed target
                 distribution; temperature 0 counts as 1
    top_n        also return top_tokens and top_logprobs of so many ids; needs with_logprob

    Of the proposals with 1 <= branch <= a+1 the one of the largest branch is chosen (ties: the
    lowest index); shift = a+1-branch, and the next draft_len is clamp(mask_rows-1-shift, 0, K). A
    request whose status is not 0 emits nothing; the others are unaffected. If the residual has no
    mass, the token is drawn from p. Raises ValueError or TypeError. Sources: arXiv 2211.17192 and
    2302.01318 (token), 2403.10444 (block).
    """
    check = Check("accept_drafts")
    check.tensor("target_logits", target_logits, "B V vocab")
    V, vocab = check.dims["V"], check.dims["vocab"]
    check.need(
        V >= 1 and vocab >= 1,
        "target_logits",
        "at least one row and one id",
        list(target_logits.shape),
    )
    check.dims["K"] = V - 1
    drafter_sampling = target_sampling if drafter_sampling is None else drafter_sampling
    check.tensor("draft_tokens", draft_tokens, "B K", I32)
    check.tensor("draft_len", draft_len, "B", I32)
    check.tensor("branch", branch, "B P", I32)
    check.tensor("seed", seed, "B", I64)
    check.tensor("position", position, "B", I32)
    check.tensor("draft_logits", draft_logits, "B K vocab", (target_logits.dtype,), optional=True)
    check.normalisers("draft_lse", draft_lse)
    check.dims["W"] = -(-vocab // 32)
    check.penalties(penalties)
    check.tensor("allowed", allowed, "B V W", I32, optional=True)
    check.tensor("draft_allowed", draft_allowed, "B K W", I32, optional=True)
    check.tensor("mix", mix, "B", F32, optional=True)
    check.tensor("remaining", remaining, "B", I32, optional=True)
    check.uniforms(uniforms, "B K+1")
    check.sampling("target_sampling", target_sampling)
    if drafter_sampling is not target_sampling:
        check.sampling("drafter_sampling", drafter_sampling)
    check.choice("drafter", drafter, DRAFTERS)
    check.choice("rule", rule, RULES)
    dirac = drafter == "greedy" or rule == "greedy"
    check.need(
        draft_logits is not None or (dirac and mix is None) or V == 1,
        "draft_logits",
        "a tensor, for this drafter or mix",
        None,
    )
    check.need(mask_rows >= 1, "mask_rows", "at least 1", mask_rows)
    num_valid_vocab = check.vocabulary(num_valid_vocab, mask_token)
    check.values("draft_len", draft_len, -1, V - 1, f"-1 .. K = {V - 1}")
    check.values("branch", branch, -1, V, f"-1 or 1 .. {V}", but=0)
    check.values("mix", mix, 0, 1, "0 .. 1")
    check.need(is_integer(top_n, 0, MAX_TOP), "top_n", f"0 .. {MAX_TOP}", repr(top_n))
    accepted = _outputs(check, out, with_logprob, top_n, target_logits)
    truncated = _sampling.truncates(target_sampling, drafter_sampling)
    shape = accept_drafts_workspace(target_logits, truncated)
    workspace = check.workspace(workspace, target_logits, shape, torch.float64)
    args = Args(
        target_logits=target_logits,
        draft_tokens=draft_tokens,
        draft_logits=draft_logits,
        draft_lse=draft_lse,
        draft_len=draft_len,
        branch=branch,
        mask_rows=mask_rows,
        seed=seed,
        position=position,
        uniforms=uniforms,
        target_sampling=target_sampling,
        drafter_sampling=drafter_sampling,
        penalties=penalties,
        allowed=allowed,
        draft_allowed=draft_allowed,
        mix=mix,
        dirac=dirac,
        rule=RULES.index(rule),
        num_valid_vocab=num_valid_vocab,
        vocab_block=_sampling.vocab_block(vocab),
        mask_token=mask_token,
        remaining=remaining,
        accepted=accepted.accepted,
        next_token=accepted.next_token,
        proposal=accepted.proposal,
        shift=accepted.shift,
        next_draft_len=accepted.draft_len,
        status=accepted.status,
        target_logprob=accepted.target_logprob,
        top_tokens=accepted.top_tokens,
        top_logprobs=accepted.top_logprobs,
        workspace=workspace,
    )
    OP(backend, args)
    return accepted


class Args(NamedTuple):
    penalties: Penalties  # first: a GPU kernel reads them again from the start of its arguments
    target_logits: torch.Tensor
    draft_tokens: torch.Tensor
    draft_logits: torch.Tensor | None
    draft_lse: torch.Tensor | None
    draft_len: torch.Tensor
    branch: torch.Tensor
    mask_rows: int
    seed: torch.Tensor
    position: torch.Tensor
    uniforms: torch.Tensor | None
    target_sampling: Sampling
    drafter_sampling: Sampling
    allowed: torch.Tensor | None
    draft_allowed: torch.Tensor | None
    mix: torch.Tensor | None
    dirac: bool  # q has all mass on the draft
    rule: int  # index into RULES
    num_valid_vocab: int
    vocab_block: int
    mask_token: int
    remaining: torch.Tensor | None
    accepted: Out
    next_token: Out
    proposal: Out
    shift: Out
    next_draft_len: Out
    status: Out
    target_logprob: Out | None
    top_tokens: Out | None
    top_logprobs: Out | None
    workspace: Scratch | None


def accept_drafts_workspace(target_logits: torch.Tensor, truncated: bool = True) -> tuple[int, ...]:
    """Shape of the float64 workspace of `accept_drafts`, with a part for each target and draft row;
    empty on a CPU. truncated: whether there is top-k, top-p or min-p."""
    return _sampling.workspace_shape(target_logits, 2 * target_logits.shape[1] - 1, truncated)


def _outputs(
    check: Check, out: Accepted | None, with_logprob: bool, top_n: int, logits
) -> Accepted:
    """The caller's outputs, checked, or new ones."""
    if out is not None and not isinstance(out, Accepted):
        check.fail("out", "blockdraft.Accepted", type(out).__name__, TypeError)
    if out is not None:
        with_logprob, top_n = out.target_logprob is not None, out.top_tokens is not None
    check.need(with_logprob or not top_n, "top_n", "0 without with_logprob", top_n)
    if out is None:
        check.dims["n"] = top_n
    shapes = ("B",) * 6 + ("B V",) * with_logprob + ("B V n",) * (2 * bool(top_n))
    given = None if out is None else out[: len(shapes)]
    tensors = check.outputs(given, shapes, I32 * 6 + F32 + I32 + F32, dict(target_logits=logits))
    return Accepted(*tensors, *[None] * (len(Accepted._fields) - len(tensors)))


def _uniforms(args: Args) -> torch.Tensor:
    """The uniforms of the drafts, then that of the draw."""
    if args.uniforms is not None:
        return args.uniforms
    K = args.draft_tokens.shape[1]
    drafts = rng.uniform(args.seed, args.position, K, rng.ACCEPT)
    return torch.cat([drafts, rng.uniform(args.seed, args.position, 1, rng.DRAW)], 1)


OP = Op("accept_drafts", Args)
_triton.register(OP)
_native.register(OP)
OP.register(
    "reference",
    by_name(
        OP,
        reference.accept_drafts,
        uniforms=_uniforms,
        rule=lambda args: RULES[args.rule],
        with_logprob=lambda args: args.target_logprob is not None,
        top_n=lambda args: 0 if args.top_tokens is None else args.top_tokens.shape[-1],
    ),
)
