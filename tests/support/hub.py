"""Loads blockdraft from a layout of the kernels hub, and compares ops with their references:
`python hub.py VARIANT`, where `kernels` is not installed; `python hub.py FOLDER REPOSITORY` where
it is, and LOCAL_KERNELS names FOLDER/build as REPOSITORY."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import torch


def by_path(variant: Path) -> ModuleType:
    """As `kernels` does it."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use(kernel: ModuleType) -> None:
    """Attention of a step with proposals over a paged prefix, experts, and what was drafted."""
    ops, name = kernel.ops, kernel.__name__
    assert kernel.BlockLayout.__module__ == f"{name}.layout"
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    layout = kernel.BlockLayout.tidar(4, P=2)
    rows = kernel.testing.random_rows(layout, [5, 30], generator)
    n = 2 * layout.rows
    table = torch.arange(4, dtype=torch.int32).view(2, 2)
    cache = randn(4, 16, 2, 64), randn(4, 16, 2, 64)
    attention = (randn(n, 8, 64), randn(n, 2, 64), randn(n, 2, 64), *cache, table, rows)
    experts = torch.randint(-1, 4, (n, 1), generator=generator).int()
    moe = (randn(n, 32), experts, torch.rand(n, 1), randn(4, 48, 32) / 6, randn(4, 32, 24) / 5)
    logits, full = randn(3, 2, 100), torch.full((3,), 2, dtype=torch.int32)
    draw = dict(
        seed=torch.arange(3), position=full, drafter_sampling=kernel.Sampling(torch.ones(3))
    )
    calls = {
        "block_attention": lambda backend: ops.block_attention(*attention, backend=backend),
        "fused_moe": lambda backend: ops.fused_moe(*moe, backend=backend),
        "sample_drafts": lambda backend: ops.sample_drafts(logits, full, **draw, backend=backend)[
            0
        ],
    }
    best = "reference" if ops._native.MISSING else "cpp"
    for op, call in calls.items():
        kernel.testing.assert_close(call(best), call("reference"), torch.float32, name=op)
        assert hasattr(getattr(torch.ops, name), f"{op}_{best}")
    assert "blockdraft" not in sys.modules
    print(name, best)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        use(by_path(Path(sys.argv[1])))
    else:
        from kernels import get_kernel, get_local_kernel

        here = get_local_kernel(Path(sys.argv[1]) / "build")
        use(here)
        assert get_kernel(sys.argv[2], version=0) is here
