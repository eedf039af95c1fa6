from .. import reference
from ..contract import BOOL, F32, FLOATS, I32, Check
from ..registry import Op

_OP = Op(
    "zaya_router",
    "(Tensor hidden, Tensor? prev_state, Tensor down_weight, Tensor down_bias, Tensor? eda_scale, "
    "Tensor norm_weight, Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias, Tensor out_weight, "
    "Tensor balancing_bias, float eps, Tensor? live, Tensor(a!) weights, Tensor(b!) experts, Tensor(c!) skip_prob, "
    "Tensor(d!) state) -> ()",
)


def _reference(*args):
    for output, result in zip(args[14:], reference.zaya_router(*args[:14])):
        output.copy_(result)


_OP.register("reference", _reference)


def zaya_router(
    hidden,
    prev_state,
    down_weight,
    down_bias,
    eda_scale,
    norm_weight,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    out_weight,
    balancing_bias,
    eps: float,
    live=None,
    *,
    backend: str | None = None,
):
    """Top-1 routing of ZAYA: down projection, depth averaging with the previous layer's state,
    RMSNorm, three-layer MLP with erf-GELU, softmax over E experts and skip (the last class), argmax
    of probability plus bias.

    hidden       bf16 | fp16 | fp32 [T,H]; prev_state [T,R], the state of the layer below, or None
    down_weight  [R,H], down_bias [R]; eda_scale [R] (None with prev_state None); norm_weight [R]
    fc1_weight, fc2_weight  [R,R], fc1_bias, fc2_bias [R]; out_weight [E+1,R]; balancing_bias [E+1]
    eps          of the RMSNorm; live bool [T] or None: a row that is not live gets expert -1
    Returns weights float32 [T], the unbiased probability of the chosen expert (0 for skip); experts
    int32 [T] (-1: skip or dead; of equal scores the lowest index wins); skip_prob float32 [T], the
    probability of skip where it was chosen, else 0; state [T,R], hidden's dtype. Raises ValueError
    or TypeError. Source: transformers `models/zaya`, arXiv 2605.05365.
    """
    check = Check("zaya_router")
    check.tensor("hidden", hidden, "T H")
    check.tensor("prev_state", prev_state, "T R", optional=True)
    check.need(
        prev_state is None or eda_scale is not None,
        "eda_scale",
        "a tensor, since prev_state is one",
        None,
    )
    for name, t, shape in (
        ("down_weight", down_weight, "R H"),
        ("down_bias", down_bias, "R"),
        ("eda_scale", eda_scale, "R"),
        ("norm_weight", norm_weight, "R"),
        ("fc1_weight", fc1_weight, "R R"),
        ("fc1_bias", fc1_bias, "R"),
        ("fc2_weight", fc2_weight, "R R"),
        ("fc2_bias", fc2_bias, "R"),
        ("out_weight", out_weight, "E+1 R"),
        ("balancing_bias", balancing_bias, "E+1"),
    ):
        check.tensor(name, t, shape, FLOATS, optional=name == "eda_scale")
    check.tensor("live", live, "T", BOOL, optional=True)
    total, width = len(hidden), check.dims["R"]
    weights, skip_prob = (hidden.new_empty(total, dtype=F32[0]) for _ in range(2))
    experts, state = hidden.new_empty(total, dtype=I32[0]), hidden.new_empty(total, width)
    _OP(
        backend,
        hidden,
        prev_state,
        down_weight,
        down_bias,
        eda_scale,
        norm_weight,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        out_weight,
        balancing_bias,
        eps,
        live,
        weights,
        experts,
        skip_prob,
        state,
    )
    return weights, experts, skip_prob, state
