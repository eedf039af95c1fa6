"""Checks of a model's ops but attention, on small shapes, against the reference.

launch(op, args, kind) runs an op's kernels. kind: as for harness.launched.
"""

from functools import partial

import cca
import fp8
import harness
import rope
import torch

from blockdraft import BlockLayout, ops
from blockdraft.models.quantize import quantize_fp8, quantize_mxfp4
from blockdraft.testing import assert_close, poisoned, random_rows

# kinds of launches.cpp: bf16 with weights, or a cache, of these
LOW = {fp8.FN: 3, fp8.FNUZ: 4, torch.float4_e2m1fn_x2: 5}


def check_commit(unit: torch.dtype | str, launch) -> None:
    """unit: what is copied at once, an element or 16 bytes."""
    dtype, channels = (torch.float32, 24) if unit == "16 bytes" else (unit, 22)
    states = []
    for mine in (True, False):
        generator = torch.Generator().manual_seed(2)
        rows = random_rows(BlockLayout(4, 2, 1), [0, 3, 9], generator)
        total = int(rows.cu_rows[-1])
        qk, v_late = (
            torch.randn(2, total, n, generator=generator).to(dtype) for n in (channels, 4)
        )
        conv_state, late_state = (
            torch.randn(2, 3, *n, generator=generator).to(dtype) for n in ((5, channels), (4,))
        )
        case = (
            qk,
            v_late,
            torch.minimum(rows.draft_len, torch.tensor([0, 2, 4])).int(),
            rows,
            conv_state,
            late_state,
            torch.tensor([2, 0, 1], dtype=torch.int32),
        )
        if mine:
            op, args = harness.captured(ops.commit, *case)
            launch(op, args, 16 if unit == "16 bytes" else unit.itemsize)
        else:
            ops.commit(*case, backend="reference")
        states.append((conv_state, late_state, rows.prefix_lens))
    assert all(torch.equal(a, b) for a, b in zip(*states))


def check_dispatch(rows: int, choices: int, experts: int, launch) -> None:
    generator = torch.Generator().manual_seed(rows)
    chosen = torch.randint(-1, experts, (rows, choices), generator=generator).int()
    out = (
        poisoned(rows * choices, dtype=torch.int32),
        poisoned(experts + 1, dtype=torch.int32),
    )
    op, args = harness.captured(ops.moe_dispatch, chosen, experts, out=out)
    launch(op, args, 0)
    for mine, theirs in zip(out, ops.moe_dispatch(chosen, experts, backend="reference")):
        assert torch.equal(mine, theirs)


def _experts(rows: int, choices: int, hidden: int, inner: int, dtype: torch.dtype) -> list:
    """Rows that no expert takes, and an expert without rows."""
    generator = torch.Generator().manual_seed(rows)
    x, gate_up, down = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((rows, hidden), (5, 2 * inner, hidden), (5, hidden, inner))
    )
    experts = torch.randint(-1, 4, (rows, choices), generator=generator).int()
    weights = torch.rand(rows, choices, generator=generator)
    skip_prob = torch.where((experts < 0).all(1), 0.5, 0.0)
    return [x, experts, weights, gate_up, down, skip_prob]


def _check_moe(tensors: list, scales: dict, kind: int, launch) -> None:
    call = partial(ops.fused_moe, *tensors, **scales, skip="identity")
    out = poisoned(*tensors[0].shape, dtype=tensors[0].dtype)
    op, args = harness.captured(call, out=out)
    launch(op, args, kind)
    # with scales, silu(gate) * up and fp8's weights are rounded, too
    assert_close(out, call(backend="reference"), slack=2 if scales else 1)


def check_experts(
    rows: int, choices: int, hidden: int, inner: int, dtype: torch.dtype, launch
) -> None:
    tensors = _experts(rows, choices, hidden, inner, dtype)
    _check_moe(tensors, {}, harness.TYPES[dtype], launch)


