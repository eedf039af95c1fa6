from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Optional

import torch

from .. import env, reference
from ..contract import F32, I32, Check
from ..registry import Op, Out, Scratch, by_name
from ..types import MoeWorkspace
from . import _native, _triton
from .moe_dispatch import CPP_EXPERTS, TRITON_EXPERTS, too_many

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SKIPS = ("zero", "identity")  # what a row without experts yields
FP4 = torch.float4_e2m1fn_x2


def fused_moe(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    skip_prob: torch.Tensor | None = None,
    *,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    skip: str = "zero",
    out: torch.Tensor | None = None,
    workspace: MoeWorkspace | None = None,
    group: Optional["ProcessGroup"] = None,
    shards: Sequence[int] | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """SwiGLU experts: y is the sum over a row's choices of weight * down[e] @ (silu(gate) * up),
    where gate and up are the halves of gate_up[e] @ x.

    x            bf16 | fp16 | fp32 [T,H]
    experts      int32 [T,k], -1: no expert (skip, or a dead row); weights float32 [T,k]
    gate_up      [E,2I,H], gate rows then up rows; down [E,H,I]; x's dtype, or with scales:
    gate_up_scale, down_scale
                 float32 [E,rows/128,depth/128], rounded up, of weights float8_e4m3fn (OCP) or
                 float8_e4m3fnuz (gfx942); a GPU takes only its own. float8_e8m0fnu
                 [E,rows,depth/32] of float4_e2m1fn_x2 [E,rows,depth/2] (MXFP4, the lower half
                 byte first)
    skip         what a row without experts yields: "zero" (transformers, vLLM) or "identity", x *
                 skip_prob (Zyphra's own code, SGLang); skip_prob float32 [T] is needed for the
                 latter and 0 wherever skip was not chosen
    out          [T,H], x's dtype, made if None
    workspace    as `MoeWorkspace.new` makes it, made if None
    group        processes of torch.distributed that share the experts: each calls with rows of its
                 own (any number), `experts` counted over all, and weights of its own experts, which
                 follow those of the ranks below. shards: how many each rank has, where not all have
                 as many; 0 is allowed. Bits are those of one process with all experts where k is 1
                 and the backend is C++; for more choices, each rank's sum is rounded to x's dtype.
                 It waits for the counts of rows, so that it can be neither planned nor captured
    Sums are fp32; silu(gate) * up is rounded to x's dtype by all backends but the reference. A
    row's bits do not depend on the other rows in C++; in Triton they do where the number of rows
    changes the tiles. Raises ValueError or TypeError, before anything is written.
    """
    check = Check("fused_moe")
    if group is not None:
        from . import _expert_parallel  # torch may be built without torch.distributed

        check.need(workspace is None, "workspace", "None, with a group", type(workspace).__name__)
        check.choice("skip", skip, SKIPS)
        scales = dict(gate_up_scale=gate_up_scale, down_scale=down_scale)
        y = _expert_parallel.fused_moe(
            lambda *rows: fused_moe(*rows, gate_up, down, **scales, backend=backend),
            x,
            experts,
            weights,
            down.shape[1],
            len(down),
            group,
            shards,
            skip_prob if skip == "identity" else None,
        ).to(x.dtype)
        return y if out is None else out.copy_(y)
    check.need(shards is None, "shards", "None, without a group", shards)
    check.tensor("x", x, "T H")
    check.tensor("experts", experts, "T k", I32)
    check.tensor("weights", weights, "T k", F32)
    check.need(check.dims["k"] > 0, "experts", "at least one choice", "k = 0")
    _check_weights(check, "down", down, down_scale, x.dtype, "H", "I")
    check.need(check.dims["I"] > 0, "down", "at least one inner channel", "I = 0")
    check.dims["2I"] = 2 * check.dims["I"]
    _check_weights(check, "gate_up", gate_up, gate_up_scale, x.dtype, "2I", "H")
    check.choice("skip", skip, SKIPS)
    check.need(
        skip == "zero" or skip_prob is not None,
        "skip_prob",
        "a tensor, since skip is 'identity'",
        skip_prob,
    )
    check.tensor("skip_prob", skip_prob, "T", F32, optional=True)
    num_experts = check.dims["E"]
    check.values("experts", experts, -1, num_experts - 1, f"-1 .. {num_experts - 1}")
    inputs = dict(
        x=x,
        experts=experts,
        weights=weights,
        gate_up=gate_up,
        down=down,
        gate_up_scale=gate_up_scale,
        down_scale=down_scale,
        skip_prob=skip_prob,
    )
    if out is not None:
        check.output("out", out, "T H", (x.dtype,), inputs)
    if workspace is not None:
        check.moe_workspace(workspace, x.dtype)
    return unchecked(
        x,
        experts,
        weights,
        gate_up,
        down,
        skip_prob,
        gate_up_scale=gate_up_scale,
        down_scale=down_scale,
        skip=skip,
        out=out,
        workspace=workspace,
        backend=backend,
    )


def unchecked(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    skip_prob: torch.Tensor | None = None,
    *,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    skip: str = "zero",
    out: torch.Tensor | None = None,
    workspace: MoeWorkspace | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """`fused_moe` for a caller that has made all arguments itself: wrong ones are read."""
    if out is None:
        out = x.new_empty(x.shape)
    if workspace is None:
        workspace = MoeWorkspace.new(x, experts, len(gate_up), gate_up.shape[1] // 2)
    args = Args(
        x=x,
        experts=experts,
        weights=weights,
        gate_up=gate_up,
        down=down,
        gate_up_scale=gate_up_scale,
        down_scale=down_scale,
        skip_prob=skip_prob,
        skip=SKIPS.index(skip),
        out=out,
        order=workspace.order,
        offsets=workspace.offsets,
        activations=workspace.activations,
        partials=workspace.partials,
    )
    OP(backend, args)
    return out


class Args(NamedTuple):
    x: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_scale: torch.Tensor | None
    down_scale: torch.Tensor | None
    skip_prob: torch.Tensor | None
    skip: int  # index into SKIPS
    out: Out
    order: Scratch
    offsets: Scratch
    activations: Scratch
    partials: Scratch | None


def _check_weights(
    check: Check,
    name: str,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    dtype: torch.dtype,
    rows: str,
    depth: str,
) -> None:
    """[E,rows,depth] in x's dtype, or in a lower precision with its scale."""
    shape = f"E {rows} {depth}"
    if scale is None:
        return check.tensor(name, weight, shape, (dtype,))
    scale_name = f"{name}_scale"
    known = check.dims
    if weight.dtype == FP4:
        half = f"{depth}/2"
        if depth in known:
            known[half] = known[depth] // 2
        check.tensor(name, weight, f"E {rows} {half}", (FP4,), contiguous=True)
        known[depth] = 2 * known[half]
        check.need(known[depth] % 32 == 0, name, f"{depth} a multiple of 32", known[depth])
        known[f"{depth}/32"] = known[depth] // 32
        check.tensor(scale_name, scale, f"E {rows} {depth}/32", (torch.float8_e8m0fnu,))
        return None
    check.fp8(name, weight, shape)
    known[f"{rows}/128"] = -(-known[rows] // 128)
    known[f"{depth}/128"] = -(-known[depth] // 128)
    check.tensor(scale_name, scale, f"E {rows}/128 {depth}/128", F32)
    return None


def _mixed(args: Args) -> str | None:
    """Why the kernels, which take both weights in one format, cannot run, or None."""
    if args.gate_up.dtype != args.down.dtype:
        return f"down is {args.gate_up.dtype}, as gate_up is, not {args.down.dtype}"
    return None


def _cpp_unsupported(args: Args) -> str | None:
    reason = _mixed(args)
    if reason or args.x.is_cpu:
        return reason
    if args.gate_up_scale is not None and args.x.dtype != torch.bfloat16:
        return f"x is bfloat16 beside weights with scales on a GPU, not {args.x.dtype}"
    for name, size in (("hidden", args.x.shape[1]), ("inner", args.down.shape[2])):
        if size * args.x.element_size() % 16:
            return f"the {name} size is a multiple of 16 bytes, not {size} elements"
    reason = too_many(len(args.offsets) - 1, CPP_EXPERTS)
    return reason or _native.unaligned(
        x=args.x, gate_up=args.gate_up, down=args.down, activations=args.activations
    )


def _triton_unsupported(args: Args) -> str | None:
    if args.gate_up_scale is not None and args.x.dtype == torch.float16:
        return "x is bfloat16 or float32 beside weights with scales, not float16"
    if args.gate_up.dtype == torch.float8_e4m3fnuz and env.triton_interpreter():
        return "Triton's interpreter does not know float8_e4m3fnuz"
    return (
        _mixed(args)
        or _triton.cannot_compute(args.x)
        or too_many(len(args.offsets) - 1, TRITON_EXPERTS)
    )


OP = Op("fused_moe", Args)
_triton.register(OP, _triton_unsupported)
_native.register(OP, _cpp_unsupported)
OP.register("reference", by_name(OP, reference.fused_moe, skip=lambda args: SKIPS[args.skip]))
