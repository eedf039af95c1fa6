"""The tile layer: each primitive on the CPU and on sim against numpy, the kernels on sim, and
sim's own alarm."""

import ctypes
import functools
import random
import shutil

import cca
import fp8
import harness
import numpy as np
import pytest
import rope
import torch
from harness import TARGETS, TYPES, pointer

from blockdraft import BlockLayout, Rows, ops
from blockdraft.models.quantize import quantize_fp8, quantize_mxfp4
from blockdraft.testing import TOLERANCES, assert_close, poisoned, random_pages, random_rows

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
SEED = ctypes.c_uint64


def numpy(t):
    return t.double().numpy()


def gated_product(target, dtype, rows, tokens, depth, seed=1, dropped=-1):
    """tile/gemm.h with a gathering prologue and a gating epilogue; and what it should be."""
    generator = torch.Generator().manual_seed(rows + depth)
    w, x = (torch.randn(n, depth, generator=generator).to(dtype) for n in (rows, 7))
    bias = torch.randn(rows // 2, generator=generator)
    columns = torch.tensor(tokens, dtype=torch.int32)
    y = poisoned(len(tokens), rows // 2, dtype=torch.float32)
    harness.checks().check_gated_product(
        TARGETS[target],
        TYPES[dtype],
        *map(pointer, (w, x, columns, bias, y)),
        rows,
        len(tokens),
        depth,
        SEED(seed),
        dropped,
    )
    product = x.double()[columns.long()] @ w.double().T
    return y, product[:, ::2] * (product[:, 1::2] + bias)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
@pytest.mark.parametrize(
    "rows, tokens, depth",
    [(2, [0], 8), (32, [3, 5, 3, 6], 64), (30, [6, 5, 4, 3, 2, 1, 0, 5], 520)],
)
def test_gemm(target, dtype, rows, tokens, depth):
    y, expected = gated_product(target, dtype, rows, tokens, depth)
    assert_close(y, expected)


@pytest.mark.parametrize("target", ["cpu", "sim"])
def test_a_column_s_bits_of_gemm_do_not_depend_on_the_others(target):
    together, _ = gated_product(target, torch.bfloat16, 30, [6, 5, 4, 3, 2, 1, 0, 5], 520)
    alone, _ = gated_product(target, torch.bfloat16, 30, [4], 520)
    assert torch.equal(together[2], alone[0])


def test_sim_notices_a_missing_barrier_of_gemm():
    def wrong(seed):
        y, expected = gated_product("sim", torch.float32, 32, [3, 1, 3, 6], 96, seed, dropped=1)
        return not torch.allclose(y.double(), expected)

    assert any(wrong(seed) for seed in range(20))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_attend(target, dtype):
    """stage, scores, mask, absorb and close: spans of keys, columns that see nothing, rescaling
    when the maximum grows."""
    m, n, depth = 210, 21, 32
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(size, depth, generator=generator).to(dtype) for size in (n, m, m))
    # later keys matter more: the running maximum changes
    k *= torch.linspace(0.1, 4, m).to(dtype)[:, None]
    start = torch.randint(0, m, (n,), generator=generator, dtype=torch.int32)
    stop = torch.minimum(
        start + torch.randint(0, 100, (n,), generator=generator, dtype=torch.int32), torch.tensor(m)
    ).int()
    out, top, total = (
        poisoned(n, depth, dtype=torch.float32),
        poisoned(n, dtype=torch.float32),
        poisoned(n, dtype=torch.float32),
    )
    harness.checks().check_attend(
        TARGETS[target],
        TYPES[dtype],
        *map(pointer, (q, k, v, start, stop, out, top, total)),
        m,
        n,
        depth,
        ctypes.c_float(0.2),
        SEED(1),
        -1,
    )
    expected = np.zeros((n, depth))
    for c in range(n):
        s = 0.2 * numpy(k[start[c] : stop[c]]) @ numpy(q[c])
        if not len(s):
            assert total[c] == 0 and (out[c] == 0).all()
            continue
        p = np.exp2(s - s.max())
        expected[c] = p @ numpy(v[start[c] : stop[c]]) / p.sum()
        assert abs(float(top[c]) - s.max()) < 1e-4 and abs(float(total[c]) / p.sum() - 1) < 1e-4
    assert (stop > start).sum() > n // 2
    assert_close(out / total.clamp(min=1e-30)[:, None], torch.from_numpy(expected), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_each_store_leader_and_barrier(target, dtype):
    x = torch.randn(1001)
    x[::7] = 0
    x[1], x[2], x[3], x[4] = torch.inf, -torch.inf, 1e-7, 65520.0
    out, count = poisoned(1001, dtype=dtype), torch.full((1,), -1, dtype=torch.int32)
    for seed in range(5):
        harness.checks().check_copy_and_count(
            TARGETS[target],
            TYPES[dtype],
            pointer(x),
            pointer(out),
            1001,
            pointer(count),
            SEED(seed),
            -1,
        )
        assert torch.equal(out, x.to(dtype)) and int(count) == int((x.to(dtype) != 0).sum())


def attention_case(dtype, seed):
    """Random shapes, dead rows of NaN, and a window (0: none)."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    K = choose.randint(0, 8)
    layout = BlockLayout(
        K, choose.randint(1, 9), choose.randint(0, K + 1), bidirectional=choose.random() < 0.7
    )
    prefixes = [
        choose.choice([0, 1, 7, 8, 31, 32, 33, 64, choose.randint(0, 150)])
        for _ in range(choose.randint(1, 3))
    ]
    kv_heads, group, dim = (
        choose.choice([1, 2]),
        choose.choice([1, 2, 4, 8]),
        choose.choice([8, 16, 64]),
    )
    rows = random_rows(layout, prefixes, generator, choose.choice([0.0, 0.3, 1.0]))
    total = int(rows.cu_rows[-1])
    q, k, v = (
        torch.randn(total, heads, dim, generator=generator).to(dtype)
        for heads in (kv_heads * group, kv_heads, kv_heads)
    )
    past = [
        [torch.randn(n, kv_heads, dim, generator=generator).to(dtype) for n in prefixes]
        for _ in range(2)
    ]
    page = choose.choice([8, 16])
    (k_cache, table), (v_cache, _) = (
        random_pages(p, prefixes, page, torch.Generator().manual_seed(9)) for p in past
    )
    dead = ~rows.table(total).live
    for t in (q, k, v):
        t[dead] = torch.nan
    return (q, k, v, k_cache, v_cache, table, rows), choose.choice([0, 0, choose.randint(1, 60)])


def attention_params(case, out, lse, workspace, *, chunk, window=0, max_chunks=64, together=1):
    """Of a GPU's kernel, whose chunks are short here; `together`: those of a split."""
    op, args = harness.captured(ops.block_attention, *case, out=out, lse=lse, window=window)
    args = args._replace(
        workspace=workspace, chunk_keys=chunk, max_chunks=max_chunks, split_chunks=together
    )
    return harness.recorded(op, args)


def run_attention(target, dtype, seed, dropped=-1, together=None):
    """`together`: chunks of a split; a random number if None."""
    case, window = attention_case(dtype, seed)
    q, rows = case[0], case[6]
    out, lse = poisoned(*q.shape, dtype=dtype), poisoned(*q.shape[:2], dtype=torch.float32)
    together = together or random.Random(seed).choice([1, 2])
    splits = -(-rows.max_prefix // (32 * together))
    workspace = poisoned(splits, *q.shape[:2], q.shape[2] + 2, dtype=torch.float32)
    params = attention_params(case, out, lse, workspace, chunk=32, window=window, together=together)
    harness.checks().check_block_attention(
        TARGETS[target], TYPES[dtype], params, SEED(seed), dropped
    )
    return (out, lse), reference_attention(case, window)


def reference_attention(case, window=0):
    out = poisoned(*case[0].shape, dtype=torch.float32)
    lse = poisoned(*case[0].shape[:2], dtype=torch.float32)
    wide = [t.float() for t in case[:5]]
    ops.block_attention(*wide, *case[5:], window=window, out=out, lse=lse, backend="reference")
    return out, lse


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_block_attention(target, dtype):
    for seed in range(30):
        (out, lse), (expected, expected_lse) = run_attention(target, dtype, seed)
        assert_close(out, expected)
        assert_close(lse, expected_lse, dtype, name="lse")


@pytest.mark.parametrize("target", ["sim", "sim with one buffer"])
def test_chunks_of_a_split_change_no_bit(target):
    for seed in range(10):
        found = [run_attention(target, torch.bfloat16, seed, together=n)[0] for n in (1, 2)]
        for other in found[1:]:
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[0], other))


@pytest.mark.parametrize("target", ["cpu", "sim"])
def test_a_shorter_prefix_may_have_more_splits_than_the_longest(target):
    """33 units of keys in chunks of two are 17 splits; a prefix of 25 units beside it has 25."""
    generator = torch.Generator().manual_seed(5)
    layout, prefixes, dim = BlockLayout.tidar(2, P=1), [33 * 8, 25 * 8], 16
    rows = random_rows(layout, prefixes, generator)
    total = int(rows.cu_rows[-1])
    q, k, v = (torch.randn(total, n, dim, generator=generator) for n in (2, 1, 1))
    past = [torch.randn(n, 1, dim, generator=generator) for n in prefixes]
    cache, table = random_pages(past, prefixes, 8, generator)
    case = (q, k, v, cache, cache, table, rows)
    out, lse = poisoned(*q.shape, dtype=torch.float32), poisoned(total, 2, dtype=torch.float32)
    workspace = poisoned(32, total, 2, dim + 2, dtype=torch.float32)
    params = attention_params(case, out, lse, workspace, chunk=8, max_chunks=32)
    harness.checks().check_block_attention(TARGETS[target], 0, params, SEED(1), -1)
    expected, expected_lse = reference_attention(case)
    assert_close(out, expected)
    assert_close(lse, expected_lse, torch.float32, name="lse")


@pytest.mark.parametrize("group_columns", [256, 544])  # of tile/cdna, tile/cpu
@pytest.mark.parametrize("rows", [16, 17, 64, 68, 272, 1224, 65, 1])
def test_row_tiles_are_even_and_cover(rows, group_columns):
    q, k = torch.randn(rows, 4, 8), torch.randn(rows, 1, 8)
    packed = Rows.prefill(torch.zeros(1, dtype=torch.int32), [rows], 0)
    params = attention_params((q, k, k, None, None, None, packed), None, None, None, chunk=32)
    first = torch.zeros(rows + 1, dtype=torch.int32)
    count = harness.checks().check_row_tiles(params, group_columns, pointer(first))
    sizes = first[: count + 1].diff()
    assert int(first[0]) == 0 and int(first[count]) == rows
    assert count == -(-rows * 4 // group_columns)
    assert int(sizes.max() - sizes.min()) <= 1 and int(sizes.max()) * 4 <= group_columns


def commit_case(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(BlockLayout(4, 2, 1), [0, 3, 9], generator)
    total = int(rows.cu_rows[-1])
    qk, v_late = (
        torch.randn(2, total, 22, generator=generator),
        torch.randn(2, total, 4, generator=generator),
    )
    states = (
        torch.randn(2, 3, 5, 22, generator=generator),
        torch.randn(2, 3, 4, generator=generator),
    )
    accepted = (torch.rand(3, generator=generator) * (rows.draft_len + 1)).int()
    return qk, v_late, accepted, rows, *states, torch.tensor([2, 0, 1], dtype=torch.int32)


def commit_is_right(target, seed, dropped=-1):
    mine, reference = commit_case(seed), commit_case(seed)
    params = harness.recorded(*harness.captured(ops.commit, *mine))
    harness.checks().check_commit(TARGETS[target], params, SEED(seed), dropped)
    ops.commit(*reference, backend="reference")
    return all(
        torch.equal(a, b)
        for a, b in zip(
            (*mine[4:6], mine[3].prefix_lens), (*reference[4:6], reference[3].prefix_lens)
        )
    )


@pytest.mark.parametrize("target", TARGETS)
def test_commit(target):
    assert all(commit_is_right(target, seed) for seed in range(20))


@pytest.mark.parametrize(
    "target, dropped",
    [("sim", 0), ("sim", 1), ("sim with one buffer", 1), ("sim with one buffer", 2)],
)
def test_sim_notices_a_missing_barrier_of_attention(target, dropped):
    def wrong(seed):
        (out, _), (expected, _) = run_attention(target, torch.float32, seed, dropped)
        return not torch.allclose(out, expected, atol=10 * TOLERANCES[torch.float32].max)

    assert any(wrong(seed) for seed in range(20))


def test_sim_notices_a_missing_barrier_of_commit():
    assert not all(commit_is_right("sim", seed, dropped=0) for seed in range(40))


FORMATS = {None: 0, torch.float8_e4m3fn: 1, torch.float8_e4m3fnuz: 2, "mxfp4": 3}


def moe_is_right(target, rows, choices, dtype, seed=1, dropped=-1, format=None):
    """fused_moe of a few or many pairs, with rows that no expert takes."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = (160, 96) if format == "mxfp4" else (72, 24)
    x, gate_up, down = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((rows, hidden), (5, 2 * inner, hidden), (5, hidden, inner))
    )
    scales = {}
    if format is not None:
        quantize = (
            quantize_mxfp4 if format == "mxfp4" else functools.partial(quantize_fp8, dtype=format)
        )
        gate_up, scales["gate_up_scale"] = quantize(gate_up)
        down, scales["down_scale"] = quantize(down)
    experts = torch.randint(-1, 4, (rows, choices), generator=generator).int()
    weights = torch.rand(rows, choices, generator=generator)
    skip_prob = torch.where((experts < 0).all(1), 0.5, 0.0)
    call = functools.partial(
        ops.fused_moe, x, experts, weights, gate_up, down, skip_prob, skip="identity", **scales
    )
    out = poisoned(rows, hidden, dtype=dtype)
    captured = harness.captured(call, out=out)  # kept, with the workspace
    params = harness.recorded(*captured)
    types = TYPES[dtype], FORMATS[format]
    harness.checks().check_fused_moe(TARGETS[target], *types, params, SEED(seed), dropped)
    try:
        assert_close(out, call(backend="reference"))
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
@pytest.mark.parametrize("rows, choices", [(1, 1), (20, 1), (70, 1), (30, 3)])
def test_fused_moe(rows, choices, target, dtype):
    assert moe_is_right(target, rows, choices, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
@pytest.mark.parametrize("format", [f for f in FORMATS if f], ids=str)
@pytest.mark.parametrize("rows", [20, 70])
def test_experts_with_scales(rows, format, target, dtype):
    assert moe_is_right(target, rows, 1, dtype, format=format)


@pytest.mark.parametrize("dropped", [0, 1, 2, 3])
def test_sim_notices_a_missing_barrier_of_fused_moe(dropped):
    assert not all(
        moe_is_right("sim", 20, 1, torch.float32, seed, dropped) for seed in range(1, 30)
    )


def cca_on(target, dtype, arguments, seed=1, dropped=-1, apart=True):
    written, run = cca.prepared(arguments)
    params = harness.recorded(*harness.captured(run))
    format = FORMATS.get(arguments["k_cache"].dtype, 0)
    types = TYPES[dtype], format
    harness.checks().check_cca_qkv(TARGETS[target], *types, params, apart, SEED(seed), dropped)
    return written


def cca_is_right(target, dtype, kernels=(2, 2), seed=1, dropped=-1, apart=True, dim=48):
    """cca_qkv of a decode step: dead rows, a request without a prefix, one without a slot."""
    layout, prefixes = BlockLayout(3, 3, 2), [0, 9, 5]
    arguments = cca.case(layout, prefixes, (3, 1, dim), kernels, 16, dtype, seed)
    arguments["slots"] = torch.tensor([1, 0, -1], dtype=torch.int32)
    found = cca_on(target, dtype, arguments, seed, dropped, apart)
    try:
        cca.assert_same(found, cca.expected(arguments))
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
@pytest.mark.parametrize("kernels", [(2, 2), (3, 1), (1, 3)])
def test_cca_qkv(kernels, target, dtype):
    assert cca_is_right(target, dtype, kernels)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
@pytest.mark.parametrize("stored", [fp8.FN, fp8.FNUZ], ids=str)
@pytest.mark.parametrize("scales", ["page", None])
def test_a_store_of_fp8(scales, stored, target, dtype):
    case = cca.case(BlockLayout(3, 3, 2), [0, 9, 5], (2, 1, 48), (2, 2), 16, dtype)
    arguments = case if scales else fp8.edge_case(stored, dtype)
    fp8.check_store(arguments, stored, scales, functools.partial(cca_on, target, dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_cca_qkv_whose_outputs_replace_the_tokens(dtype):
    assert cca_is_right("sim", dtype, apart=False, dim=32)


@pytest.mark.parametrize("dropped", range(6))
def test_sim_notices_a_missing_barrier_of_cca_qkv(dropped):
    assert not all(
        cca_is_right("sim", torch.float32, (2, 1), seed, dropped, dim=16) for seed in range(1, 30)
    )


def router_is_right(target, rows, top_k, dtype, seed=1, dropped=-1, inner=36):
    """zaya_router, with channels and depths that fill no tile."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    weights = [randn(inner, 72, scale=0.1), randn(inner), randn(inner), randn(inner)]
    for _ in range(2):
        weights += [randn(inner, inner, scale=0.2), randn(inner)]
    weights += [randn(11, inner), torch.zeros(11)]
    live = torch.rand(rows, generator=generator) > 0.2
    x, state = randn(rows, 72), randn(rows, inner)
    call = functools.partial(ops.zaya_router, x, state, *weights, eps=1e-5, live=live, top_k=top_k)
    expected = call(backend="reference")
    out = tuple(poisoned(*t.shape, dtype=t.dtype) for t in expected)
    params = harness.recorded(*harness.captured(call, out=out))
    harness.checks().check_zaya_router(TARGETS[target], TYPES[dtype], params, SEED(seed), dropped)
    try:
        for i in (0, 2, 3):
            assert_close(out[i].to(dtype), expected[i].to(dtype), dtype, slack=4)
        return torch.equal(out[1], expected[1])
    except AssertionError:
        return False


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
@pytest.mark.parametrize("rows, top_k", [(1, 1), (20, 1), (30, 3)])
def test_zaya_router(rows, top_k, target, dtype):
    assert router_is_right(target, rows, top_k, dtype)


@pytest.mark.parametrize("dropped", range(7))
def test_sim_notices_a_missing_barrier_of_zaya_router(dropped):
    assert not all(
        router_is_right("sim", 9, 1, torch.float32, seed, dropped, inner=28)
        for seed in range(1, 30)
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
def test_residual_norm(target, dtype):
    generator = torch.Generator().manual_seed(0)
    x, *scales = (torch.randn(n, 136, generator=generator).to(dtype) for n in (20, 1, 1, 1, 1, 1))
    names = ("weight", "scale", "bias", "residual_scale", "residual_bias")
    given = {name: t[0] for name, t in zip(names, scales)}
    given["residual"] = torch.randn(20, 136, generator=generator)
    given["index"] = torch.randint(20, (11,), generator=generator).int()
    expected, _ = ops.residual_norm(x, eps=1e-5, **given, backend="reference")
    out = poisoned(*expected.shape, dtype=dtype)
    call = functools.partial(ops.residual_norm, x, eps=1e-5, **given, out=(out, None))
    params = harness.recorded(*harness.captured(call))
    harness.checks().check_residual_norm(TARGETS[target], TYPES[dtype], params, SEED(0))
    assert_close(out, expected, dtype)


def rope_on(target, dtype, arguments):
    written, run = rope.prepared(arguments)
    params = harness.recorded(*harness.captured(run))
    format = FORMATS.get(arguments["k_cache"].dtype, 0)
    harness.checks().check_rope_qkv(TARGETS[target], TYPES[dtype], format, params, SEED(0))
    return written


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
@pytest.mark.parametrize("dim, rotary", [(48, 48), (40, 24), (24, 0)])
def test_rope_qkv(dim, rotary, target, dtype):
    arguments = rope.case(BlockLayout(3, 3, 2), [0, 9, 5], (4, 2, dim), rotary, dtype)
    cca.assert_same(rope_on(target, dtype, arguments), rope.expected(arguments))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["cpu", "sim"])
@pytest.mark.parametrize("stored", [fp8.FN, fp8.FNUZ], ids=str)
def test_rope_qkv_stores_fp8(stored, target, dtype):
    arguments = rope.case(BlockLayout(3, 3, 2), [0, 9, 5], (2, 1, 48), 16, dtype)
    run = functools.partial(rope_on, target, dtype)
    fp8.check_store(arguments, stored, "page", run, fp8.near)


def dispatch_is_right(target, seed, dropped=-1):
    generator = torch.Generator().manual_seed(seed)
    experts = torch.randint(-1, 5, (37, 2), generator=generator).int()
    # room behind it for what a missing barrier misplaces
    order = torch.full((4 * 74,), -7, dtype=torch.int32)[:74]
    offsets = torch.full((6,), -7, dtype=torch.int32)
    params = harness.recorded(*harness.captured(ops.moe_dispatch, experts, 5, out=(order, offsets)))
    harness.checks().check_moe_dispatch(TARGETS[target], params, SEED(seed), dropped)
    expected = ops.moe_dispatch(experts, 5, backend="reference")
    return torch.equal(order, expected[0]) and torch.equal(offsets, expected[1])


@pytest.mark.parametrize("target", ["cpu", "sim"])
def test_moe_dispatch(target):
    assert all(dispatch_is_right(target, seed) for seed in range(10))


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_sim_notices_a_missing_barrier_of_moe_dispatch(dropped):
    assert not all(dispatch_is_right("sim", seed, dropped) for seed in range(40))


def plan_is_right(target, seed, dropped=-1):
    generator = torch.Generator().manual_seed(seed)
    accept, masks = torch.rand(5, 6, generator=generator), torch.rand(6, 7, generator=generator)
    accept[::2, 0] = 1  # then branch 1 is not the first
    lengths = torch.tensor([6, 3, 0, -1, 5], dtype=torch.int32)
    out = poisoned(5, 3, dtype=torch.int32)
    inputs = accept.double(), masks.double(), 3, lengths
    params = harness.recorded(*harness.captured(ops.plan_branches, *inputs, out=out))
    harness.checks().check_plan_branches(TARGETS[target], params, SEED(seed), dropped)
    return torch.equal(out, ops.plan_branches(*inputs, backend="reference"))


@pytest.mark.parametrize("target", ["cpu", "sim"])
def test_plan_branches(target):
    assert all(plan_is_right(target, seed) for seed in range(10))


@pytest.mark.parametrize("dropped", [0, 1, 2, 3])
def test_sim_notices_a_missing_barrier_of_plan_branches(dropped):
    assert not all(plan_is_right("sim", seed, dropped) for seed in range(40))
