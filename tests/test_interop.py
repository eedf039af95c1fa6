"""The ops on arrays of other frameworks: the same memory, the same bits as on torch's tensors."""

import numpy as np
import pytest
import torch

from blockdraft import Rows, ops
from blockdraft.interop import array, tensor
from blockdraft.interop import ops as array_ops


def numpy_kind():
    return np.asarray, lambda a: a.ctypes.data


def jax_kind():
    jnp = pytest.importorskip("jax.numpy", reason="JAX is not installed")
    return jnp.asarray, lambda a: a.unsafe_buffer_pointer()


KINDS = {"numpy": numpy_kind, "jax": jax_kind}


def moe(make):
    """Arguments of fused_moe."""
    generator = np.random.default_rng(3)
    x, gate_up, down = (
        generator.standard_normal(shape).astype(np.float32) / 4
        for shape in ((5, 16), (3, 16, 16), (3, 16, 8))
    )
    experts = np.array([[0], [2], [-1], [2], [1]], dtype=np.int32)
    weights = generator.random((5, 1)).astype(np.float32)
    return [make(a) for a in (x, experts, weights, gate_up, down)]


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_of_the_same_kind(kind):
    make, _ = KINDS[kind]()
    given = moe(make)
    got = array_ops.fused_moe(*given)
    expected = ops.fused_moe(*map(tensor, given))
    assert type(got) is type(given[0])
    assert np.array_equal(np.asarray(got), expected.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_copied(kind):
    make, pointer = KINDS[kind]()
    x = moe(make)[0]
    t = tensor(x)
    assert t.data_ptr() == pointer(x)
    assert pointer(array(t, like=x)) == pointer(x)
    result = torch.randn(64, 16)  # as an op returns it
    assert pointer(array(result, like=x)) == result.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_arrays_and_several_results(kind):
    make, _ = KINDS[kind]()
    generator = np.random.default_rng(5)
    q, k, v = (
        make(generator.standard_normal((6, heads, 16)).astype(np.float32)) for heads in (4, 2, 2)
    )
    lengths = Rows.prefill(torch.zeros(2, dtype=torch.int32), [4, 2], 0)
    rows = Rows(
        make(lengths.cu_rows.numpy()), make(lengths.prefix_lens.numpy()),
        make(lengths.draft_len.numpy()), make(lengths.branch.numpy()), 1, True, 4, 0,
    )  # fmt: skip
    got = array_ops.block_attention(q, k, v, None, None, None, rows)
    expected = ops.block_attention(*map(tensor, (q, k, v)), None, None, None, lengths)
    assert np.array_equal(np.asarray(got), expected.numpy())
    order, offsets = array_ops.moe_dispatch(make(np.array([[1], [0], [1]], dtype=np.int32)), 2)
    assert np.asarray(order).tolist() == [1, 0, 2] and np.asarray(offsets).tolist() == [0, 1, 3]


def test_what_is_written_must_be_writable():
    given = moe(np.asarray)
    out = np.full((5, 16), np.nan, dtype=np.float32)
    assert np.array_equal(array_ops.fused_moe(*given, out=out), out)
    assert np.isfinite(out).all()
    out.flags.writeable = False
    before = out.copy()
    given[0] = given[0] + 1
    with pytest.raises(TypeError, match="fused_moe: out: .* read-only ndarray"):
        array_ops.fused_moe(*given, out=out)
    assert np.array_equal(before, out)


def test_jax_arrays_are_not_written():
    make, _ = jax_kind()
    given = moe(make)
    with pytest.raises(TypeError, match="fused_moe: out: .* read-only ArrayImpl"):
        array_ops.fused_moe(*given, out=make(np.zeros((5, 16), dtype=np.float32)))


def test_torch_tensors_stay():
    given = list(map(tensor, moe(np.asarray)))
    assert array_ops.fused_moe(*given) is not None
    out = torch.empty(5, 16)
    assert array_ops.fused_moe(*given, out=out) is out
