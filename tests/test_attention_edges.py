"""block_attention where numbers or memory are unusual: huge windows, scores of any size, outputs
that share memory, autocast, dynamic shapes."""

import pytest
import torch

from blockdraft import BlockLayout, Rows, ops
from blockdraft.testing import assert_close, random_rows

BACKENDS = ["reference", "cpp"]


def prefill(rows, scale=1.0, heads=2, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, n, dim, generator=generator) for n in (heads, 1, 1))
    packed = Rows.prefill(torch.zeros(1, dtype=torch.int32), [rows], 0)
    return (scale * q, scale * k, v, None, None, None, packed)


def attend(case, backend, **options):
    lse = torch.full(case[0].shape[:2], torch.nan)
    return ops.block_attention(*case, lse=lse, backend=backend, **options), lse


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [2**31 - 1, 2**31, 2**32 + 1, 2**62])
def test_a_window_wider_than_any_prefix_hides_nothing(window, backend):
    case = prefill(20)
    for found, expected in zip(attend(case, backend, window=window), attend(case, "reference")):
        assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_below_any_sentinel(backend):
    """Every score is about -1e36: the softmax sees only their differences."""
    q, k, v, *rest = prefill(12)
    q, k = torch.full_like(q, 1e18), torch.full_like(k, -1e17)
    out, lse = attend((q, k, v, *rest), backend)
    expected = torch.stack([v[: i + 1].mean(0) for i in range(12)]).expand_as(out)
    assert_close(out, expected)
    assert (lse < -1e35).all() and lse.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_live_row_whose_scores_are_all_minus_infinity_is_zero(backend):
    q, k, v, *rest = prefill(12)
    q, k = q.abs(), k.abs()
    k[:, :, 0] = -torch.inf
    out, lse = attend((q, k, v, *rest), backend)
    assert (out == 0).all() and (lse == -torch.inf).all()


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_an_output_that_shares_memory_is_refused(name):
    case = prefill(12, heads=1)
    given = dict(zip("qkv", case))[name]
    with pytest.raises(ValueError, match=f"out: expected memory apart from {name}'s"):
        ops.block_attention(*case, out=given)
    with pytest.raises(ValueError, match="out: expected memory for every element"):
        ops.block_attention(*case, out=torch.empty(1, 1, 8).expand(12, 1, 8))


def test_an_empty_input_shares_no_memory():
    """A cache of no pages, whose address lies in the output."""
    q, k, v, *_, rows = prefill(12, heads=1)
    out = torch.empty_like(q)
    nothing = out.view(-1)[8:8].view(0, 8, 1, 8)
    table = torch.zeros(1, 0, dtype=torch.int32)
    expected = ops.block_attention(q, k, v, None, None, None, rows)
    assert torch.equal(
        ops.block_attention(q, k, v, nothing, nothing, table, rows, out=out), expected
    )


def test_an_output_beside_its_inputs_in_packed_rows_is_taken():
    """Columns of the same rows share a storage, but no element."""
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(12, 5, 8, generator=generator)
    q, k, v, out = packed.split([2, 1, 1, 1], 1)
    out = torch.cat([out, out], 1)  # elsewhere
    wide = torch.randn(12, 6, 8, generator=generator)
    q, k, v, mine = wide.split([2, 1, 1, 2], 1)
    rows = prefill(12)[6]
    expected = ops.block_attention(*(t.clone() for t in (q, k, v)), None, None, None, rows)
    assert torch.equal(ops.block_attention(q, k, v, None, None, None, rows, out=mine), expected)


def test_dynamic_shapes_compile_without_a_graph_break():
    def step(q, k, v, rows):
        return ops.block_attention(q, k, v, None, None, None, rows) * 2

    compiled = torch.compile(step, dynamic=True, fullgraph=True, backend="aot_eager")
    for rows in (5, 9):
        q, k, v, _, _, _, packed = prefill(rows)
        assert torch.equal(compiled(q, k, v, packed), step(q, k, v, packed))


def test_autocast_changes_no_reference():
    """It would compute fp32 inputs in bf16."""
    generator = torch.Generator().manual_seed(0)
    x, gate_up, down = (
        torch.randn(shape, generator=generator) for shape in ((6, 32), (2, 64, 32), (2, 32, 32))
    )
    experts = torch.tensor([[0], [1], [-1], [0], [1], [1]], dtype=torch.int32)
    weights = torch.ones(6, 1)
    case = prefill(12)

    def both():
        moe = ops.fused_moe(x, experts, weights, gate_up, down, backend="reference")
        return moe, ops.block_attention(*case, backend="reference")

    plain = both()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = both()
    assert all(torch.equal(a, b) for a, b in zip(plain, under))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unequal_long_prefixes(backend):
    """A shorter prefix with more splits than the longest, at the CPU's own split length."""
    generator = torch.Generator().manual_seed(1)
    prefixes, page = [140_000, 100_000], 64
    layout = BlockLayout.tidar(2, P=1)
    rows = random_rows(layout, prefixes, generator)
    total = int(rows.cu_rows[-1])
    q, k, v = (torch.randn(total, n, 8, generator=generator) for n in (1, 1, 1))
    cache = torch.randn(64, page, 1, 8, generator=generator)
    table = torch.randint(0, 64, (2, -(-prefixes[0] // page)), dtype=torch.int32)
    case = (q, k, v, cache, cache, table, rows)
    shape = ops.block_attention_workspace(q, rows)
    workspace = torch.full(shape, torch.nan)
    options = dict(workspace=workspace) if backend == "cpp" else {}
    out = ops.block_attention(*case, backend=backend, **options)
    assert_close(out, ops.block_attention(*case, backend="reference"), slack=10)
