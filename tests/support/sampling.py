"""Parameters of the sampling kernels, as csrc takes them, from the public ops' arguments."""

import ctypes

import torch
from harness import INT, LONG, POINTER

from blockdraft import Accepted, Sampling
from blockdraft.ops.sample_drafts import vocabulary_blocks

SAMPLING = ("temperature", "top_k", "top_p")


class AcceptParams(ctypes.Structure):
    """csrc/accept_drafts.h's, field by field."""

    _fields_ = [
        *((name, POINTER) for name in ("target", "draft")),
        *((name, LONG) for name in ("target_request", "target_row", "draft_request", "draft_row")),
        *(
            (name, POINTER)
            for name in (
                "tokens",
                "draft_len",
                "branch",
                "position",
                "remaining",
                "seed",
                "uniforms",
                "draft_lse",
                "mix",
            )
        ),
        *(
            (name, LONG)
            for name in ("tokens_row", "branch_row", "uniforms_row", "lse_row", "logprob_row")
        ),
        *((f"{which}_{name}", POINTER) for which in ("target", "drafter") for name in SAMPLING),
        *((f"out_{name}", POINTER) for name in Accepted._fields),
        ("workspace", POINTER),
        *(
            (name, INT)
            for name in (
                "batch",
                "drafts",
                "valid",
                "mask_token",
                "mask_rows",
                "proposals",
                "mode",
                "threads",
            )
        ),
        ("dirac", ctypes.c_bool),
    ]


class SampleParams(ctypes.Structure):
    """csrc/sample_drafts.h's, field by field."""

    _fields_ = [
        ("logits", POINTER),
        ("logits_request", LONG),
        ("logits_row", LONG),
        *((name, POINTER) for name in ("draft_len", "position", "seed", "uniforms")),
        ("uniforms_row", LONG),
        *((name, POINTER) for name in SAMPLING),
        *((name, POINTER) for name in ("tokens", "lse", "workspace")),
        *((name, INT) for name in ("batch", "drafts", "valid", "mask_token", "threads")),
        ("greedy", ctypes.c_bool),
    ]


def named(options):
    """The kernels' names for the public op's arguments."""
    names = dict(num_valid_vocab="valid", draft_logits="draft")
    return {names.get(name, name): value for name, value in options.items()}


def address(t):
    return None if t is None else t.data_ptr()


def poisoned_doubles(count: int) -> torch.Tensor:
    return torch.full((count,), torch.nan, dtype=torch.float64)


def accept_params(
    target,
    tokens,
    draft_len,
    branch,
    mask_rows,
    *,
    seed,
    position,
    target_sampling: Sampling,
    drafter_sampling: Sampling,
    draft=None,
    draft_lse=None,
    drafter="sampled",
    mix=None,
    rule="token",
    valid,
    mask_token=-1,
    remaining=None,
    uniforms=None,
    with_logprob=False,
):
    """The parameters, the outputs that they point to, and all that must be kept alive meanwhile."""
    batch, V, vocab = target.shape
    outputs = Accepted(
        *(torch.full((batch,), -77, dtype=torch.int32) for _ in range(6)),
        torch.full((batch, V), torch.nan) if with_logprob else None,
    )
    blocks = vocabulary_blocks(vocab)
    workspace = poisoned_doubles(batch * ((2 * V - 1) * (8 + 2 * blocks) + V * blocks + 2))
    pointers = dict(
        target=target,
        draft=draft,
        tokens=tokens,
        draft_len=draft_len,
        branch=branch,
        position=position,
        remaining=remaining,
        seed=seed,
        uniforms=uniforms,
        draft_lse=draft_lse,
        mix=mix,
        workspace=workspace,
        **{f"out_{name}": t for name, t in outputs._asdict().items()},
    )
    pointers |= {
        f"{name}_{field}": getattr(s, field)
        for name, s in (("target", target_sampling), ("drafter", drafter_sampling))
        for field in SAMPLING
    }
    strides = {
        name: t.stride(0)
        for name, t in dict(
            tokens_row=tokens,
            branch_row=branch,
            uniforms_row=uniforms,
            lse_row=draft_lse,
            logprob_row=outputs.target_logprob,
        ).items()
        if t is not None
    }
    strides |= dict(target_request=target.stride(0), target_row=target.stride(1))
    if draft is not None:
        strides |= dict(draft_request=draft.stride(0), draft_row=draft.stride(1))
    fields = dict(
        batch=batch,
        drafts=V - 1,
        valid=valid,
        mask_token=mask_token,
        mask_rows=mask_rows,
        proposals=branch.shape[1],
        mode=("token", "block", "greedy").index(rule),
        threads=1,
        dirac=drafter == "greedy" or rule == "greedy",
    )
    return (
        AcceptParams(**{name: address(t) for name, t in pointers.items()}, **strides, **fields),
        outputs,
        pointers,
    )


def sample_params(
    logits,
    draft_len,
    *,
    seed,
    position,
    drafter_sampling: Sampling,
    drafter="sampled",
    valid,
    mask_token=-1,
    uniforms=None,
):
    batch, K, vocab = logits.shape
    tokens, lse = torch.full((batch, K), -77, dtype=torch.int32), torch.full((batch, K), torch.nan)
    workspace = poisoned_doubles(3 * batch * K * vocabulary_blocks(vocab))
    pointers = dict(
        logits=logits,
        draft_len=draft_len,
        position=position,
        seed=seed,
        uniforms=uniforms,
        tokens=tokens,
        lse=lse,
        workspace=workspace,
        **drafter_sampling._asdict(),
    )
    params = SampleParams(
        **{name: address(t) for name, t in pointers.items()},
        logits_request=logits.stride(0),
        logits_row=logits.stride(1),
        uniforms_row=uniforms.stride(0) if uniforms is not None else 0,
        batch=batch,
        drafts=K,
        valid=valid,
        mask_token=mask_token,
        threads=1,
        greedy=drafter == "greedy",
    )
    return params, (tokens, lse), pointers
