"""commit of all layers after a decode pass: ZAYA1-8B's 40 blocks, 16 verify rows and no proposals,
every request its own slot."""

import torch

from .. import ops
from ..layout import BlockLayout
from ..roofline import costs
from ..testing import assert_close
from .rows import DTYPES, Implementation, Row, backends

LAYERS, CHANNELS, HALF, DEPTH = 40, 1280, 128, 2


def cases(quick):
    return [dict(B=4)] if quick else [dict(B=b) for b in (1, 8, 32)]


def build(case, dtype, device):
    B, layout = case["B"], BlockLayout.tidar(16, P=0)
    generator = torch.Generator().manual_seed(0)
    i32 = dict(dtype=torch.int32, device=device)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(DTYPES[dtype]).to(device)

    qk, late = randn(LAYERS, B * layout.rows, CHANNELS), randn(LAYERS, B * layout.rows, HALF)
    accepted = torch.randint(1, layout.V, (B,), generator=generator).int().to(device)
    slots = torch.randperm(B, generator=generator).int().to(device)
    lengths, state = (
        torch.full((B,), layout.K, **i32),
        (randn(LAYERS, B, DEPTH, CHANNELS), randn(LAYERS, B, HALF)),
    )
    branch = torch.empty(B, 0, **i32)

    def mine(backend):
        mine_rows = layout.pack(torch.zeros(B, **i32), lengths, branch, layout.V)
        ops.commit(qk, late, accepted, mine_rows, *state, slots, backend=backend)
        return state

    first = torch.arange(B, device=device) * layout.rows
    last = first + accepted.long()

    def eager():
        """With a >= 1 the state is two rows of the pass: gather them, scatter them to the slots."""
        rows = torch.stack([last - 1, last], 1)
        state[0][:, slots.long()] = qk[:, rows.flatten()].unflatten(1, rows.shape)
        state[1][:, slots.long()] = late[:, last]
        return state

    def by_request():
        for row, slot in zip(last.tolist(), slots.tolist()):
            state[0][:, slot] = qk[:, row - 1 : row + 1]
            state[1][:, slot] = late[:, row]
        return state

    expected = [t.clone() for t in eager()]
    for t in state:
        t.fill_(torch.nan)

    def check(result, slack):
        for name, got, want in zip(("conv_state", "late_state"), result, expected):
            assert_close(got, want, got.dtype, name, slack)

    peers = [
        Implementation("gather, scatter", lambda: eager),
        Implementation("request by request", lambda: by_request),
    ]
    cost = costs.commit(B, LAYERS, CHANNELS, DEPTH, HALF, qk.element_size())
    return Row("commit", case, dtype, cost, backends("commit", mine, state[0]) + peers, check)
