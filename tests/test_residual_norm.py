"""residual_norm: every backend against the reference, and what its bits may not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import device_of, rows_apart

from blockdraft import env, ops
from blockdraft.registry import OPS
from blockdraft.testing import assert_close, poisoned

BACKENDS = [name for name in OPS["residual_norm"].backends if name != "reference"]
EPS = 1e-5
SLOW = env.triton_interpreter()
SCALES = ("scale", "bias", "residual_scale", "residual_bias")
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (not SLOW)


def case(rows, hidden, dtype, options=SCALES + ("residual",), read=None, seed=0, device="cpu"):
    """x, weight, and the optional tensors by name. `read`: how many rows are taken, any of them
    perhaps twice."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    x, weight = randn(rows, hidden).to(dtype), randn(hidden).to(dtype)
    given = {name: randn(hidden).to(dtype) for name in SCALES if name in options}
    if "residual" in options:
        given["residual"] = randn(rows, hidden)
    if read is not None:
        given["index"] = torch.randint(rows, (read,), generator=generator).int()
    return x.to(device), weight.to(device), {name: t.to(device) for name, t in given.items()}


def compare(x, weight, given, backend, spread=False):
    expected, expected_stream = ops.residual_norm(x, weight, EPS, **given, backend="reference")
    out = poisoned(*expected.shape, dtype=x.dtype, device=x.device)
    stream = poisoned(*expected.shape, dtype=torch.float32, device=x.device)
    if spread:
        out, stream, x = rows_apart(out), rows_apart(stream), rows_apart(x)
    ops.residual_norm(x, weight, EPS, **given, out=(out, stream), backend=backend)
    assert_close(out, expected, x.dtype, "out")
    assert_close(stream, expected_stream, torch.float32, "stream")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 1, 7] if SLOW else [0, 1, 7, 300])
def test_equals_the_reference(rows, backend, dtype):
    compare(*case(rows, 2048, dtype, device=device_of(backend)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8 if SLOW else 100, deadline=None, derandomize=True)
@given(data=st.data())
def test_fuzz(backend, data):
    draw = data.draw
    names = st.sets(st.sampled_from(SCALES + ("residual",)))
    tensors = case(
        rows=draw(st.integers(1, 40)),
        hidden=8 * draw(st.integers(1, 70)),
        dtype=draw(st.sampled_from(DTYPES)),
        options=draw(names),
        read=draw(st.none() | st.integers(0, 40)),
        seed=draw(st.integers(0, 1000)),
        device=device_of(backend),
    )
    compare(*tensors, backend, spread=draw(st.booleans()))


@pytest.mark.parametrize("backend", list(OPS["residual_norm"].backends))
def test_the_stream_in_place(backend):
    x, weight, given = case(9, 64, torch.float32, device=device_of(backend))
    expected, stream = ops.residual_norm(x, weight, EPS, **given, backend="reference")
    out = torch.empty_like(x), given["residual"]
    ops.residual_norm(x, weight, EPS, **given, out=out, backend=backend)
    assert_close(out[0], expected, x.dtype)
    assert_close(out[1], stream, torch.float32)
    alone = ops.residual_norm(x, weight, EPS, with_stream=False, backend=backend)
    assert alone[0].shape == x.shape and alone[1] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_row(backend):
    x, weight, given = case(6, 64, torch.float32, device=device_of(backend))
    clean, _ = ops.residual_norm(x, weight, EPS, **given, backend=backend)
    x[2, 5] = torch.nan
    found, _ = ops.residual_norm(x, weight, EPS, **given, backend=backend)
    others = torch.arange(6, device=x.device) != 2
    assert torch.equal(found[others], clean[others]) and found[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_s_bits_do_not_depend_on_the_others(dtype):
    x, weight, given = case(300, 1032, dtype)
    every, _ = ops.residual_norm(x, weight, EPS, **given, backend="cpp")
    index = torch.tensor([250, 3, 3], dtype=torch.int32)
    some, _ = ops.residual_norm(x, weight, EPS, **given, index=index, backend="cpp")
    assert torch.equal(some, every[index.long()])


def test_bad_arguments():
    x, weight, given = case(3, 16, torch.bfloat16)
    with pytest.raises(ValueError, match=r"index: expected 0 \.\. 2, got 3"):
        index = torch.tensor([3], dtype=torch.int32)
        ops.residual_norm(x, weight, EPS, **given, index=index)
    with pytest.raises(ValueError, match=r"out\[1\]: expected memory apart from residual's"):
        index = torch.tensor([1, 0, 2], dtype=torch.int32)
        ops.residual_norm(x, weight, EPS, **given, index=index, out=(x.clone(), given["residual"]))
    with pytest.raises(ValueError, match="out: expected memory apart from scale's"):
        wide = torch.ones(3, 16, dtype=torch.bfloat16)
        ops.residual_norm(x, weight, EPS, scale=wide[0], out=(wide, None))
    with pytest.raises(ValueError, match="weight is torch.bfloat16, as x is, not torch.float32"):
        ops.residual_norm(x, weight.float(), EPS, backend="cpp")
    x, weight, _ = case(3, 12, torch.float32)
    with pytest.raises(ValueError, match="the hidden size is a multiple of 8, not 12"):
        ops.residual_norm(x, weight, EPS, backend="cpp")
    assert ops.residual_norm(x, weight, EPS)[0].shape == (3, 12)  # the reference takes it
