"""fused_moe and moe_dispatch: every backend against the reference, and what their bits may not
depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import device_of, rows_apart

from blockdraft import MoeWorkspace, env, ops
from blockdraft.registry import OPS
from blockdraft.testing import assert_close, poisoned

BACKENDS = [name for name in OPS["fused_moe"].backends if name != "reference"]
FEW = 64  # pairs that are routed without a sort
SLOW = env.triton_interpreter()


def case(rows, choices, experts, hidden, inner, dtype, seed=0, spread="uniform", device="cpu"):
    """x, experts, weights, gate_up, down, skip_prob; `spread`: where the rows go."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    chosen = {
        "uniform": lambda: torch.randint(-1, experts, (rows, choices), generator=generator),
        "one": lambda: torch.full((rows, choices), experts - 1),
        "skipped": lambda: torch.full((rows, choices), -1),
    }[spread]().int()
    # not near 0, where products would be fp16's subnormal numbers
    weights = 0.2 + 0.8 * torch.rand(rows, choices, generator=generator)
    skip_prob = torch.where((chosen < 0).all(1), torch.rand(rows, generator=generator), 0)
    tensors = (
        randn(rows, hidden),
        chosen,
        weights,
        randn(experts, 2 * inner, hidden, scale=hidden**-0.5),
        randn(experts, hidden, inner, scale=inner**-0.5),
        skip_prob.float(),
    )
    return tuple(t.to(device) for t in tensors)


def compare(tensors, backend, skip="zero"):
    expected = ops.fused_moe(*tensors, skip=skip, backend="reference")
    out = poisoned(*tensors[0].shape, dtype=tensors[0].dtype, device=tensors[0].device)
    ops.fused_moe(*tensors, skip=skip, out=out, backend=backend)
    # in 16 bits silu(gate) * up is rounded, too: two roundings, where the table counts one
    assert_close(out, expected, slack=1 if out.dtype == torch.float32 else 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 5, FEW + 1] if SLOW else [0, 1, 5, FEW, FEW + 1, 150])
def test_equals_the_reference(rows, backend, dtype):
    compare(case(rows, 1, 16, 64, 40, dtype, device=device_of(backend)), backend, "identity")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("choices", [2] if SLOW else [1, 2, 8])
@pytest.mark.parametrize("experts", [1, 24] if SLOW else [1, 8, 24, 128])
@pytest.mark.parametrize("rows", [3] if SLOW else [3, 70])
def test_experts_and_choices(rows, experts, choices, backend):
    tensors = case(rows, choices, experts, 32, 24, torch.float32, device=device_of(backend))
    compare(tensors, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", ["one", "skipped"])
@pytest.mark.parametrize("skip", ["zero", "identity"])
@pytest.mark.parametrize("rows, choices", [(9, 1), (70, 1), (40, 2)])
def test_all_rows_to_one_expert_or_none(rows, choices, skip, spread, backend):
    device = device_of(backend)
    tensors = case(rows, choices, 4, 32, 16, torch.float32, spread=spread, device=device)
    compare(tensors, backend, skip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_gates(backend, dtype):
    tensors = case(5, 1, 4, 64, 40, dtype, device=device_of(backend))
    tensors[3][:, :40] *= 200  # silu(x) is x, or -0
    compare(tensors, backend)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 64, 272, 1024])
def test_zaya1_8b(rows, dtype):
    compare(case(rows, 1, 16, 2048, 2048, dtype), "cpp")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=5 if SLOW else 60, deadline=None, derandomize=True)
@given(data=st.data())
def test_fuzz(backend, data):
    draw = data.draw
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * (not SLOW)
    tensors = case(
        rows=draw(st.integers(1, 90)),
        choices=draw(st.integers(1, 3)),
        experts=draw(st.integers(1, 20)),
        hidden=8 * draw(st.integers(1, 20)),
        inner=8 * draw(st.integers(1, 20)),
        dtype=draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 1000)),
        spread=draw(st.sampled_from(["uniform", "uniform", "one"])),
        device=device_of(backend),
    )
    compare(tensors, backend, draw(st.sampled_from(["zero", "identity"])))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows, choices", [(9, 1), (40, 2)])
