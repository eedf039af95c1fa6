"""Every op passes torch's own checks of an operator, and works inside torch.compile without a graph
break."""

from typing import NamedTuple

import pytest
import torch
from samples import calls, i32

from blockdraft import ops, registry


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
