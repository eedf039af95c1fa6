"""Every op passes torch's own checks of an operator, and works inside torch.compile without a graph
break."""

from functools import partial
from typing import NamedTuple

import pytest
import torch

from blockdraft import BlockLayout, Sampling, ops, registry
from blockdraft.testing import random_rows

LAYOUT = BlockLayout(2, 3, 2)


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


def calls():
    """A small call of each op, by name."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    rows = random_rows(LAYOUT, [5, 9], generator)
    total = 2 * LAYOUT.rows
    table = i32(0, 1, 2, 3).view(2, 2)
    ones = torch.ones(2)
    step = dict(seed=torch.zeros(2, dtype=torch.int64), position=i32(5, 9))
    router = [
        randn(3, 6),
        randn(3),
        randn(3),
        randn(3),
        randn(3, 3),
        randn(3),
        randn(3, 3),
        randn(3),
        randn(5, 3),
        randn(5),
    ]
    return {
        "block_attention": partial(
            ops.block_attention,
            randn(total, 4, 8),
            randn(total, 2, 8),
            randn(total, 2, 8),
            randn(4, 8, 2, 8),
            randn(4, 8, 2, 8),
            table,
            rows,
            lse=torch.empty(total, 4),
        ),
        "cca_qkv": partial(
            ops.cca_qkv,
            randn(total, 48),
            randn(total, 8),
            randn(total, 8),
            randn(48, 1, 2),
            randn(48),
            randn(48, 8, 2),
            randn(48),
            randn(2),
            randn(64, 4),
            rows,
            randn(2, 2, 48),
            randn(2, 8),
            i32(0, 1),
            randn(4, 8, 2, 8),
            randn(4, 8, 2, 8),
            table,
        ),
        "commit": partial(
            ops.commit,
            randn(2, total, 48),
            randn(2, total, 8),
            i32(0, -1),
            rows,
            randn(2, 2, 2, 48),
            randn(2, 2, 8),
            i32(0, 1),
        ),
        "zaya_router": partial(ops.zaya_router, randn(7, 6), randn(7, 3), *router, 1e-5),
        "moe_dispatch": partial(ops.moe_dispatch, i32(1, -1, 0).view(3, 1), 2),
        "fused_moe": partial(
            ops.fused_moe,
            randn(3, 4),
            i32(1, -1, 0).view(3, 1),
            torch.ones(3, 1),
            randn(2, 6, 4),
            randn(2, 4, 3),
        ),
        "accept_drafts": partial(
            ops.accept_drafts,
            randn(2, 3, 7),
            i32(1, 2, 3, 4).view(2, 2),
            i32(2, 1),
            i32(1, 2).view(2, 1),
            3,
            target_sampling=Sampling(ones),
            draft_logits=randn(2, 2, 7),
            with_logprob=True,
            **step,
        ),
        "sample_drafts": partial(
            ops.sample_drafts, randn(2, 2, 7), i32(2, 1), drafter_sampling=Sampling(ones), **step
        ),
        "plan_branches": partial(ops.plan_branches, torch.rand(2, 3), torch.rand(4), 2, i32(3, 1)),
    }


def test_each_op_has_a_reference():
    assert set(calls()) == set(registry.OPS) <= set(ops.__all__)
    assert all("reference" in op.backends for op in registry.OPS.values())


@pytest.mark.parametrize("name", calls())
def test_opcheck(name, monkeypatch):
    """Runs torch.library.opcheck on the very arguments that the public op passes to its backend."""
    seen = {}

    def spy(self, backend, args):
        seen.update(op=self, args=args)
        self.select(backend, args).run(*self.flatten(args))

    monkeypatch.setattr(registry.Op, "__call__", spy)
    calls()[name]()
    op, args = seen["op"], seen["args"]
    assert op.unflatten(*op.flatten(args)) is not None
    for backend in op.backends.values():
        if backend.unsupported(args) is None:
            torch.library.opcheck(backend.run, op.flatten(args))


@pytest.mark.parametrize("name", calls())
def test_compile_without_graph_breaks(name):
    call = calls()[name]
    torch.compile(call.func, fullgraph=True, backend="aot_eager")(*call.args, **call.keywords)


def test_compiled_values_equal_eager_ones():
    generator = torch.Generator().manual_seed(0)
    x, gate_up, down = (
        torch.randn(shape, generator=generator) for shape in ((5, 4), (2, 6, 4), (2, 4, 3))
    )
    experts, weights = i32(1, -1, 0, 0, 1).view(5, 1), torch.ones(5, 1)

    def step(x, experts, weights):
        return ops.fused_moe(x * 2, experts, weights, gate_up, down) + 1

    expected = step(x, experts, weights)
    assert torch.allclose(torch.compile(step, fullgraph=True)(x, experts, weights), expected)


class Copy(NamedTuple):
    x: torch.Tensor
    out: registry.Out


def test_a_backend_that_cannot_run_says_why():
    op = registry.Op("refusing", Copy)
    try:
        op.register("reference", registry.by_name(op, lambda x: x))
        op.register(
            "cpp",
            lambda args: [args.out.fill_(7)].clear(),
            lambda args: "needs 4 rows" if len(args.x) != 4 else None,
        )
        small, large = torch.zeros(2), torch.zeros(4)
        op(None, Copy(small.clone(), small))
        op(None, Copy(large.clone(), large))
        assert small.tolist() == [0, 0] and large.tolist() == [7, 7, 7, 7]
        with pytest.raises(ValueError, match="got 'cpp': needs 4 rows"):
            op("cpp", Copy(small.clone(), small))
        with pytest.raises(ValueError, match="backend: expected one of reference, cpp, got 'cuda'"):
            op("cuda", Copy(small.clone(), small))
    finally:
        del registry.OPS["refusing"]


def test_import_needs_neither_torch_nor_rich():
    import subprocess
    import sys

    code = (
        "import sys, blockdraft, blockdraft.roofline; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'rich', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
