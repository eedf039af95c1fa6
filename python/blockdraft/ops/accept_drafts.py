import torch

from .. import reference, rng
from ..contract import F32, I32, I64, Check
from ..registry import Op
from ..types import Accepted, Sampling
from . import _native, _triton

_SAMPLING = "Tensor {0}_temperature, Tensor? {0}_top_k, Tensor? {0}_top_p"
_OP = Op(
    "accept_drafts",
    "(Tensor target_logits, Tensor draft_tokens, Tensor? draft_logits, Tensor? draft_lse, "
    "Tensor draft_len, Tensor branch, int mask_rows, Tensor seed, Tensor position, Tensor? uniforms, "
    f"{_SAMPLING.format('target')}, {_SAMPLING.format('drafter')}, Tensor? mix, bool dirac, str rule, "
    "int num_valid_vocab, int mask_token, Tensor? remaining, Tensor(a!) accepted, Tensor(b!) next_token, "
    "Tensor(c!) proposal, Tensor(d!) shift, Tensor(e!) next_draft_len, Tensor(f!) status, "
    "Tensor(g!)? target_logprob, Tensor(h!)? workspace) -> ()",
)

BLOCK_IDS, MOST_BLOCKS = 4096, 256  # of the vocabulary; the kernels know them too


def _reference(
    target_logits,
    draft_tokens,
    draft_logits,
    draft_lse,
    draft_len,
    branch,
    mask_rows,
    seed,
    position,
    uniforms,
    t0,
    t1,
    t2,
    d0,
    d1,
    d2,
    mix,
    dirac,
    rule,
    num_valid_vocab,
    mask_token,
    remaining,
    *outputs_and_workspace,
):
    outputs = outputs_and_workspace[:-1]
    if uniforms is None:
        K = draft_tokens.shape[1]
        uniforms = torch.cat(
            [rng.uniform(seed, position, K, rng.ACCEPT), rng.uniform(seed, position, 1, rng.DRAW)],
            1,
        )
    result = reference.accept_drafts(
        target_logits,
        draft_tokens,
        draft_len,
        branch,
        mask_rows,
        uniforms.double(),
        Sampling(t0, t1, t2),
        Sampling(d0, d1, d2),
        mix,
        draft_logits,
        dirac,
        rule,
        num_valid_vocab,
        mask_token,
        remaining,
        with_logprob=outputs[-1] is not None,
    )
    for output, value in zip(outputs, result):
        if output is not None:
            output.copy_(value)


def _cpp_unsupported(target_logits, *rest):
    return _native.unsupported(target_logits)


_OP.register(
    "triton",
    lambda *args: _triton.launch("accept_drafts", *args, vocabulary_blocks),
    lambda target_logits, *rest: _triton.unsupported(target_logits),
)
_OP.register("cpp", None, _cpp_unsupported)
_OP.register("reference", _reference)


