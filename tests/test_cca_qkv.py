"""Convolution parents: every proposal is convolved as if its branch were run alone; state, commit
and cache writes."""

import pytest
import torch

from blockdraft import BlockLayout, Rows, ops
from blockdraft.testing import assert_close, poisoned, random_rows

HQ, HK, DH, PAGE = 4, 2, 8, 8
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
        cos_sin=randn(128, 6),
    )


def sequence(x, w, late_start):
    """cca_qkv of whole sequences from nothing, as a prefill of one request."""
    rows = Rows.prefill(torch.zeros(1, dtype=torch.int32), [len(x)], 0)
    return ops.cca_qkv(*x.split([C, HALF, HALF], 1), *w.values(), rows, late_start=late_start)


@pytest.mark.parametrize("kernels", [(2, 2), (3, 2), (1, 4), (2, 1)])
@pytest.mark.parametrize(
    "layout", [BlockLayout.tidar(16, P=3), BlockLayout.zyphra(16, P=2), BlockLayout(1, 2, 3)]
)
def test_each_proposal_is_its_branch_run_alone(layout, kernels):
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


def test_no_slot_starts_from_nothing_and_commit_continues():
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
            got = ops.cca_qkv(
                qk, v_now, v_late, *w.values(), rows, conv_state[layer], late_state[layer], slots
            )
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