def test_rows_apart(rows, choices, backend):
    *tensors, skip_prob = case(rows, choices, 4, 32, 16, torch.float32, device=device_of(backend))
    expected = ops.fused_moe(*tensors, skip_prob, skip="identity", backend="reference")
    out = rows_apart(poisoned(*expected.shape, dtype=torch.float32, device=expected.device))
    spread = [rows_apart(t) for t in tensors]
    ops.fused_moe(*spread, skip_prob, skip="identity", out=out, backend=backend)
    assert_close(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("choices", [1, 2])
def test_weights_of_no_expert_are_not_read(choices, backend):
    x, experts, weights, *rest = case(
        9, choices, 4, 32, 16, torch.float32, device=device_of(backend)
    )
    weights[experts < 0] = torch.nan
    assert (experts < 0).any()
    assert ops.fused_moe(x, experts, weights, *rest, backend=backend).isfinite().all()


def test_bad_arguments():
    x, experts, weights, gate_up, down, skip_prob = case(9, 1, 4, 64, 64, torch.float32)
    with pytest.raises(ValueError, match="experts: expected at least one choice"):
        ops.fused_moe(x, experts[:, :0], weights[:, :0], gate_up, down)
    out = torch.empty_like(x)
    with pytest.raises(ValueError, match="out: expected memory apart from weights's"):
        ops.fused_moe(x, experts, out[:, :1], gate_up, down, out=out)
    wrong = torch.zeros(4, 128, 48, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    right = torch.zeros(4, 64, 32, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    scales = [torch.zeros(4, n, 2, dtype=torch.uint8).view(torch.float8_e8m0fnu) for n in (128, 64)]
    given = dict(gate_up_scale=scales[0], down_scale=scales[1])
    with pytest.raises(ValueError, match=r"gate_up: expected shape \[E 2I H/2\]"):
        ops.fused_moe(x, experts, weights, wrong, right, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("choices", [1, 2])
def test_a_row_s_bits_do_not_depend_on_the_others(choices, dtype):
    """Alone, in a batch on either side of the sort and of the widths of tiles, by any threads."""
    tensors = case(150, choices, 5, 1100, 520, dtype)
    weights = tensors[3:5]

    def rows(index):
        x, experts, factors, _, _, skip_prob = tensors
        return ops.fused_moe(
            x[index],
            experts[index],
            factors[index],
            *weights,
            skip_prob[index],
            skip="identity",
            backend="cpp",
        )

    every = rows(slice(None))
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        assert torch.equal(every, rows(slice(None)))
    torch.set_num_threads(threads)
    for first, last in ((0, 1), (7, 16), (20, 84), (40, 150)):
        assert torch.equal(every[first:last], rows(slice(first, last)))


@pytest.mark.parametrize("backend", list(OPS["moe_dispatch"].backends))
@pytest.mark.parametrize(
    "rows, choices, experts", [(0, 1, 3), (1, 1, 1), (7, 1, 4), (100, 3, 16), (4096, 1, 128)]
)
def test_dispatch(rows, choices, experts, backend):
    generator = torch.Generator().manual_seed(rows)
    chosen = torch.randint(-1, experts, (rows, choices), generator=generator).int()
    chosen = chosen.to(device_of(backend))
    order, offsets = ops.moe_dispatch(chosen, experts, backend=backend)
    flat = chosen.flatten().tolist()
    by_expert = [[i for i, e in enumerate(flat) if e == expert] for expert in range(experts)]
    routed = [pair for pairs in by_expert for pair in pairs]
    assert order.tolist() == routed + [-1] * (len(flat) - len(routed))
    assert offsets.diff().tolist() == [len(pairs) for pairs in by_expert] and offsets[0] == 0


def test_many_experts():
    experts = torch.zeros(1, 1, dtype=torch.int32)
    assert ops.moe_dispatch(experts, 5000)[1].tolist() == [0] + [1] * 5000


@pytest.mark.skipif(not SLOW, reason="Triton does not run here")
def test_triton_refuses_too_many_experts():
    experts = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="at most 1024 experts, not 1025"):
        ops.moe_dispatch(experts, 1025, backend="triton")


@pytest.mark.parametrize("choices", [1, 2])
def test_workspace_of_the_caller(choices):
    tensors = case(70, choices, 4, 32, 16, torch.float32)
    workspace = MoeWorkspace.new(tensors[0], tensors[1], 4, 16)
    found = ops.fused_moe(*tensors, workspace=workspace)
    assert torch.equal(found, ops.fused_moe(*tensors))
    with pytest.raises(ValueError, match=r"workspace.activations: expected shape \[T\*k I\]"):
        ops.fused_moe(*tensors, workspace=workspace._replace(activations=torch.empty(3, 16)))