def vocabulary_blocks(vocab: int) -> int:
    return min(MOST_BLOCKS, -(-vocab // BLOCK_IDS))


def accept_drafts_workspace(target_logits) -> tuple[int, ...]:
    """Shape of the float64 workspace of `accept_drafts`: laws, and what blocks of the vocabulary
    add to them; empty on a CPU."""
    batch, V, vocab = target_logits.shape
    if not _triton.on_gpu(target_logits):
        return (0, 0)
    return (
        batch,
        (2 * V - 1) * (8 + 2 * vocabulary_blocks(vocab)) + V * vocabulary_blocks(vocab) + 2,
    )


def accept_drafts(
    target_logits,
    draft_tokens,
    draft_len,
    branch,
    mask_rows: int,
    *,
    seed,
    position,
    target_sampling: Sampling,
    drafter_sampling: Sampling | None = None,
    draft_logits=None,
    draft_lse=None,
    drafter: str = "sampled",
    mix=None,
    rule: str = "token",
    num_valid_vocab: int | None = None,
    mask_token: int = -1,
    remaining=None,
    uniforms=None,
    with_logprob: bool = False,
    workspace=None,
    backend: str | None = None,
) -> Accepted:
    """Accept drafts, draw the next token, and choose the proposal that supplies the next drafts.

    target_logits  bf16 | fp16 | fp32 [B,V,vocab]: verify rows, row i judges draft i, row D gives
                   the bonus
    draft_tokens int32 [B,K], K = V-1; an id outside the vocabulary (-1) is never accepted
    draft_len    int32 [B], D in -1..K; -1: the request idles and emits nothing
    branch       int32 [B,P] of this pass, mask_rows its rows a proposal
    seed         int64 [B]; position int32 [B], n of this step, which never comes back (see `rng`)
    target_sampling, drafter_sampling  Sampling: temperature, top-k, top-p of p and of q; drafter defaults to target's
    draft_logits [B,K,vocab], target_logits' dtype: what the drafts were drawn from; needed when drafter
    is "sampled" and for mix
    draft_lse    float32 [B,K] of sample_drafts, spares a backend one pass over the draft rows: NaN
                 or +inf in one that it then has no need to read goes unnoticed
    drafter        "sampled": q is drafter_sampling's distribution of draft_logits; "greedy": all mass on the draft
    mix          float32 [B] in 0..1 or None: judge against softmax(mix * target + (1-mix) * draft)
                 of raw logits, q and the bonus row unchanged; 1 is bit-identical to None. Below 1
                 the output is no longer the target's law
    rule         "token": accept with min(1, p/q), else draw from (p-q)+; "block": joint rule;
                 "greedy": exact match with the argmax. A request at target temperature 0 is greedy
                 in each. Token and greedy read rows up to the first rejection; block those of all
                 drafts, or up to the first x with p(x) = 0, and the bonus row if it draws from it
    num_valid_vocab, mask_token  ids from the first on, and the second (-1: none), have probability
                                 0 in p and q
    remaining    int32 [B] or None: tokens the request may still emit, this step's included; the
                 next pass drafts no more
    uniforms     float64 [B,K+1] in [0,1) in place of the generator's: K acceptances, then the draw
    workspace    float64 of `accept_drafts_workspace`'s shape, made if None
    with_logprob also return target_logprob (committed tokens, unmixed target law; temperature 1
    where it is 0)

    Of proposals with 1 <= branch <= a+1 the largest branch wins (ties: the lowest index); shift =
    a+1-branch, and the next draft_len is clamp(mask_rows-1-shift, 0, K). A request whose status is
    not 0 emits nothing; the others are unaffected. If the residual has no mass the token is drawn
    from p. Raises ValueError or TypeError. Sources: arXiv 2211.17192 and 2302.01318 (token),
    2403.10444 (block).
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
    check.tensor("draft_lse", draft_lse, "B K", F32, optional=True)
    check.tensor("mix", mix, "B", F32, optional=True)
    check.tensor("remaining", remaining, "B", I32, optional=True)
    check.uniforms(uniforms, "B K+1")
    check.sampling("target_sampling", target_sampling)
    if drafter_sampling is not target_sampling:
        check.sampling("drafter_sampling", drafter_sampling)
    check.choice("drafter", drafter, ("sampled", "greedy"))
    check.choice("rule", rule, ("token", "block", "greedy"))
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
    i32 = [draft_len.new_empty(check.dims["B"]) for _ in range(6)]
    logprob = (
        target_logits.new_empty(check.dims["B"], V, dtype=torch.float32) if with_logprob else None
    )
    workspace = check.workspace(
        workspace, target_logits, accept_drafts_workspace(target_logits), torch.float64
    )
    _OP(
        backend,
        target_logits,
        draft_tokens,
        draft_logits,
        draft_lse,
        draft_len,
        branch,
        mask_rows,
        seed,
        position,
        uniforms,
        *target_sampling,
        *drafter_sampling,
        mix,
        dirac,
        rule,
        num_valid_vocab,
        mask_token,
        remaining,
        *i32,
        logprob,
        workspace,
    )
    return Accepted(*i32, logprob)
