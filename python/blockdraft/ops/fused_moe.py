from .. import reference
from ..contract import F32, I32, Check
from ..registry import Op

_OP = Op(
    "fused_moe",
    "(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor down, Tensor? skip_prob, str skip, "
    "Tensor(a!) out) -> ()",
)


def _reference(x, experts, weights, gate_up, down, skip_prob, skip, out):
    out.copy_(reference.fused_moe(x, experts, weights, gate_up, down, skip_prob, skip))


_OP.register("reference", _reference)


def fused_moe(
    x,
    experts,
    weights,
    gate_up,
    down,
    skip_prob=None,
    *,
    skip: str = "zero",
    out=None,
    backend: str | None = None,
):
    """SwiGLU experts: y = sum over choices of weight * down[e] @ (silu(gate) * up), with gate, up =
    gate_up[e] @ x.

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
    check.choice("skip", skip, ("zero", "identity"))
    check.need(
        skip == "zero" or skip_prob is not None,
        "skip_prob",
        "a tensor, since skip is 'identity'",
        skip_prob,
    )
    check.tensor("skip_prob", skip_prob, "T", F32, optional=True)
    check.values("experts", experts, -1, check.dims["E"] - 1, f"-1 .. {check.dims['E'] - 1}")
    out = x.new_empty(x.shape) if out is None else out
    check.tensor("out", out, "T H", (x.dtype,))
    _OP(backend, x, experts, weights, gate_up, down, skip_prob, skip, out)
    return out
