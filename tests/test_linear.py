"""linear: the C++ kernel against torch in fp32, and what its bits may not depend on."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from blockdraft import ops
from blockdraft.testing import assert_close, poisoned

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def case(rows, inputs, outputs, dtype, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    weight = randn(outputs, inputs, scale=max(inputs, 1) ** -0.5)
    return randn(rows, inputs), weight, randn(outputs) if bias else None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_fuzz(data):
    draw = data.draw
    dtype = draw(st.sampled_from(DTYPES))
    x, weight, bias = case(
        draw(st.integers(0, 70)),
        draw(st.integers(1, 1100)),
        draw(st.integers(1, 300)),
        dtype,
        draw(st.booleans()),
        draw(st.integers(0, 100)),
    )
    out = poisoned(len(x), len(weight), dtype=dtype)
    ops.linear(x, weight, bias, out=out, backend="cpp")
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert_close(out, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_apart_and_bits(dtype):
    x, weight, bias = case(100, 1300, 200, dtype)
    every = ops.linear(x, weight, bias, backend="cpp")
    wide_x, wide_out = (poisoned(100, n + 8, dtype=dtype) for n in (1300, 200))
    wide_x[:, :1300] = x
    ops.linear(wide_x[:, :1300], weight, bias, out=wide_out[:, :200], backend="cpp")
    assert torch.equal(wide_out[:, :200], every) and wide_out[:, 200:].isnan().all()
    for first, last in ((0, 1), (30, 47), (20, 100)):
        assert torch.equal(
            ops.linear(x[first:last], weight, bias, backend="cpp"), every[first:last]
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_depths_that_are_staged_in_parts(dtype):
    x, weight, bias = case(96, 4108, 20, dtype)
    every = ops.linear(x, weight, bias, backend="cpp")
    assert_close(every, F.linear(x.float(), weight.float(), bias.float()), dtype)
    assert torch.equal(ops.linear(x[5:6], weight, bias, backend="cpp"), every[5:6])


def test_no_inputs():
    x, weight, bias = case(3, 0, 5, torch.float32)
    ops.linear(*case(3, 8, 5, torch.float32), backend="cpp")
    assert torch.equal(ops.linear(x, weight, bias, backend="cpp"), bias.expand(3, 5))


def test_the_choice_and_bad_arguments():
    x, weight, bias = case(3, 16, 8, torch.float32)
    assert torch.equal(ops.linear(x, weight, bias), ops.linear(x, weight, bias, backend="cpp"))
    assert_close(ops.linear(x, weight, bias), F.linear(x, weight, bias), torch.float32)
    with pytest.raises(TypeError, match="linear: weight: expected float32, got bfloat16"):
        ops.linear(x, weight.bfloat16(), bias)
    with pytest.raises(ValueError, match=r"linear: bias: expected shape \[O\]"):
        ops.linear(x, weight, bias[:4])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiles_in_every_type(dtype):
    x, weight, bias = case(3, 16, 8, dtype)
    run = torch.compile(ops.linear, backend="eager", fullgraph=True)
    assert torch.equal(run(x, weight, bias), ops.linear(x, weight, bias))
