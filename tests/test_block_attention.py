"""Attention, parents and positions against a recomputation in which each proposal is its branch run
alone as a sequence."""

import dataclasses
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockdraft import BlockLayout, Rows, env, ops
from blockdraft.registry import OPS
from blockdraft.testing import assert_close, poisoned, random_pages, random_rows

BACKENDS = list(OPS["block_attention"].backends)
LAYOUTS = {
    "tidar": BlockLayout.tidar(16, P=4),
    "zyphra": BlockLayout.zyphra(16, P=3),
    "small": BlockLayout(2, 3, 3),
    "causal": BlockLayout(3, 4, 2, bidirectional=False),
    "dense": BlockLayout(4, 5, 5),
}


def inputs(layout, prefixes, generator, heads=(4, 2), dim=16, page=8, dead=0.2):
    rows = random_rows(layout, prefixes, generator, dead)
    total = int(rows.cu_rows[-1])
    q = torch.randn(total, heads[0], dim, generator=generator)
    k, v = (torch.randn(total, heads[1], dim, generator=generator) for _ in range(2))
    past_k, past_v = (
        [torch.randn(n, heads[1], dim, generator=generator) for n in prefixes] for _ in range(2)
    )
    k_cache, table = random_pages(past_k, prefixes, page, torch.Generator().manual_seed(9))
    v_cache, _ = random_pages(past_v, prefixes, page, torch.Generator().manual_seed(9))
    return q, k, v, k_cache, v_cache, table, rows, past_k, past_v


