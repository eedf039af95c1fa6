"""Experts in fp8 and MXFP4: every backend against the reference on the same numbers; each code,
each scale."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import device_of

from blockdraft import contract, env, ops
from blockdraft.models.quantize import quantize_fp8, quantize_mxfp4
from blockdraft.models.scaled import to_fnuz
from blockdraft.reference.dequantize import E2M1, dequantize
from blockdraft.registry import OPS
from blockdraft.testing import assert_close, poisoned

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
FORMATS = {
    "fn": partial(quantize_fp8, dtype=FN),
    "fnuz": partial(quantize_fp8, dtype=FNUZ),
    "mxfp4": quantize_mxfp4,
}
BACKENDS = [name for name in OPS["fused_moe"].backends if name != "reference"]
SLOW = env.triton_interpreter()
INTERPRETED = [name for name in FORMATS if name != "fnuz"]  # by Triton's interpreter
DTYPES = {"cpp": [torch.float32, torch.bfloat16, torch.float16], "triton": [torch.float32]}
ALL = [(backend, dtype) for backend in BACKENDS for dtype in DTYPES[backend]]
EVERY = [*BACKENDS, "reference"]


def formats(backend):
    return INTERPRETED if SLOW and backend == "triton" else list(FORMATS)


def case(rows, format, hidden, inner, dtype, seed=0, choices=1, experts=4, device="cpu"):
    """Arguments of fused_moe and its scales."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, hidden, generator=generator).to(dtype)
    chosen = torch.randint(-1, experts, (rows, choices), generator=generator).int()
    weights = 0.2 + 0.8 * torch.rand(rows, choices, generator=generator)
    first, second = (
        FORMATS[format](torch.randn(experts, n, k, generator=generator) * k**-0.5)
        for n, k in ((2 * inner, hidden), (hidden, inner))
    )
    tensors = tuple(t.to(device) for t in (x, chosen, weights, first[0], second[0]))
    return tensors, dict(gate_up_scale=first[1].to(device), down_scale=second[1].to(device))


def compare(tensors, scales, backend):
    expected = ops.fused_moe(*tensors, **scales, backend="reference")
    out = poisoned(*tensors[0].shape, dtype=tensors[0].dtype, device=tensors[0].device)
    ops.fused_moe(*tensors, **scales, out=out, backend=backend)
    # in 16 bits silu(gate) * up is rounded, too: two roundings, where the table counts one
    assert_close(out, expected, slack=1 if out.dtype == torch.float32 else 2)


@pytest.mark.parametrize(
    "backend, dtype, format", [(*pair, f) for pair in ALL for f in formats(pair[0])], ids=str
)
@pytest.mark.parametrize("rows", [5, 65] if SLOW else [0, 1, 5, 64, 65, 150])
def test_equals_the_reference(rows, format, backend, dtype):
    device = device_of(backend)
    compare(*case(rows, format, 288, 160, dtype, device=device), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=4 if SLOW else 60, deadline=None, derandomize=True)
@given(data=st.data())
def test_fuzz(backend, data):
    draw = data.draw
    format = draw(st.sampled_from(formats(backend)))
    unit = 32 if format == "mxfp4" else 8 if backend == "cpp" else 16
    tensors, scales = case(
        rows=draw(st.integers(1, 90)),
        format=format,
        hidden=unit * draw(st.integers(1, 40 if unit == 8 else 12)),
        inner=unit * draw(st.integers(1, 40 if unit == 8 else 12)),
        dtype=draw(st.sampled_from(DTYPES[backend])),
        seed=draw(st.integers(0, 1000)),
        choices=draw(st.integers(1, 3)),
        experts=draw(st.integers(1, 20)),
        device=device_of(backend),
    )
    compare(tensors, scales, backend)


