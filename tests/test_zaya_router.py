"""zaya_router: every backend against the reference, and what its bits may not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import device_of, rows_apart

from blockdraft import env, ops
from blockdraft.registry import OPS
from blockdraft.testing import assert_close, poisoned

BACKENDS = [name for name in OPS["zaya_router"].backends if name != "reference"]
EPS = 1e-5
SLOW = env.triton_interpreter()


def weights_of(hidden, inner, experts, dtype, generator):
    def randn(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    return dict(
        down_weight=randn(inner, hidden, scale=hidden**-0.5),
        down_bias=randn(inner, scale=0.1),
        eda_scale=1 + randn(inner, scale=0.1),
        norm_weight=1 + randn(inner, scale=0.1),
        fc1_weight=randn(inner, inner, scale=inner**-0.5),
        fc1_bias=randn(inner, scale=0.1),
        fc2_weight=randn(inner, inner, scale=inner**-0.5),
        fc2_bias=randn(inner, scale=0.1),
        out_weight=randn(experts + 1, inner, scale=3 * inner**-0.5),
        balancing_bias=randn(experts + 1, scale=0.02).float(),
    )


def case(rows, hidden, inner, experts, dtype, top_k=1, prev=True, seed=0, device="cpu"):
    """Rows whose choices are the clearest of four times as many, so that rounding changes none:
    hidden, prev_state, weights by name."""
    generator = torch.Generator().manual_seed(seed)
    weights = weights_of(hidden, inner, experts, dtype, generator)
    x = torch.randn(4 * rows, hidden, generator=generator).to(dtype)
    state = torch.randn(4 * rows, inner, generator=generator).to(dtype) if prev else None
    count = min(top_k + 1, experts + 1)
    probs, chosen, *_ = ops.zaya_router(
        x,
        state,
        **weights | dict(balancing_bias=torch.zeros(experts + 1)),
        eps=EPS,
        top_k=count,
        backend="reference",
    )
    probs = torch.where(chosen < 0, torch.nan, probs)  # a skip's is not returned: too near to tell
    gaps = (
        (probs[:, :-1] - probs[:, 1:]).nan_to_num(-1).amin(-1) if count > 1 else torch.ones(len(x))
    )
    clear = gaps.topk(rows).indices
    weights["balancing_bias"] *= 0.01
    state = None if state is None else state[clear].to(device)
    return x[clear].to(device), state, {name: t.to(device) for name, t in weights.items()}


def compare(tensors, backend, dtype, **options):
    """Values; equal choices, but for rows in which two classes are closer than rounding tells."""
    x, state, weights = tensors
    top_k = options.get("top_k", 1)
    expected = ops.zaya_router(x, state, **weights, eps=EPS, backend="reference", **options)
    out = tuple(poisoned(*t.shape, dtype=t.dtype, device=x.device) for t in expected)
    found = ops.zaya_router(x, state, **weights, eps=EPS, out=out, backend=backend, **options)
    assert found is not None and out[0].shape == (len(x), top_k)
    same = (out[1] == expected[1]).all(-1)
    assert same.float().mean() >= 0.9 if len(x) else True
    for name, mine, theirs in zip(("weights", "skip_prob"), out[::2], expected[::2]):
        assert_close(mine[same].to(dtype), theirs[same].to(dtype), dtype, name, slack=4)
    assert_close(out[3], expected[3], dtype, "state")
    return out, same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prev", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 17] if SLOW else [0, 1, 17, 130])
def test_equals_the_reference(rows, prev, backend, dtype):
    _, same = compare(
        case(rows, 200, 48, 16, dtype, prev=prev, device=device_of(backend)), backend, dtype
    )
    assert same.all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [2] if SLOW else [1, 2, 8])
@pytest.mark.parametrize("experts", [8] if SLOW else [1, 8, 24, 128])
def test_experts_and_choices(experts, top_k, backend):
    top_k = min(top_k, experts + 1)
    tensors = case(20, 64, 32, experts, torch.float32, top_k, device=device_of(backend))
    out, _ = compare(tensors, backend, torch.float32, top_k=top_k)
    assert (out[1][:, None] != out[1][..., None]).sum() == 20 * top_k * (top_k - 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 64, 272, 1024])
def test_zaya1_8b(rows, dtype):
    _, same = compare(case(rows, 2048, 256, 16, dtype), "cpp", dtype)
    assert same.all()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=5 if SLOW else 60, deadline=None, derandomize=True)
@given(data=st.data())
def test_fuzz(backend, data):
    draw = data.draw
    dtype = draw(st.sampled_from([torch.float32, torch.float16] + [torch.bfloat16] * (not SLOW)))
    experts = draw(st.integers(1, 40))
    top_k = draw(st.integers(1, min(4, experts + 1)))
    rows = draw(st.integers(1, 70))
    tensors = case(
        rows=rows,
        hidden=draw(st.integers(1, 300)),
        inner=draw(st.integers(2, 100)),
        experts=experts,
        dtype=dtype,
        top_k=top_k,
        prev=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
        device=device_of(backend),
    )
    live = None
    if draw(st.booleans()):
        live = torch.rand(rows) > 0.3
        live = live.to(tensors[0].device)
    compare(tensors, backend, dtype, live=live, top_k=top_k)


@pytest.mark.parametrize("backend", list(OPS["zaya_router"].backends))
def test_ties_skip_and_dead_rows(backend):
    x, _, weights = case(5, 16, 16, 3, torch.float32, prev=False, device=device_of(backend))
    weights["out_weight"].zero_()  # all classes are equal: the lowest wins
    weights["balancing_bias"].zero_()
    live = torch.tensor([True, True, False, True, True], device=x.device)

    def route(top_k):
        found = ops.zaya_router(
            x, None, **weights, eps=EPS, live=live, top_k=top_k, backend=backend
        )
        return [t.tolist() for t in found[:3]]

    quarters = [0.25, 0.25, 0.0, 0.25, 0.25]
    alive = [p > 0 for p in quarters]
    assert route(1) == [[[p] for p in quarters], [[0 if a else -1] for a in alive], [0.0] * 5]
    weights["balancing_bias"][3] = 0.5  # the last class is skip
    assert route(1) == [[[0.0]] * 5, [[-1]] * 5, quarters]
    chosen = [[-1, 0, 1, 2] if a else [-1] * 4 for a in alive]
    assert route(4) == [[[0.0, p, p, p] for p in quarters], chosen, quarters]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_activations_are_fp32(backend, dtype):
    """Rounded between the layers to bf16, weights would err by more than 1e-3."""
    if SLOW and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter rounds bfloat16 wrongly")
    x, state, weights = case(130, 200, 48, 16, dtype, device=device_of(backend))
    expected = ops.zaya_router(x, state, **weights, eps=EPS, backend="reference")
    found = ops.zaya_router(x, state, **weights, eps=EPS, backend=backend)
    same = (found[1] == expected[1]).all(-1) & (found[3] == expected[3]).all(-1)
    assert same.float().mean() > 0.2  # of the others the state is rounded another way
    torch.testing.assert_close(found[0][same], expected[0][same], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_row(backend, dtype):
    if SLOW and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter rounds bfloat16 wrongly")
    x, state, weights = case(9, 64, 32, 5, dtype, device=device_of(backend))
    clean = ops.zaya_router(x, state, **weights, eps=EPS, backend=backend)
    x[4, 7] = torch.nan
    found = ops.zaya_router(x, state, **weights, eps=EPS, backend=backend)
    others = torch.arange(9, device=x.device) != 4
    for mine, theirs in zip(found, clean):
        assert torch.equal(mine[others], theirs[others])
    assert found[0][4].isnan().all() and found[1][4].tolist() == [0] and found[3][4].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_apart(backend):
    x, state, weights = case(19, 64, 32, 6, torch.float32, top_k=2, device=device_of(backend))
    expected = ops.zaya_router(x, state, **weights, eps=EPS, top_k=2, backend="reference")
    spread = {k: rows_apart(t) if t.dim() == 2 else t for k, t in weights.items()}
    out = [poisoned(*t.shape, dtype=t.dtype, device=t.device) for t in expected]
    out = tuple(rows_apart(t) if t.dim() == 2 else t for t in out)
    ops.zaya_router(
        rows_apart(x), rows_apart(state), **spread, eps=EPS, top_k=2, out=out, backend=backend
    )
    for mine, theirs in zip(out, expected):
        assert_close(mine.float(), theirs.float(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_s_bits_do_not_depend_on_the_others(dtype):
    x, state, weights = case(150, 1100, 72, 16, dtype, top_k=2)

    def rows(index):
        return ops.zaya_router(x[index], state[index], **weights, eps=EPS, top_k=2, backend="cpp")

    every = rows(slice(None))
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for mine, theirs in zip(rows(slice(None)), every):
            assert torch.equal(mine, theirs)
    torch.set_num_threads(threads)
    for first, last in ((0, 1), (7, 16), (20, 84), (40, 150)):
        for mine, theirs in zip(rows(slice(first, last)), every):
            assert torch.equal(mine, theirs[first:last])


def test_bad_arguments():
    x, state, weights = case(3, 16, 16, 3, torch.bfloat16)
    with pytest.raises(ValueError, match=r"top_k: expected 1 \.\. 4, got 5"):
        ops.zaya_router(x, state, **weights, eps=EPS, top_k=5)
    mixed = weights | dict(norm_weight=weights["norm_weight"].float())
    with pytest.raises(ValueError, match="norm_weight is torch.bfloat16, as hidden is, not"):
        ops.zaya_router(x, state, **mixed, eps=EPS, backend="cpp")
    assert ops.zaya_router(x, state, **mixed, eps=EPS)[1].shape == (3, 1)  # the reference takes it
    low = weights | dict(balancing_bias=weights["balancing_bias"].bfloat16())
    with pytest.raises(ValueError, match="balancing_bias is torch.float32, not torch.bfloat16"):
        ops.zaya_router(x, state, **low, eps=EPS, backend="cpp")
