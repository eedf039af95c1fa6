"""commit of all layers after a decode pass of ZAYA1-8B: 40 layers, 16 verify rows, no proposals,
and a slot for every request."""

from dataclasses import dataclass
from typing import Any

import torch

from .. import ops
from ..layout import BlockLayout
from ..roofline import costs
from ..roofline.costs import Cost
from ..testing import assert_close
from .case import Implementation, Normal, Prepared, backends

LAYERS, CHANNELS, HALF, DEPTH = 40, 1280, 128, 2
LAYOUT = BlockLayout.tidar(16, P=0)
State = tuple[torch.Tensor, torch.Tensor]


def cases(quick: bool) -> list[dict[str, Any]]:
    return [dict(B=4)] if quick else [dict(B=b) for b in (1, 8, 32)]


def cost(parameters: dict[str, Any], itemsize: int) -> Cost:
    return costs.commit(parameters["B"], LAYERS, CHANNELS, DEPTH, HALF, itemsize)


@dataclass(frozen=True)
class Inputs:
    qk: torch.Tensor
    late: torch.Tensor
    accepted: torch.Tensor
    slots: torch.Tensor
    state: State

    def last_rows(self) -> torch.Tensor:
        """The last accepted packed row of each request."""
        first = torch.arange(len(self.slots), device=self.slots.device) * LAYOUT.rows
        return first + self.accepted.long()


def inputs(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Inputs:
    B = parameters["B"]
    normal = Normal(dtype, device)
    qk = normal(LAYERS, B * LAYOUT.rows, CHANNELS)
    late = normal(LAYERS, B * LAYOUT.rows, HALF)
    accepted = torch.randint(1, LAYOUT.V, (B,), generator=normal.generator).int().to(device)
    slots = torch.randperm(B, generator=normal.generator).int().to(device)
    state = normal(LAYERS, B, DEPTH, CHANNELS), normal(LAYERS, B, HALF)
    return Inputs(qk, late, accepted, slots, state)


def eager(data: Inputs):
    """At least one draft is accepted, so the state is two rows of the pass: gathers these and
    scatters them to the slots."""
    last = data.last_rows()
    slots = data.slots.long()

    def run() -> State:
        rows = torch.stack([last - 1, last], 1)
        data.state[0][:, slots] = data.qk[:, rows.flatten()].unflatten(1, rows.shape)
        data.state[1][:, slots] = data.late[:, last]
        return data.state

    return run


def by_request(data: Inputs):
    last = data.last_rows()

    def run() -> State:
        for row, slot in zip(last.tolist(), data.slots.tolist()):
            data.state[0][:, slot] = data.qk[:, row - 1 : row + 1]
            data.state[1][:, slot] = data.late[:, row]
        return data.state

    return run


def build(parameters: dict[str, Any], dtype: torch.dtype, device: str) -> Prepared:
    data = inputs(parameters, dtype, device)
    i32 = dict(dtype=torch.int32, device=device)
    lengths = torch.full((parameters["B"],), LAYOUT.K, **i32)
    branch = torch.empty(parameters["B"], 0, **i32)

    def ours(backend: str) -> State:
        prefix_lens = torch.zeros(parameters["B"], **i32)  # the op changes them
        rows = LAYOUT.pack(prefix_lens, lengths, branch, LAYOUT.V)
        ops.commit(
            data.qk, data.late, data.accepted, rows, *data.state, data.slots, backend=backend
        )
        return data.state

    expected = [t.clone() for t in eager(data)()]
    for t in data.state:
        t.fill_(torch.nan)

    def check(result: State, slack: float) -> None:
        for name, got, want in zip(("conv_state", "late_state"), result, expected):
            assert_close(got, want, got.dtype, name, slack)

    peers = [
        Implementation("gather, scatter", lambda: eager(data)),
        Implementation("request by request", lambda: by_request(data)),
    ]
    return Prepared(backends("commit", ours, data.state[0]) + peers, check)
