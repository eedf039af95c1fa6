"""Convolution parents: every proposal is convolved as if its branch were run alone; state, commit
and cache writes; every backend against the reference."""

import pytest
import torch
from cca import PAGE, assert_same, case, expected, prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import device_of

from blockdraft import BlockLayout, Rows, env, ops
from blockdraft.registry import OPS
from blockdraft.testing import assert_close, poisoned, random_rows

EVERY = list(OPS["cca_qkv"].backends)
BACKENDS = [name for name in EVERY if name != "reference"]
SLOW = env.triton_interpreter()
HQ, HK, DH = 4, 2, 16
C, HALF = (HQ + HK) * DH, HK * DH // 2


def weights(generator, kernels):
    def randn(*shape):
        return torch.randn(shape, generator=generator)

    return dict(
        conv0_weight=randn(C, 1, kernels[0]),
        conv0_bias=randn(C),
        conv1_weight=randn(C, DH, kernels[1]) / DH,
        conv1_bias=randn(C),
        temp=1 + 0.1 * randn(HK),
        cos_sin=randn(128, 8),
    )


def sequence(x, w, late_start):
    """cca_qkv of whole sequences from nothing, as a prefill of one request."""
    rows = Rows.prefill(torch.zeros(1, dtype=torch.int32), [len(x)], 0)
    return ops.cca_qkv(
        *x.split([C, HALF, HALF], 1),
        *w.values(),
        rows,
        late_start=late_start,
        backend="reference",
    )


