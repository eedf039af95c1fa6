"""The state after row a, against the reference: short lineages that reach into the old state, idle requests, strided rows."""

import dataclasses

import pytest
import torch

from blockdraft import BlockLayout, env, ops
from blockdraft.registry import OPS
from blockdraft.testing import random_rows

BACKENDS = [name for name in OPS["commit"].backends if name != "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_equals_the_reference(depth, dtype, backend):
    generator = torch.Generator().manual_seed(depth)
    device = "cpu" if backend != "triton" or env.triton_interpreter() else "cuda"
    for _ in range(3):
        rows = random_rows(BlockLayout(4, 3, 2), [0, 5, 0, 7, 1, 0], generator)
        total = int(rows.cu_rows[-1])
        accepted = (torch.rand(6, generator=generator) * (rows.draft_len + 2)).int() - 1
        slots = torch.tensor([3, 0, -1, 5, 1, 2], dtype=torch.int32)
        qk = torch.randn(3, total, 640, generator=generator).to(dtype)[..., :600]
        v_late = torch.randn(3, total, 8, generator=generator).to(dtype)
        conv_state, late_state = torch.randn(3, 7, depth, 600, generator=generator), torch.randn(3, 7, 8, generator=generator)
        conv_state[:, 3] = torch.nan  # of a request without a prefix: counts as zeros
        results = []
        for name, place in (("reference", "cpu"), (backend, device)):
            state = [t.to(dtype).to(place, copy=True) for t in (conv_state, late_state)]
            mine = dataclasses.replace(rows, **{f: getattr(rows, f).to(place, copy=True)
                                                for f in ("cu_rows", "prefix_lens", "draft_len", "branch")})
            ops.commit(qk.to(place), v_late.to(place), accepted.to(place), mine, *state, slots.to(place), backend=name)
            results.append([t.cpu() for t in (*state, mine.prefix_lens)])
        for expected, got in zip(*results):
            assert torch.equal(got.nan_to_num(1e4), expected.nan_to_num(1e4))