def attend(q, k, v, k_cache, v_cache, table, rows, *, out=None, lse=None, backend=None, **options):
    """ops.block_attention; the Triton kernels, unless interpreted, run on a GPU, and what they
    write comes back."""
    if backend != "triton" or env.triton_interpreter():
        return ops.block_attention(
            q, k, v, k_cache, v_cache, table, rows, out=out, lse=lse, backend=backend, **options
        )

    def move(t):
        return t.cuda() if isinstance(t, torch.Tensor) else t

    # as strided as they come
    wide = torch.cat([q, k, v], 1).cuda().split([q.shape[1], k.shape[1], v.shape[1]], 1)
    rows = dataclasses.replace(
        rows, **{f.name: move(getattr(rows, f.name)) for f in dataclasses.fields(rows)}
    )
    out = torch.empty_like(q) if out is None else out
    results = move(out), move(lse)
    ops.block_attention(
        *wide,
        move(k_cache),
        move(v_cache),
        move(table),
        rows,
        out=results[0],
        lse=results[1],
        backend=backend,
        **options,
    )
    for mine, result in zip((out, lse), results):
        if mine is not None:
            mine.copy_(result)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_few_columns_of_the_cpu(dtype, data):
    """At most eight query columns of a KV head, which have a tile of their own: rows of plain
    decoding, and one or two drafts."""
    draw = data.draw
    group = draw(st.sampled_from([1, 2, 3, 4, 8]))
    rows = draw(st.integers(1, 8 // group))
    prefixes = draw(st.lists(st.sampled_from([0, 1, 7, 63, 64, 65, 200]), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    heads, dim = (2 * group, 2), 8 * draw(st.integers(1, 17))
    layout = BlockLayout(rows - 1, 1, 0)
    q, k, v, k_cache, v_cache, table, packed, *_ = inputs(layout, prefixes, generator, heads, dim)
    tensors = [t.to(dtype) for t in (q, k, v, k_cache, v_cache)]
    options = dict(window=draw(st.sampled_from([0, 0, 5, 64])))
    out, lse = poisoned(*q.shape, dtype=dtype), poisoned(*q.shape[:2], dtype=torch.float32)
    found = attend(*tensors, table, packed, out=out, lse=lse, backend="cpp", **options)
    expected_lse = torch.empty_like(lse)
    wide = [t.float() for t in tensors]
    expected = attend(*wide, table, packed, lse=expected_lse, backend="reference", **options)
    assert_close(found, expected, dtype, "out")
    finite = expected_lse.isfinite()
    assert torch.equal(finite, lse.isfinite())
    assert_close(lse[finite], expected_lse[finite], torch.float32, "lse", slack=8)


def alone(q, keys, values, position, key_position, exempt, window, causal_from, scale):
    """Plain attention of one row over a sequence: keys up to its own place, the window, and its
    exempt own block."""
    group = q.shape[0] // keys.shape[1]
    seen = [
        i
        for i in range(len(keys))
        if i < causal_from and (exempt[i] or not window or key_position[i] > position - window)
    ]
    out, lse = [], []
    for h in range(q.shape[0]):
        logits = torch.stack([q[h] @ keys[i, h // group] for i in seen]).double() * scale
        out.append(
            (logits.softmax(0)[:, None] * torch.stack([values[i, h // group] for i in seen])).sum(0)
        )
        lse.append(logits.logsumexp(0))
    return torch.stack(out), torch.stack(lse)


def brute_force(q, k, v, rows, past_k, past_v, window, scale, layout):
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -torch.inf)
    for b in range(len(rows.prefix_lens)):
        n, D, first = int(rows.prefix_lens[b]), int(rows.draft_len[b]), int(rows.cu_rows[b])
        for i in range(D + 1):  # the verify rows are a causal sequence
            keys, values = (
                torch.cat([past_k[b], k[first : first + i + 1]]),
                torch.cat([past_v[b], v[first : first + i + 1]]),
            )
            at = list(range(n + i + 1))
            out[first + i], lse[first + i] = alone(
                q[first + i], keys, values, n + i, at, [False] * len(at), window, len(at), scale
            )
        for j, c in enumerate(rows.branch[b].tolist()):
            if c < 0:
                continue
            block = slice(first + layout.V + j * layout.M, first + layout.V + (j + 1) * layout.M)
            keys = torch.cat([past_k[b], k[first : first + c], k[block]])
            values = torch.cat([past_v[b], v[first : first + c], v[block]])
            at = list(range(n + c + layout.M))
            exempt = [p >= n + c for p in at]
            for i in range(layout.M):
                stop = len(at) if layout.bidirectional else n + c + i + 1
                r = block.start + i
                out[r], lse[r] = alone(
                    q[r], keys, values, n + c + i, at, exempt, window, stop, scale
                )
    return out, lse


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [0, 1, 6])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_proposal_is_its_branch_run_alone(name, window, backend):
    layout = LAYOUTS[name]
    generator = torch.Generator().manual_seed(window)
    q, k, v, k_cache, v_cache, table, rows, past_k, past_v = inputs(
        layout, [0, 5, 16, 1], generator
    )
    out, lse = poisoned(*q.shape, dtype=torch.float32), poisoned(*q.shape[:2], dtype=torch.float32)
    attend(
        q,
        k,
        v,
        k_cache,
        v_cache,
        table,
        rows,
        scale=0.3,
        window=window,
        out=out,
        lse=lse,
        backend=backend,
    )
    expected = brute_force(q, k, v, rows, past_k, past_v, window, 0.3, layout)
    assert_close(out, expected[0])
    assert_close(lse, expected[1], name="lse", unit=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dead_rows_may_hold_anything(backend):
    layout = BlockLayout(4, 3, 2)
    q, k, v, k_cache, v_cache, table, rows, *_ = inputs(
        layout, [9, 0], torch.Generator().manual_seed(4), dead=0.5
    )
    clean = attend(q, k, v, k_cache, v_cache, table, rows, backend=backend)
    dead = ~rows.table(len(q)).live
    assert 0 < dead.sum() < len(q)
    for t in (q, k, v):
        t[dead] = torch.nan
    out = poisoned(*q.shape, dtype=torch.float32)
    attend(q, k, v, k_cache, v_cache, table, rows, out=out, backend=backend)
    assert torch.equal(out, clean) and (out[dead] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_equal_the_whole(backend):
    generator = torch.Generator().manual_seed(2)
    k, v = torch.randn(20, 2, 16, generator=generator), torch.randn(20, 2, 16, generator=generator)
    q = torch.randn(20, 4, 16, generator=generator)
    zero = torch.zeros(1, dtype=torch.int32)
    whole = ops.block_attention(q, k, v, None, None, None, Rows.prefill(zero, [20], 0))
    k_cache, table = random_pages([k[:13]], [13], 8, torch.Generator().manual_seed(1))
    v_cache, _ = random_pages([v[:13]], [13], 8, torch.Generator().manual_seed(1))
    rows = Rows.prefill(zero + 13, [7], 13)
    assert_close(
        attend(q[13:], k[13:], v[13:], k_cache, v_cache, table, rows, backend=backend), whole[13:]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_strided_rows(dtype, backend):
    generator = torch.Generator().manual_seed(3)
    q, k, v, k_cache, v_cache, table, rows, *_ = inputs(LAYOUTS["small"], [9, 3], generator)
    expected = ops.block_attention(
        q.to(dtype).float(),
        k.to(dtype).float(),
        v.to(dtype).float(),
        k_cache.to(dtype).float(),
        v_cache.to(dtype).float(),
        table,
        rows,
        backend="reference",
    )
    wide = torch.cat([q, k, v], 1).to(dtype)
    q, k, v = wide.split([4, 2, 2], 1)
    out = poisoned(*q.shape, dtype=dtype)
    attend(q, k, v, k_cache.to(dtype), v_cache.to(dtype), table, rows, out=out, backend=backend)
    assert_close(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [0, 9])
def test_chunks_of_unequal_length(window, backend):
    """Several row tiles, a request without rows, one without a prefix."""
    generator = torch.Generator().manual_seed(6)
    prefixes, lengths = [3, 0, 70, 9], [0, 75, 7, 1]
    past = [torch.randn(n, 1, 16, generator=generator) for n in prefixes]
    k_cache, table = random_pages(past, prefixes, 8, torch.Generator().manual_seed(1))
    rows = Rows.prefill(torch.tensor(prefixes, dtype=torch.int32), lengths, max(prefixes))
    q, k, v = (torch.randn(sum(lengths), heads, 16, generator=generator) for heads in (4, 1, 1))
    out, lse = poisoned(*q.shape, dtype=torch.float32), poisoned(*q.shape[:2], dtype=torch.float32)
    attend(q, k, v, k_cache, k_cache, table, rows, window=window, out=out, lse=lse, backend=backend)
    expected_lse = torch.empty_like(lse)
    assert_close(
        out,
        ops.block_attention(
            q,
            k,
            v,
            k_cache,
            k_cache,
            table,
            rows,
            window=window,
            lse=expected_lse,
            backend="reference",
        ),
    )
    assert_close(lse, expected_lse, name="lse", unit=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_of_more_than_two_to_the_31_elements(backend):
    """Pages 0 and the last; those between are never touched, so that they take no memory on a
    CPU."""
    generator = torch.Generator().manual_seed(7)
    cache = torch.empty(
        2**22 + 5,
        8,
        1,
        64,
        dtype=torch.float16,
        device="cpu" if backend != "triton" or env.triton_interpreter() else "cuda",
    )
    for page in (0, -1):
        cache[page] = torch.randn(8, 1, 64, generator=generator)
    table = torch.tensor([[len(cache) - 1, 0]], dtype=torch.int32)
    rows = Rows.prefill(torch.tensor([13], dtype=torch.int32), [3], 13)
    q, k, v = (torch.randn(3, 1, 64, generator=generator).half() for _ in range(3))
    expected = ops.block_attention(
        q, k, v, *[cache[[0, -1]].cpu()] * 2, table.clamp(max=1), rows, backend="reference"
    )
    assert_close(attend(q, k, v, cache, cache, table, rows, backend=backend), expected)


SLOW = env.triton_interpreter()  # some milliseconds a program


@st.composite
def cases(draw):
    K = draw(st.integers(0, 5 if SLOW else 16))
    edges = [0, 7, 8, 9, 15, 16, 17, 31, 33, 64] if SLOW else [0, 7, 8, 9, 95, 96, 97, 192, 300]
    return dict(
        layout=BlockLayout(
            K,
            draw(st.integers(1, 5 if SLOW else 17)),
            draw(st.integers(0, K + 1)),
            draw(st.booleans()),
        ),
        prefixes=draw(
            st.lists(
                st.one_of(st.integers(0, 40), st.sampled_from(edges)),
                min_size=1,
                max_size=2 if SLOW else 9,
            )
        ),
        kv_heads=draw(st.sampled_from([1, 2])),
        group=draw(st.sampled_from([1, 2, 3, 4, 8])),
        dim=draw(st.sampled_from([8, 24, 64] if SLOW else [64, 128])),
        page=draw(st.sampled_from([8, 16, 64])),
        window=draw(st.one_of(st.just(0), st.integers(1, 40 if SLOW else 120))),
        dtype=draw(st.sampled_from([torch.float32, torch.float16] + [torch.bfloat16] * (not SLOW))),
        strided=draw(st.booleans()),
        dead=draw(st.sampled_from([0.0, 0.3, 1.0])),
        seed=draw(st.integers(0, 2**31)),
    )


def agree_with_the_reference(case, backend):
    generator = torch.Generator().manual_seed(case["seed"])
    q, k, v, k_cache, v_cache, table, rows, *_ = inputs(
        case["layout"],
        case["prefixes"],
        generator,
        (case["kv_heads"] * case["group"], case["kv_heads"]),
        case["dim"],
        case["page"],
        case["dead"],
    )
    dtype = case["dtype"]
    q, k, v, k_cache, v_cache = (t.to(dtype) for t in (q, k, v, k_cache, v_cache))
    if case["strided"]:
        q, k, v = torch.cat([q, k, v], 1).split([q.shape[1], k.shape[1], v.shape[1]], 1)
        k_cache = torch.cat([k_cache, v_cache], 2)[:, :, : case["kv_heads"]]
    outs = {}
    for name in ("reference", backend):
        out, lse = (
            poisoned(*q.shape, dtype=torch.float32 if name == "reference" else dtype),
            poisoned(*q.shape[:2], dtype=torch.float32),
        )
        wide = [t.float() if name == "reference" else t for t in (q, k, v, k_cache, v_cache)]
        attend(*wide, table, rows, window=case["window"], out=out, lse=lse, backend=name)
        outs[name] = out, lse
    assert_close(outs[backend][0], outs["reference"][0])
    assert_close(outs[backend][1], outs["reference"][1], name="lse", unit=1)


FAST = [name for name in BACKENDS if name != "reference"]


@pytest.mark.parametrize("backend", FAST)
@settings(
    max_examples=30 if SLOW else 250,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(case=cases())
def test_fuzz(case, backend):
    agree_with_the_reference(case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_fuzz_at_length(case, backend):
    agree_with_the_reference(case, backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "layout",
    [BlockLayout(4, 5, 6) if SLOW else BlockLayout.tidar(16, P=3), BlockLayout.autoregressive()],
    ids=["drafts", "plain"],
)
def test_same_bits_alone_in_a_batch_and_with_any_threads(layout, backend):
    """Prefixes on both sides of the split length; each request alone, in a batch, again, and with
    other thread counts."""
    split = sys.modules["blockdraft.ops.block_attention"].chunk_keys(torch.device("cpu"))
    if not SLOW and layout.P:
        split *= 4  # chunks of many columns are longer
    prefixes = [split, 2 * split + split // 5, 5, 0, split + 1]
    q, k, v, k_cache, v_cache, table, rows, *_ = inputs(
        layout, prefixes, torch.Generator().manual_seed(0), (4, 2) if SLOW else (8, 2), 64, 16
    )

    def run(pick):
        span = slice(pick[0] * layout.rows, (pick[-1] + 1) * layout.rows)
        own = layout.pack(
            rows.prefix_lens[pick],
            rows.draft_len[pick],
            rows.branch[pick],
            max(prefixes[b] for b in pick),
        )
        lse = torch.empty(len(pick) * layout.rows, q.shape[1])
        return attend(
            q[span], k[span], v[span], k_cache, v_cache, table[pick], own, lse=lse, backend=backend
        ), lse

    whole = run([0, 1, 2, 3, 4])
    threads = torch.get_num_threads()
    try:
        for count in (1,) if SLOW else (1, 2, 3):
            torch.set_num_threads(count)
            for a, b in zip(run([0, 1, 2, 3, 4]), whole):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
    for b in range(5):
        for alone, batch in zip(run([b]), whole):
            assert torch.equal(alone, batch[b * layout.rows : (b + 1) * layout.rows])
    expected = ops.block_attention(q, k, v, k_cache, v_cache, table, rows, backend="reference")
    assert_close(whole[0], expected)
