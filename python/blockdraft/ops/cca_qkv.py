from .. import reference
from ..contract import F32, FLOATS, I32, Check
from ..registry import Op
from ..types import Rows
from . import _rows

_OP = Op(
    "cca_qkv",
    "(Tensor qk, Tensor v_now, Tensor v_late, Tensor conv0_weight, Tensor conv0_bias, Tensor conv1_weight, "
    f"Tensor conv1_bias, Tensor temp, Tensor cos_sin, {_rows.SCHEMA}, Tensor? conv_state, Tensor? late_state, "
    "Tensor? slots, Tensor? late_start, Tensor? block_table, Tensor(a!)? k_cache, Tensor(b!)? v_cache, "
    "Tensor(c!) q, Tensor(d!) k, Tensor(e!) v) -> ()",
)


def _reference(*args):
    inputs, rows, rest = args[:9], Rows(*args[9:17]), args[17:]
    conv_state, late_state, slots, late_start, block_table, k_cache, v_cache, *outputs = rest
    results = reference.cca_qkv(*inputs, rows, conv_state, late_state, slots, late_start)
    for output, result in zip(outputs, results):
        output.copy_(result)
    if k_cache is not None:
        reference.store_kv(outputs[1], outputs[2], k_cache, v_cache, block_table, rows)


_OP.register("reference", _reference)


def cca_qkv(
    qk,
    v_now,
    v_late,
    conv0_weight,
    conv0_bias,
    conv1_weight,
    conv1_bias,
    temp,
    cos_sin,
    rows: Rows,
    conv_state=None,
    late_state=None,
    slots=None,
    k_cache=None,
    v_cache=None,
    block_table=None,
    *,
    late_start=None,
    out=None,
    backend: str | None = None,
):
    """Compressed convolutional attention, from projections to q, k, v; stores k, v of live verify
    rows in the cache.

    Each row is convolved with its ancestors: verify row i follows row i-1, row 0 the stored state;
    the first mask of a proposal of branch c follows verify row c-1. Then the residual paths, the
    norm to sqrt(Dh), keys times temp, RoPE; half of the value channels come from the row's parent.
    A request with prefix 0 starts from zeros, whatever is stored.

    qk           bf16 | fp16 | fp32 [T,C], C = (Hq+Hk)*Dh: projected queries, then keys; rows may be
                 strided
    v_now, v_late  [T,Hk*Dh/2], qk's dtype: projections for the token itself and for its successor
    conv0_weight [C,1,k0], conv0_bias [C]: depthwise; conv1_weight [C,Dh,k1], conv1_bias [C]: one
    group a head (torch Conv1d)
    temp         [Hk], key scale
    cos_sin      float32 [positions,R]: cosines, then sines, R/2 each; rotates the first R channels
                 by halves
    conv_state   [S,k0+k1-2,C], oldest first; late_state [S,Hk*Dh/2]; slots int32 [B], -1: the
                 request has no state
    k_cache, v_cache, block_table  as in block_attention; None: nothing is stored
    late_start   [Hk*Dh/2], delayed value of a first token (the projection's bias); None: 0
    out          (q, k, v), made if None: [T,Hq,Dh], [T,Hk,Dh], [T,Hk,Dh], qk's dtype; 0 for dead
                 rows
    Returns (q, k, v). Raises ValueError or TypeError, before anything is written. Source: arXiv
    2510.04476.
    """
    check = Check("cca_qkv")
    check.tensor("qk", qk, "T C")
    check.tensor("temp", temp, "Hk")
    check.tensor("conv1_weight", conv1_weight, "C Dh k1")
    check.tensor("conv0_weight", conv0_weight, "C 1 k0")
    check.tensor("conv0_bias", conv0_bias, "C")
    check.tensor("conv1_bias", conv1_bias, "C")
    d = check.dims
    check.need(d["Hk"] > 0 and d["Dh"] > 0, "temp", "at least one KV head", d["Hk"])
    d["Hq"] = d["C"] // d["Dh"] - d["Hk"]
    check.need(
        d["C"] % d["Dh"] == 0 and d["Hq"] > 0 and d["Hq"] % d["Hk"] == 0,
        "qk",
        f"C = (Hq+Hk)*{d['Dh']} with Hq a multiple of Hk = {d['Hk']}",
        d["C"],
    )
    d["half"], d["depth"] = d["Hk"] * d["Dh"] // 2, d["k0"] + d["k1"] - 2
    check.tensor("v_now", v_now, "T half", (qk.dtype,))
    check.tensor("v_late", v_late, "T half", (qk.dtype,))
    check.tensor("late_start", late_start, "half", FLOATS, optional=True)
    check.rows(rows, len(qk))
    check.tensor("cos_sin", cos_sin, "positions R", F32)
    check.need(
        d["R"] % 2 == 0 and d["R"] <= d["Dh"],
        "cos_sin",
        f"an even width of at most Dh = {d['Dh']}",
        d["R"],
    )
    masks = rows.mask_rows if rows.branch.shape[1] else 0
    check.values(
        "cos_sin",
        rows.prefix_lens + rows.draft_len + masks,
        -1,
        d["positions"] - 1,
        f"a table of more than every position, not {d['positions']}",
    )
    given = [t is not None for t in (conv_state, late_state, slots)]
    check.need(
        all(given) or not any(given),
        "conv_state, late_state, slots",
        "all three or none",
        f"{sum(given)} of them",
    )
    check.tensor("conv_state", conv_state, "S depth C", optional=True)
    check.tensor("late_state", late_state, "S half", optional=True)
    check.tensor("slots", slots, "B", I32, optional=True)
    check.values("slots", slots, -1, d.get("S", 0) - 1, f"-1 or 0 .. {d.get('S', 0) - 1}")
    check.pages(k_cache, v_cache, block_table, rows, qk.dtype, stores=True)
    shapes = (len(qk), d["Hq"], d["Dh"]), (len(qk), d["Hk"], d["Dh"]), (len(qk), d["Hk"], d["Dh"])
    check.need(
        out is None or isinstance(out, (tuple, list)) and len(out) == 3,
        "out",
        "three tensors",
        type(out).__name__,
    )
    q, k, v = (qk.new_empty(shape) for shape in shapes) if out is None else out
    for name, output, shape in (
        ("out[0]", q, "T Hq Dh"),
        ("out[1]", k, "T Hk Dh"),
        ("out[2]", v, "T Hk Dh"),
    ):
        check.tensor(name, output, shape, (qk.dtype,))
    _OP(
        backend,
        qk,
        v_now,
        v_late,
        conv0_weight,
        conv0_bias,
        conv1_weight,
        conv1_bias,
        temp,
        cos_sin,
        *_rows.flatten(rows),
        conv_state,
        late_state,
        slots,
        late_start,
        block_table,
        k_cache,
        v_cache,
        q,
        k,
        v,
    )
    return q, k, v