def product(down, down_scale, backend, dtype=torch.float32):
    """down[0] [H,I] times ones, by an expert whose gate and up make ones of a row of ones."""
    hidden, inner = down.shape[1], 2 * down.shape[2] if "float4" in str(down.dtype) else None
    inner = inner or down.shape[2]
    device = device_of(backend)
    large = 64.0  # silu(64) is 64
    gate_up = torch.zeros(1, 2 * inner, hidden)
    gate_up[:, :inner, 0], gate_up[:, inner:, 0] = large, 1 / large
    first, scale = (
        quantize_mxfp4(gate_up)
        if "float4" in str(down.dtype)
        else quantize_fp8(gate_up, down.dtype)
    )
    x = torch.zeros(1, hidden, dtype=dtype)
    x[0, 0] = 1
    zero, one = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1)
    tensors = (t.to(device) for t in (x, zero, one, first, down))
    scales = dict(gate_up_scale=scale.to(device), down_scale=down_scale.to(device))
    return ops.fused_moe(*tensors, **scales, backend=backend)[0].cpu()


@pytest.mark.parametrize(
    "backend, dtype",
    [(b, d) for b in EVERY for f, d in (("fn", FN), ("fnuz", FNUZ)) if f in formats(b)],
    ids=str,
)
@pytest.mark.parametrize("scale", [1.0, 0.37, -2.0, 0.0])
def test_every_code_of_fp8(scale, dtype, backend):
    """Numbers, subnormal ones among them, both zeros and NaN: each alone in a channel. Triton's
    interpreter takes NaN for a number."""
    down = torch.zeros(1, 256, 32, dtype=torch.uint8)
    down[0, :, 5] = torch.arange(256)
    scales = torch.full((1, 2, 1), scale)
    found = product(down.view(dtype), scales, backend)
    expected = torch.arange(256).to(torch.uint8).view(dtype).float() * scale
    assert expected.isnan().sum() == (2 if dtype == FN else 1)
    if SLOW and backend == "triton":
        found = torch.where(expected.isnan(), torch.nan, found)
    assert torch.allclose(found, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", EVERY)
def test_every_code_and_scale_of_mxfp4(backend):
    """16 codes in either half of a byte; 256 scales, of which the last is NaN."""
    codes = torch.zeros(1, 32, 64, dtype=torch.uint8)
    for i in range(32):
        codes[0, i, 7 if i < 16 else 40] = i % 16
    for first in range(0, 256, 15 if SLOW else 1):
        power = torch.full((1, 32, 2), first, dtype=torch.uint8)
        both = codes[..., ::2] | codes[..., 1::2] << 4
        found = product(
            both.view(torch.float4_e2m1fn_x2), power.view(torch.float8_e8m0fnu), backend
        )
        values = torch.tensor(E2M1)
        expected = (
            torch.cat([values, -values]).repeat(2)
            * power[0, 0, 0].view(torch.float8_e8m0fnu).float()
        )
        assert expected.isnan().all() == (first == 255)
        assert torch.allclose(found, expected, rtol=1e-6, atol=0, equal_nan=True), first


@pytest.mark.parametrize("format", FORMATS)
def test_a_caller_that_flushes_subnormals(format):
    """Codes become subnormal numbers on a CPU's way to products; they are not lost."""
    tensors, scales = case(3, format, 256, 128, torch.float32)
    expected = ops.fused_moe(*tensors, **scales)
    try:
        torch.set_flush_denormal(True)
        found = ops.fused_moe(*tensors, **scales)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found, expected)


def test_quantisation_of_fp8():
    """The largest weight of a block becomes the largest number; zeros have a scale; nothing is
    NaN."""
    weight = torch.randn(2, 200, 300, generator=torch.Generator().manual_seed(0))
    weight[0, :128, :128] = 0
    weight[1, 3, 4] = 1e30
    for dtype in (FN, FNUZ):
        codes, scale = quantize_fp8(weight, dtype)
        back = dequantize(codes, scale)
        assert codes.float().abs().max() == torch.finfo(dtype).max and scale[0, 0, 0] == 1
        assert torch.equal(back[0, :128, :128], weight[0, :128, :128])
        assert back[1, 3, 4] == pytest.approx(1e30)
        error = (back - weight)[0, 128:].abs() / weight[0, 128:].abs().clamp(min=1e-3)
        assert error.max() <= 2**-4 * 1.001


