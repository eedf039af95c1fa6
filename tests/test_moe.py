import pytest
import torch
import torch.nn.functional as F

from blockdraft import ops
from blockdraft.testing import assert_close, poisoned


def test_dispatch_is_stable_and_leaves_skips_out():
    experts = torch.tensor([[2], [-1], [0], [2], [1], [0], [-1]], dtype=torch.int32)
    order, offsets = ops.moe_dispatch(experts, 4)
    assert order.tolist() == [2, 5, 4, 0, 3, -1, -1] and offsets.tolist() == [0, 2, 3, 5, 5]


@pytest.mark.parametrize("tokens, choices", [(0, 1), (1, 1), (37, 1), (20, 3)])
@pytest.mark.parametrize("skip", ["zero", "identity"])
def test_moe_equals_a_loop_over_tokens(tokens, choices, skip):
    generator = torch.Generator().manual_seed(tokens)
    x, weights = (
        torch.randn(tokens, 12, generator=generator),
        torch.rand(tokens, choices, generator=generator),
    )
    gate_up, down = (
        torch.randn(5, 14, 12, generator=generator),
        torch.randn(5, 12, 7, generator=generator),
    )
    # expert 4 gets nothing
    experts = torch.randint(-1, 4, (tokens, choices), generator=generator).int()
    skip_prob = torch.where((experts < 0).all(1), 0.25, 0.0)
    expected = torch.zeros(tokens, 12)
    for t in range(tokens):
        for j, e in enumerate(experts[t].tolist()):
            if e >= 0:
                gate, up = (gate_up[e] @ x[t]).chunk(2)
                expected[t] += weights[t, j] * (down[e] @ (F.silu(gate) * up))
        if skip == "identity":
            expected[t] += skip_prob[t] * x[t]
    out = poisoned(tokens, 12, dtype=torch.float32)
    ops.fused_moe(x, experts, weights, gate_up, down, skip_prob, skip=skip, out=out)
    assert_close(out, expected)


def test_router_ties_skip_and_dead_rows():
    generator = torch.Generator().manual_seed(1)
    shapes = dict(
        down_weight=(4, 6),
        down_bias=(4,),
        eda_scale=(4,),
        norm_weight=(4,),
        fc1_weight=(4, 4),
        fc1_bias=(4,),
        fc2_weight=(4, 4),
        fc2_bias=(4,),
        out_weight=(4, 4),
    )
    w = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    w["out_weight"][:] = 0  # all classes equal: the lowest wins
    x = torch.randn(5, 6, generator=generator)
    live = torch.tensor([True, True, False, True, True])
    weights, experts, skip_prob, _ = ops.zaya_router(
        x, None, **w, balancing_bias=torch.zeros(4), eps=1e-5, live=live
    )
    assert experts.tolist() == [0, 0, -1, 0, 0] and weights.tolist() == [
        0.25,
        0.25,
        0.0,
        0.25,
        0.25,
    ]
    bias = torch.tensor([0.0, 0.0, 0.0, 0.5])  # the last class is skip
    weights, experts, skip_prob, _ = ops.zaya_router(
        x, None, **w, balancing_bias=bias, eps=1e-5, live=live
    )
    assert (
        (experts == -1).all()
        and (weights == 0).all()
        and skip_prob.tolist() == [0.25, 0.25, 0.0, 0.25, 0.25]
    )
