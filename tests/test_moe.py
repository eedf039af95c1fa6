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
