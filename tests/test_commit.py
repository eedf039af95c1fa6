"""commit: every backend moves the same bits as the reference."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockdraft import BlockLayout, Rows, env, ops
from blockdraft.registry import OPS
from blockdraft.testing import random_rows

SLOW = env.triton_interpreter()


@st.composite
def cases(draw):
    K = draw(st.integers(0, 5))
    return dict(
        layout=BlockLayout(K, draw(st.integers(1, 4)), draw(st.integers(0, 2))),
        prefixes=draw(st.lists(st.sampled_from([0, 0, 1, 5, 30]), min_size=1, max_size=5)),
        layers=draw(st.integers(1, 3)),
        depth=draw(st.integers(0, 6)),
        channels=draw(st.sampled_from([1, 8, 24, 600])),
        half=draw(st.sampled_from([4, 8])),
        offset=draw(st.sampled_from([0, 8, 3])),
        dtype=draw(st.sampled_from([torch.float32, torch.float16] + [torch.bfloat16] * (not SLOW))),
        seed=draw(st.integers(0, 2**31)),
    )


def run(case, backend):
    generator = torch.Generator().manual_seed(case["seed"])
    rows = random_rows(case["layout"], case["prefixes"], generator)
    batch, total, offset = len(case["prefixes"]), int(rows.cu_rows[-1]), case["offset"]

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(case["dtype"])

    packed = randn(case["layers"], total, offset + case["channels"] + case["half"])
    conv_state = randn(case["layers"], batch + 2, case["depth"], case["channels"])
    late_state = randn(case["layers"], batch + 2, case["half"])
    slots = torch.randperm(batch + 2, generator=generator)[:batch].int()
    slots[torch.rand(batch, generator=generator) < 0.2] = -1
    # what an earlier owner of the slot left must not survive
    for b, prefix in enumerate(case["prefixes"]):
        if prefix == 0 and slots[b] >= 0:
            conv_state[:, slots[b]] = torch.nan
    accepted = (torch.rand(batch, generator=generator) * (rows.draft_len + 2)).int() - 1
    device = "cuda" if backend == "triton" and not SLOW else "cpu"
    rows = dataclasses.replace(
        rows,
        **{
            f.name: value.to(device)
            for f in dataclasses.fields(rows)
            if isinstance(value := getattr(rows, f.name), torch.Tensor)
        },
    )
    packed, conv_state, late_state = packed.to(device), conv_state.to(device), late_state.to(device)
    qk, v_late = (
        packed[..., offset : offset + case["channels"]],
        packed[..., offset + case["channels"] :],
    )
    ops.commit(
        qk,
        v_late,
        accepted.to(device),
        rows,
        conv_state,
        late_state,
        slots.to(device),
        backend=backend,
    )
    return conv_state.cpu(), late_state.cpu(), rows.prefix_lens.cpu()


@pytest.mark.parametrize(
    "backend", [name for name in OPS["commit"].backends if name != "reference"]
)
@settings(max_examples=60 if SLOW else 150, deadline=None, derandomize=True)
@given(case=cases())
def test_moves_the_same_bits(case, backend):
    for actual, expected in zip(run(case, backend), run(case, "reference")):
        assert torch.equal(
            actual.float().nan_to_num(nan=123.0), expected.float().nan_to_num(nan=123.0)
        )


@pytest.mark.parametrize("backend", OPS["commit"].backends)
def test_an_empty_prefix_has_no_state(backend):
    """What a slot holds counts as zeros for a request that begins, as it does for cca_qkv."""
    if backend == "triton" and not SLOW and not torch.cuda.is_available():
        pytest.skip("Triton needs a GPU or its interpreter")
    rows = Rows.prefill(torch.zeros(2, dtype=torch.int32), [1, 3], 0)
    qk, conv_state = torch.randn(1, 4, 8), torch.full((1, 2, 2, 8), torch.nan)
    slots = torch.tensor([1, 0], dtype=torch.int32)
    late, late_state = torch.randn(1, 4, 4), torch.full((1, 2, 4), torch.nan)
    ops.commit(qk, late, rows.draft_len, rows, conv_state, late_state, slots, backend=backend)
    assert torch.equal(conv_state[0, 1], torch.stack([torch.zeros(8), qk[0, 0]]))
    assert torch.equal(conv_state[0, 0], qk[0, 2:])
    assert torch.equal(late_state[0], late[0, [3, 0]])
