"""The tile layer: each primitive on the host and on sim against numpy, the kernels on sim, and
sim's own alarm."""

import ctypes
import random
import shutil

import harness
import numpy as np
import pytest
import torch
from harness import TARGETS, TYPES, pointer

from blockdraft import BlockLayout, ops
from blockdraft.testing import TOLERANCES, assert_close, poisoned, random_pages, random_rows

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
SEED = ctypes.c_uint64


def numpy(t):
    return t.double().numpy()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m, n, depth", [(1, 1, 8), (16, 8, 16), (37, 32, 64), (193, 5, 128)])
def test_gemm(target, dtype, m, n, depth):
    generator = torch.Generator().manual_seed(m)
    a, b = (torch.randn(size, depth, generator=generator).to(dtype) for size in (m, n))
    c = poisoned(m, n, dtype=torch.float32)
    harness.checks().check_gemm(
        TARGETS[target],
        TYPES[dtype],
        pointer(a),
        pointer(b),
        pointer(c),
        m,
        n,
        depth,
        ctypes.c_float(0.37),
        SEED(1),
        -1,
    )
    assert_close(c, torch.from_numpy(0.37 * numpy(a) @ numpy(b).T))


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


def run_attention(target, dtype, seed, dropped=-1):
    case, window = attention_case(dtype, seed)
    q, rows = case[0], case[6]
    out, lse = poisoned(*q.shape, dtype=dtype), poisoned(*q.shape[:2], dtype=torch.float32)
    split = 32
    workspace = poisoned(
        -(-rows.max_prefix // split), *q.shape[:2], q.shape[2] + 2, dtype=torch.float32
    )
    params = harness.attention_params(*case, out, lse, workspace, split=split, window=window)
    harness.checks().check_block_attention(
        TARGETS[target], TYPES[dtype], ctypes.byref(params), SEED(seed), dropped
    )
    expected, expected_lse = (
        poisoned(*q.shape, dtype=torch.float32),
        poisoned(*q.shape[:2], dtype=torch.float32),
    )
    ops.block_attention(
        *(t.float() for t in case[:5]),
        *case[5:],
        window=window,
        out=expected,
        lse=expected_lse,
        backend="reference",
    )
    return (out, lse), (expected, expected_lse)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_block_attention(target, dtype):
    for seed in range(30):
        (out, lse), (expected, expected_lse) = run_attention(target, dtype, seed)
        assert_close(out, expected)
        assert_close(lse, expected_lse, dtype, name="lse")


@pytest.mark.parametrize("group_columns", [256, 544])  # of cdna.h, host.h
@pytest.mark.parametrize("rows", [16, 17, 64, 68, 272, 1224, 65, 1])
def test_row_tiles_are_even_and_cover(rows, group_columns):
    case, _ = attention_case(torch.float32, 0)
    params = harness.attention_params(*case, case[0], case[0], case[0], split=32)
    cu_rows, zero = torch.tensor([0, rows], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    params.cu_rows, params.prefix_lens, params.batch, params.max_rows, params.max_prefix = (
        cu_rows.data_ptr(),
        zero.data_ptr(),
        1,
        rows,
        0,
    )
    params.query_heads, params.kv_heads, params.proposals = 4, 1, 0
    first = torch.zeros(rows + 1, dtype=torch.int32)
    count = harness.checks().check_row_tiles(ctypes.byref(params), group_columns, pointer(first))
    sizes = first[: count + 1].diff()
    assert (
        int(first[0]) == 0 and int(first[count]) == rows and count == -(-rows * 4 // group_columns)
    )
    assert int(sizes.max() - sizes.min()) <= 1 and int(sizes.max()) * 4 <= group_columns


def commit_case(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = random_rows(BlockLayout(4, 2, 1), [0, 3, 9], generator)
    total = int(rows.cu_rows[-1])
    qk, v_late = (
        torch.randn(2, total, 24, generator=generator),
        torch.randn(2, total, 4, generator=generator),
    )
    states = (
        torch.randn(2, 3, 5, 24, generator=generator),
        torch.randn(2, 3, 4, generator=generator),
    )
    accepted = (torch.rand(3, generator=generator) * (rows.draft_len + 1)).int()
    return qk, v_late, accepted, rows, *states, torch.tensor([2, 0, 1], dtype=torch.int32)


def commit_is_right(target, seed, dropped=-1):
    mine, reference = commit_case(seed), commit_case(seed)
    params = harness.commit_params(*mine)
    harness.checks().check_commit(TARGETS[target], ctypes.byref(params), SEED(seed), dropped)
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