CPU = [name for name in EVERY if device_of(name) == "cpu"]


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("kernels", [(2, 2)] if SLOW else [(2, 2), (3, 2), (1, 4), (2, 1)])
@pytest.mark.parametrize(
    "layout",
    [BlockLayout.tidar(16, P=3), BlockLayout.zyphra(16, P=2), BlockLayout(1, 2, 3)][2 * SLOW :],
)
def test_each_proposal_is_its_branch_run_alone(layout, kernels, backend):
    generator = torch.Generator().manual_seed(sum(kernels))
    w, late_start = weights(generator, kernels), torch.randn(HALF, generator=generator)
    depth, prefixes = sum(kernels) - 2, [0, 1, 7, 2]
    past = [torch.randn(n, C + 2 * HALF, generator=generator) for n in prefixes]
    rows = random_rows(layout, prefixes, generator)
    now = torch.randn(int(rows.cu_rows[-1]), C + 2 * HALF, generator=generator)

    # state as commit leaves it, in shuffled slots; request 0 has no prefix, so what is stored must
    # not matter
    conv_state, late_state = (
        torch.randn(6, depth, C, generator=generator),
        torch.randn(6, HALF, generator=generator),
    )
    slots = torch.tensor([4, 0, 5, 2], dtype=torch.int32)
    for b, tokens in enumerate(past):
        if len(tokens):
            padded = torch.cat([torch.zeros(depth, C), tokens[:, :C]])
            conv_state[slots[b]] = padded[len(padded) - depth :]
            late_state[slots[b]] = tokens[-1, -HALF:]
    pages = 16
    k_cache, v_cache = (
        poisoned(pages, PAGE, HK, DH, dtype=torch.float32),
        poisoned(pages, PAGE, HK, DH, dtype=torch.float32),
    )
    table = torch.randperm(pages, generator=generator).int().reshape(4, 4)
    out = tuple(poisoned(len(now), heads, DH, dtype=torch.float32) for heads in (HQ, HK, HK))
    q, k, v = ops.cca_qkv(
        *now.split([C, HALF, HALF], 1),
        *w.values(),
        rows,
        conv_state,
        late_state,
        slots,
        k_cache,
        v_cache,
        table,
        late_start=late_start,
        out=out,
        backend=backend,
    )

    written = set()
    for b, n in enumerate(prefixes):
        first, D = int(rows.cu_rows[b]), int(rows.draft_len[b])
        verify = now[first : first + D + 1]
        expected = [x[n:] for x in sequence(torch.cat([past[b], verify]), w, late_start)]
        for got, want in zip((q, k, v), expected):
            assert_close(got[first : first + D + 1], want)
            assert (got[first + D + 1 : first + layout.V] == 0).all()
        for i in range(D + 1):
            place = (int(table[b, (n + i) // PAGE]), (n + i) % PAGE)
            written.add(place)
            assert torch.equal(k_cache[place], k[first + i]) and torch.equal(
                v_cache[place], v[first + i]
            )
        for j, c in enumerate(rows.branch[b].tolist()):
            block = slice(first + layout.V + j * layout.M, first + layout.V + (j + 1) * layout.M)
            if c < 0:
                assert all((x[block] == 0).all() for x in (q, k, v))
                continue
            expected = sequence(torch.cat([past[b], verify[:c], now[block]]), w, late_start)
            for got, want in zip((q, k, v), expected):
                assert_close(got[block], want[n + c :])
    assert int((~k_cache.isnan()).all(-1).all(-1).sum()) == len(written)


@pytest.mark.parametrize("backend", CPU)
def test_no_slot_starts_from_nothing_and_commit_continues(backend):
    generator = torch.Generator().manual_seed(5)
    w = weights(generator, (2, 3))
    x = torch.randn(9, C + 2 * HALF, generator=generator)
    whole = sequence(x, w, None)
    layers, depth = 2, 3
    conv_state, late_state = (
        torch.full((layers, 1, depth, C), torch.nan),
        torch.full((layers, 1, HALF), torch.nan),
    )
    slots = torch.zeros(1, dtype=torch.int32)
    prefix = torch.zeros(1, dtype=torch.int32)
    done = 0
    # of `length` verify rows, `keep` are committed
    for length, keep in ((1, 1), (4, 2), (3, 3), (5, 1), (2, 2)):
        rows = Rows.prefill(prefix, [length], 16)
        now = torch.cat([x, torch.randn(8, C + 2 * HALF, generator=generator)])[
            done : done + length
        ]
        qk, v_now, v_late = now.split([C, HALF, HALF], 1)
        for layer in range(layers):
            state = conv_state[layer], late_state[layer], slots
            got = ops.cca_qkv(qk, v_now, v_late, *w.values(), rows, *state, backend=backend)
            for ours, want in zip(got, whole):
                assert_close(ours[:keep], want[done : done + keep])
        stack = now.expand(layers, -1, -1)
        ops.commit(
            stack[..., :C],
            stack[..., -HALF:],
            torch.tensor([keep - 1], dtype=torch.int32),
            rows,
            conv_state,
            late_state,
            slots,
        )
        done += keep
        assert prefix.item() == done
    frozen = conv_state.clone(), late_state.clone()
    ops.commit(
        stack[..., :C],
        stack[..., -HALF:],
        torch.tensor([-1], dtype=torch.int32),
        rows,
        conv_state,
        late_state,
        slots,
    )
    assert (
        prefix.item() == done
        and torch.equal(conv_state, frozen[0])
        and torch.equal(late_state, frozen[1])
    )


def compare(arguments, backend, **options):
    found, run = prepared(arguments, backend=backend, **options)
    run()
    assert_same(found, expected(arguments, **options))


SHAPES = [((8, 2, 128), (2, 2)), ((16, 2, 64), (3, 2)), ((4, 1, 128), (4, 1)), ((8, 2, 64), (1, 3))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads, kernels", SHAPES[:1] if SLOW else SHAPES, ids=str)
@pytest.mark.parametrize("norm_eps", [1e-12] if SLOW else [None, 1e-12])
def test_equals_the_reference(norm_eps, heads, kernels, backend, dtype):
    layout, device = BlockLayout.tidar(4 if SLOW else 16, P=3), device_of(backend)
    arguments = case(layout, [0, 1, 40, 7], heads, kernels, heads[2] // 2, dtype, device=device)
    compare(arguments, backend, norm_eps=norm_eps)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=5 if SLOW else 60, deadline=None, derandomize=True)
@given(data=st.data())
def test_fuzz(backend, data):
    draw = data.draw
    dtype = draw(st.sampled_from([torch.float32, torch.float16] + [torch.bfloat16] * (not SLOW)))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dim = 16 * draw(st.integers(1, 4))
    kernels = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    layout = BlockLayout(draw(st.integers(0, 6)), draw(st.integers(1, 6)), draw(st.integers(0, 3)))
    arguments = case(
        layout,
        draw(st.lists(st.integers(0, 30), min_size=1, max_size=5)),
        (kv_heads * group, kv_heads, dim),
        kernels,
        rotary=2 * draw(st.integers(1, dim // 2)),
        dtype=dtype,
        seed=draw(st.integers(0, 1000)),
        device=device_of(backend),
    )
    if draw(st.booleans()):
        arguments |= dict.fromkeys(("conv_state", "late_state", "slots", "late_start"))
    compare(arguments, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_request_s_bits_do_not_depend_on_the_others(dtype):
    """Alone, in a batch, in another place of it, by any threads; chunks of a prompt."""
    layout, lengths = BlockLayout.tidar(16, P=3), [0, 9, 40, 7, 3]
    arguments = case(layout, lengths, (8, 2, 64), (2, 2), 32, dtype)

    def run(requests):
        size, rows = layout.rows, arguments["rows"]
        own = torch.cat([torch.arange(size) + b * size for b in requests])
        index = torch.tensor(requests)
        packed = layout.pack(
            rows.prefix_lens[index], rows.draft_len[index], rows.branch[index], rows.max_prefix
        )
        some = {name: arguments[name][own] for name in ("qk", "v_now", "v_late")}
        some |= {name: arguments[name][index] for name in ("slots", "block_table")}
        return ops.cca_qkv(**arguments | some | dict(rows=packed), backend="cpp")

    every = run(range(5))
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        for mine, theirs in zip(run([3, 1]), every):
            mine, theirs = mine.view(2, layout.rows, -1), theirs.view(5, layout.rows, -1)
            assert torch.equal(mine[0], theirs[3]) and torch.equal(mine[1], theirs[1])
    torch.set_num_threads(threads)


def test_what_the_kernels_do_not_take():
    arguments = case(BlockLayout.tidar(4, P=1), [3], (4, 2, 16), (2, 2), 8, torch.bfloat16)

    def reason(match, **changes):
        with pytest.raises(ValueError, match=match):
            ops.cca_qkv(**arguments | changes, backend="cpp")

    reason("temp is torch.bfloat16, as qk is, not torch.float32", temp=torch.ones(2))
    reason("norm_eps: expected None or at least 0, got -1", norm_eps=-1.0)
    turned = arguments["conv1_weight"].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="contiguous"):
        ops.cca_qkv(**arguments | dict(conv1_weight=turned), backend="cpp")


def attend(q, k, v, positions, window, own=0):
    """Causal attention with a window by its definition; the last `own` rows see each other."""
    heads, dim = q.shape[1], q.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * dim**-0.5
    query, key = positions[-len(q) :, None], positions[None]
    seen = (key <= query) & (key > query - window)
    if own:
        seen[-own:, -own:] = True
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("window", [1, 3, 6, 9, 14])
def test_windows_that_straddle_proposals(window, backend):
    """The edge of each row's window, counted from its own position, lies in the prefix, among the
    verify rows, or at the proposal; convolution and attention together."""
    layout = BlockLayout(4, 5, 3)
    generator = torch.Generator().manual_seed(window)
    w, prefixes = weights(generator, (2, 2)), [0, 2, 11]
    past = [torch.randn(n, C + 2 * HALF, generator=generator) for n in prefixes]
    rows = random_rows(layout, prefixes, generator, dead=0)
    now = torch.randn(int(rows.cu_rows[-1]), C + 2 * HALF, generator=generator)
    pages = 3
    k_cache, v_cache = torch.zeros(2, len(prefixes) * pages, PAGE, HK, DH)
    table = torch.arange(len(prefixes) * pages).int().view(-1, pages)
    conv_state = torch.zeros(len(prefixes), 2, C)
    late_state = torch.zeros(len(prefixes), HALF)
    for b, tokens in enumerate(past):
        if not len(tokens):
            continue
        conv_state[b] = tokens[-2:, :C]
        late_state[b] = tokens[-1, -HALF:]
        _, k, v = sequence(tokens, w, None)
        k_cache.view(-1, HK, DH)[b * pages * PAGE :][: len(k)] = k
        v_cache.view(-1, HK, DH)[b * pages * PAGE :][: len(v)] = v
    state = conv_state, late_state, torch.arange(len(prefixes)).int()
    q, k, v = ops.cca_qkv(
        *now.split([C, HALF, HALF], 1),
        *w.values(),
        rows,
        *state,
        k_cache,
        v_cache,
        table,
        backend=backend,
    )
    out = ops.block_attention(
        q, k, v, k_cache, v_cache, table, rows, window=window, backend=backend
    )
    for b, n in enumerate(prefixes):
        first, D = int(rows.cu_rows[b]), int(rows.draft_len[b])
        verify = now[first : first + D + 1]
        whole = sequence(torch.cat([past[b], verify]), w, None)
        expected = attend(whole[0][n:], *whole[1:], torch.arange(n + D + 1), window)
        assert_close(out[first : first + D + 1], expected)
        for j, c in enumerate(rows.branch[b].tolist()):
            if c < 0:
                continue
            start = first + layout.V + j * layout.M
            block = slice(start, start + layout.M)
            whole = sequence(torch.cat([past[b], verify[:c], now[block]]), w, None)
            positions = torch.arange(n + c + layout.M)
            expected = attend(whole[0][n + c :], *whole[1:], positions, window, own=layout.M)
            assert_close(out[block], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_where_the_reference_has_it(backend):
    layout, device = BlockLayout.tidar(4, P=1), device_of(backend)
    arguments = case(layout, [3, 0], (4, 2, 16), (2, 2), 8, torch.float32, device=device)
    arguments["qk"][0, 70] = torch.nan  # a key's channel
    found = ops.cca_qkv(**arguments, backend=backend)
    right = ops.cca_qkv(**arguments, backend="reference")
    assert right[0].isnan().any() and not right[0].isnan().all()
    for mine, theirs in zip(found, right):
        assert torch.equal(mine.isnan(), theirs.isnan())


def test_an_odd_number_of_kv_channels():
    tensors = torch.zeros(2, 9), torch.zeros(2, 1), torch.zeros(2, 1)
    weights = torch.zeros(9, 1, 2), torch.zeros(9), torch.zeros(9, 3, 2), torch.zeros(9)
    rows = Rows.prefill(torch.zeros(1, dtype=torch.int32), [2], 0)
    with pytest.raises(ValueError, match="temp: expected an even number of KV channels"):
        ops.cca_qkv(*tensors, *weights, torch.ones(1), torch.zeros(4, 2), rows)