def check_scaled_experts(
    rows: int, hidden: int, inner: int, format: str, arch: str, launch
) -> None:
    tensors = _experts(rows, 1, hidden, inner, torch.bfloat16)
    scales = {}
    for i, name in ((3, "gate_up_scale"), (4, "down_scale")):
        if format == "mxfp4":
            tensors[i], scales[name] = quantize_mxfp4(tensors[i])
        else:
            tensors[i], scales[name] = quantize_fp8(tensors[i], fp8.OF_ARCH[arch])
    _check_moe(tensors, scales, LOW[tensors[3].dtype], launch)


def check_router(rows: int, top_k: int, dtype: torch.dtype, launch) -> None:
    generator = torch.Generator().manual_seed(rows)

    def randn(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    weights = [randn(40, 136, scale=0.1), randn(40), randn(40), randn(40)]
    weights += [randn(40, 40, scale=0.2), randn(40), randn(40, 40, scale=0.2), randn(40)]
    weights += [randn(19, 40), torch.zeros(19)]
    call = partial(
        ops.zaya_router, randn(rows, 136), randn(rows, 40), *weights, eps=1e-5, top_k=top_k
    )
    expected = call(backend="reference")
    out = tuple(poisoned(*t.shape, dtype=t.dtype) for t in expected)
    op, args = harness.captured(call, out=out)
    launch(op, args, harness.TYPES[dtype])
    assert torch.equal(out[1], expected[1])
    for i in (0, 2, 3):
        assert_close(out[i].to(dtype), expected[i].to(dtype), dtype, slack=4)


def check_cca(dim: int, kernels: tuple[int, int], dtype: torch.dtype, launch) -> None:
    rotary = dim // 2 // 8 * 8
    arguments = cca.case(
        BlockLayout(5, 4, 2), [0, 9], (4, 2, dim), kernels, rotary, dtype, seed=dim
    )
    found, run = cca.prepared(arguments)
    op, args = harness.captured(run)
    launch(op, args, harness.TYPES[dtype])
    cca.assert_same(found, cca.expected(arguments))


def _stored(prepared, launch):
    """What fp8.check_store runs."""

    def run(arguments):
        written, call = prepared(arguments)
        op, args = harness.captured(call)
        kind = LOW.get(arguments["k_cache"].dtype, harness.TYPES[torch.bfloat16])
        launch(op, args, kind)
        return written

    return run


def check_cca_store(dim: int, scales: str | None, arch: str, launch) -> None:
    stored, dtype = fp8.OF_ARCH[arch], torch.bfloat16
    if scales:
        case = cca.case(BlockLayout(5, 4, 2), [0, 9], (4, 2, dim), (2, 2), dim // 2, dtype)
    else:
        case = fp8.edge_case(stored, dtype)
    fp8.check_store(case, stored, scales, _stored(cca.prepared, launch))


def check_rope(dim: int, rotary: int, dtype: torch.dtype, arch: str, launch) -> None:
    case = partial(rope.case, BlockLayout(5, 4, 2), [0, 9], (20, 5, dim), rotary)
    arguments = case(dtype)
    written, run = rope.prepared(arguments)
    op, args = harness.captured(run)
    launch(op, args, harness.TYPES[dtype])
    cca.assert_same(written, rope.expected(arguments))
    run = _stored(rope.prepared, launch)
    fp8.check_store(case(torch.bfloat16), fp8.OF_ARCH[arch], "head", run, fp8.near)


def check_norm(dtype: torch.dtype, launch) -> None:
    generator = torch.Generator().manual_seed(0)
    for hidden in (1032, 40):
        names = ("weight", "scale", "bias", "residual_scale", "residual_bias")
        given = {name: torch.randn(hidden, generator=generator).to(dtype) for name in names}
        given["residual"] = torch.randn(7, hidden, generator=generator)
        given["index"] = torch.tensor([6, 0, 3], dtype=torch.int32)
        x = torch.randn(7, hidden, generator=generator).to(dtype)
        call = partial(ops.residual_norm, x, eps=1e-5, **given)
        expected = call(backend="reference")
        out = tuple(poisoned(*t.shape, dtype=t.dtype) for t in expected)
        op, args = harness.captured(call, out=out)
        launch(op, args, harness.TYPES[dtype])
        assert_close(out[0], expected[0], dtype)
        assert_close(out[1], expected[1], torch.float32)