def test_quantisation_of_mxfp4():
    """Numbers of the format come back as they are, others as the nearest, ties to even; beyond 6
    times the scale they saturate."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (3, 5, 32), generator=generator, dtype=torch.uint8)
    codes[..., 0] |= 7  # so that the scale is the same
    codes[..., 16] |= 7
    power = torch.randint(100, 150, (3, 5, 2), generator=generator).to(torch.uint8)
    exact = dequantize(codes.view(torch.float4_e2m1fn_x2), power.view(torch.float8_e8m0fnu))
    both, scale = quantize_mxfp4(exact)
    assert torch.equal(dequantize(both, scale), exact)
    row = torch.zeros(1, 32)
    given = [4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.9, -0.2, -0.3]
    row[0, : len(given)] = torch.tensor(given)
    found = dequantize(*quantize_mxfp4(row))[0, : len(given)].tolist()
    assert found == [4, 0, 1, 1, 2, 2, 4, 4, 6, 0, -0.5]
    assert torch.equal(dequantize(*quantize_mxfp4(torch.zeros(2, 64))), torch.zeros(2, 64))
    with pytest.raises(ValueError, match="multiple of 32, got 40"):
        quantize_mxfp4(torch.zeros(2, 40))


def test_fn_and_fnuz_are_the_same_weights():
    codes = torch.arange(256).to(torch.uint8).view(1, 256).view(FN)
    scale = torch.tensor([[0.3, 0.7]])
    moved, doubled = to_fnuz(codes, scale)
    assert moved.dtype == FNUZ
    before, after = dequantize(codes, scale), dequantize(moved, doubled)
    assert torch.allclose(before, after, rtol=1e-6, atol=0, equal_nan=True)


def test_the_other_fp8_is_refused(monkeypatch):
    """A GPU converts one of the two; a tensor of the other is an error, not a guess."""
    tensors, scales = case(3, "fn", 64, 32, torch.bfloat16)
    monkeypatch.setattr(contract, "fp8_types", lambda device: (FNUZ,))
    with pytest.raises(TypeError, match="down: expected float8_e4m3fnuz, got float8_e4m3fn"):
        ops.fused_moe(*tensors, **scales)


def test_what_a_device_takes(monkeypatch):
    gpu = torch.device("cuda")
    assert contract.fp8_types(torch.device("cpu")) == (FN, FNUZ)
    for arch, dtype in (("gfx942", FNUZ), ("gfx950", FN), ("", FN)):
        monkeypatch.setattr(contract, "_arch", lambda device, arch=arch: arch)
        assert contract.fp8_types(gpu) == (dtype,)


def test_two_formats_at_once_have_the_reference():
    tensors, scales = case(3, "fn", 64, 32, torch.float32)
    other, others = case(3, "mxfp4", 64, 32, torch.float32)
    mixed = (*tensors[:4], other[4])
    scales = dict(gate_up_scale=scales["gate_up_scale"], down_scale=others["down_scale"])
    found = ops.fused_moe(*mixed, **scales)
    assert torch.equal(found, ops.fused_moe(*mixed, **scales, backend="reference"))
    with pytest.raises(ValueError, match="down is torch.float8_e4m3fn, as gate_up is"):
        ops.fused_moe(*mixed, **scales, backend="cpp")


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_s_bits_do_not_depend_on_the_others(format):
    (x, chosen, factors, *weights), scales = case(150, format, 1120, 544, torch.bfloat16)

    def rows(index):
        tensors = x[index], chosen[index], factors[index], *weights
        return ops.fused_moe(*tensors, **scales, backend="cpp")

    every = rows(slice(None))
    for first, last in ((0, 1), (7, 16), (20, 84), (40, 150)):
        assert torch.equal(every[first:last], rows(slice(first, last)))
