from typing import NamedTuple

import torch

from .. import reference
from ..contract import F32, I32, Check
from ..registry import Op, Out, by_name

SKIPS = ("zero", "identity")  # what a row without experts yields


def fused_moe(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    skip_prob: torch.Tensor | None = None,
    *,
    skip: str = "zero",
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """SwiGLU experts: y is the sum over a row's choices of weight * down[e] @ (silu(gate) * up),
    where gate and up are the halves of gate_up[e] @ x.

    x            bf16 | fp16 | fp32 [T,H]
    experts      int32 [T,k], -1: no expert (skip, or a dead row); weights float32 [T,k]
    gate_up      [E,2I,H], gate rows then up rows; down [E,H,I]; x's dtype
    skip         what a row without experts yields: "zero" (transformers, vLLM) or "identity", x *
                 skip_prob (Zyphra's own code, SGLang); skip_prob float32 [T] is needed for the
                 latter and 0 wherever skip was not chosen
    out          [T,H], x's dtype, made if None
    Raises ValueError or TypeError, before anything is written.
    """
    check = Check("fused_moe")
    check.tensor("x", x, "T H")
    check.tensor("experts", experts, "T k", I32)
    check.tensor("weights", weights, "T k", F32)
    check.tensor("down", down, "E H I", (x.dtype,))
    check.dims["2I"] = 2 * check.dims["I"]
    check.tensor("gate_up", gate_up, "E 2I H", (x.dtype,))
    check.choice("skip", skip, SKIPS)
    check.need(
        skip == "zero" or skip_prob is not None,
        "skip_prob",
        "a tensor, since skip is 'identity'",
        skip_prob,
    )
    check.tensor("skip_prob", skip_prob, "T", F32, optional=True)
    check.values("experts", experts, -1, check.dims["E"] - 1, f"-1 .. {check.dims['E'] - 1}")
    (out,) = check.outputs(None if out is None else (out,), ("T H",), (x.dtype,), dict(x=x))
    args = Args(
        x=x,
        experts=experts,
        weights=weights,
        gate_up=gate_up,
        down=down,
        skip_prob=skip_prob,
        skip=SKIPS.index(skip),
        out=out,
    )
    OP(backend, args)
    return out


class Args(NamedTuple):
    x: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    skip_prob: torch.Tensor | None
    skip: int  # index into SKIPS
    out: Out


OP = Op("fused_moe", Args)
OP.register("reference", by_name(OP, reference.fused_moe, skip=lambda args: SKIPS[args.skip]))
