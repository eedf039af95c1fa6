import torch

from .. import reference, rng
from ..contract import I32, I64, Check
from ..registry import Op
from ..types import Sampling
from . import _native, _triton
from .accept_drafts import _SAMPLING, vocabulary_blocks

_OP = Op(
    "sample_drafts",
    "(Tensor logits, Tensor draft_len, Tensor seed, Tensor position, Tensor? uniforms, "
    f"{_SAMPLING.format('drafter')}, bool greedy, int num_valid_vocab, int mask_token, Tensor(a!) draft_tokens, "
    "Tensor(b!) draft_lse, Tensor(c!)? workspace) -> ()",
)


def _reference(
    logits,
    draft_len,
    seed,
    position,
    uniforms,
    d0,
    d1,
    d2,
    greedy,
    num_valid_vocab,
    mask_token,
    *outputs_and_workspace,
):
    if uniforms is None:
        uniforms = rng.uniform(seed, position, logits.shape[1], rng.DRAFT)
    results = reference.sample_drafts(
        logits, draft_len, uniforms, Sampling(d0, d1, d2), greedy, num_valid_vocab, mask_token
    )
    for output, result in zip(outputs_and_workspace[:-1], results):
        output.copy_(result)


def _cpp_unsupported(logits, *rest):
    return _native.unsupported(logits)


_OP.register(
    "triton",
    lambda *args: _triton.launch("sample_drafts", *args, vocabulary_blocks),
    lambda logits, *rest: _triton.unsupported(logits),
)
_OP.register("cpp", None, _cpp_unsupported)
_OP.register("reference", _reference)


def sample_drafts_workspace(logits) -> tuple[int, ...]:
    """Shape of the float64 workspace of `sample_drafts`; empty on a CPU."""
    batch, K, vocab = logits.shape
    return (batch * K, 3 * vocabulary_blocks(vocab)) if _triton.on_gpu(logits) else (0, 0)


def sample_drafts(
    logits,
    draft_len,
    *,
    seed,
    position,
    drafter_sampling: Sampling,
    drafter: str = "sampled",
    num_valid_vocab: int | None = None,
    mask_token: int = -1,
    uniforms=None,
    workspace=None,
    backend: str | None = None,
):
    """Draw the next drafts from the drafter's logits, one per row, independently.

    logits       bf16 | fp16 | fp32 [B,K,vocab]: masks shift+1 .. shift+K of the chosen proposal
    draft_len    int32 [B], rows from draft_len on are dead (not read)
    seed, position, num_valid_vocab, mask_token  as in accept_drafts, position being n of the pass
                                                 that gave the logits
    drafter      Sampling; law "greedy" takes the argmax whatever the temperature
    uniforms     float64 [B,K] in [0,1) in place of the generator's
    workspace    float64 of `sample_drafts_workspace`'s shape, made if None
    Returns draft_tokens int32 [B,K], -1 in dead rows and where a row has NaN, +inf or no finite
    logit; draft_lse float32 [B,K], the log-normaliser of the row's law: log q(x) =
    logit/temperature - draft_lse (0 where the token is -1; of the raw logits where the argmax was
    taken). Raises ValueError or TypeError.
    """
    check = Check("sample_drafts")
    check.tensor("logits", logits, "B K vocab")
    check.tensor("draft_len", draft_len, "B", I32)
    check.tensor("seed", seed, "B", I64)
    check.tensor("position", position, "B", I32)
    check.sampling("drafter_sampling", drafter_sampling)
    check.choice("drafter", drafter, ("sampled", "greedy"))
    num_valid_vocab = check.vocabulary(num_valid_vocab, mask_token)
    check.values("draft_len", draft_len, -1, check.dims["K"], f"-1 .. K = {check.dims['K']}")
    check.uniforms(uniforms, "B K")
    tokens = draft_len.new_empty(logits.shape[:2])
    lse = logits.new_empty(logits.shape[:2], dtype=torch.float32)
    workspace = check.workspace(workspace, logits, sample_drafts_workspace(logits), torch.float64)
    _OP(
        backend,
        logits,
        draft_len,
        seed,
        position,
        uniforms,
        *drafter_sampling,
        drafter == "greedy",
        num_valid_vocab,
        mask_token,
        tokens,
        lse,
        workspace,
    )
    return tokens, lse
