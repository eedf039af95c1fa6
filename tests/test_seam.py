"""An op's arguments stand once, in its Args: torch.cpp, params.h and the extension agree with it,
and no op lacks a part."""

import importlib
import re
import subprocess
import sys
from importlib.util import find_spec

import harness
import pytest
import torch
from samples import calls

from blockdraft import ops, reference, registry
from blockdraft.ops import _native
from blockdraft.roofline import costs, launches

OPS = harness.ROOT / "csrc/ops"
KERNELS = sorted(path.parent.name for path in OPS.glob("*/torch.cpp"))
KINDS = {"Tensor": "Tensor", "Optional": "Tensor?", "int64_t": "int", "double": "float"}


def op(name: str) -> registry.Op:
    return registry.OPS[name]


@pytest.mark.parametrize("name", KERNELS)
def test_torch_cpp_takes_the_arguments_of_args(name):
    text = (OPS / name / "torch.cpp").read_text()
    found = re.search(rf"{name}_torch\((.*?)\) \{{", text, re.S).group(1)
    pairs = [argument.split() for argument in found.replace("\n", " ").split(",")]
    declared = [(KINDS.get(kind, kind), argument) for kind, argument in pairs]
    assert declared == [(a.kind, a.name) for a in op(name).arguments]


@pytest.mark.parametrize("name", KERNELS)
def test_params_have_the_fields_of_args_in_their_order(name):
    """And then sizes, which are no arguments."""
    text = (OPS / name / "params.h").read_text()
    body = re.search(r"struct \w+Params \{(.*?)\n\n", text, re.S).group(1)
    fields = []
    for line in re.sub(r"//.*", "", body).replace("\n", " ").split(";"):
        names = re.sub(r"^\s*(?:const\s+)?\w+(?:<[^>]*>)?\s*", "", line.strip())
        fields += [name.strip(" *") for name in names.split(",") if name.strip(" *")]
    assert tuple(fields) == op(name).args._fields


@pytest.mark.parametrize("name", KERNELS)
def test_each_pointer_is_listed(name):
    text = (OPS / name / "params.h").read_text()
    listed = re.search(r"BLOCKDRAFT_POINTERS\((.*?)\)", text, re.S).group(1)
    listed = {item.strip() for item in listed.split(",")}
    groups = {a.path.partition(".")[0] for a in op(name).arguments if a.kind.startswith("Tensor")}
    assert listed == groups


@pytest.mark.skipif(_native.MISSING is not None, reason="the C++ extension is not built")
@pytest.mark.parametrize("name", KERNELS)
def test_the_extension_was_built_for_these_arguments(name):
    assert _native.EXTENSION.signatures[name] == _native.signature(op(name))


def test_a_binary_of_other_sources_is_refused():
    with pytest.raises(ImportError, match="install again.*expected 3, got 2"):
        _native.agree("a size", 2, 3)


@pytest.mark.parametrize("name", sorted(registry.OPS))
def test_no_op_lacks_a_part(name):
    """A reference, a public function, a bench case, costs and a sample (support/samples.py)."""
    assert name in ops.__all__ and name in reference.__all__ and name in calls()
    assert "reference" in op(name).backends
    assert find_spec(f"blockdraft.bench.{name}") is not None
    module = importlib.import_module(f"blockdraft.bench.{name}")
    assert module.cases(True) and callable(module.cost)
    if (OPS / name / "hip.hip").exists():
        assert callable(getattr(costs, name)) and launches.launches(name) >= 1
        assert {"cpp", "triton"} <= set(op(name).backends)


def test_a_freestanding_build_ignores_hip_headers(tmp_path):
    """As they lie on the include path of every ROCm user's machine."""
    pytest.importorskip("ziglang", reason="needs a clang for amdgcn")
    from blockdraft.roofline import isa

    header = tmp_path / "hip/hip_runtime_api.h"
    header.parent.mkdir()
    header.write_text('#error "HIP\'s headers in a build without HIP"\n')
    assert isa.compile_hip(OPS / "commit/hip.hip", "gfx942", [f"-I{tmp_path}"])


def test_args_survive_the_operator():
    """Groups of tensors are taken apart for torch and put together again."""
    for name, call in calls().items():
        found, args = harness.captured(call)
        again = found.unflatten(*found.flatten(args))
        assert found.name == name
        for one, other in zip(found.flatten(args), found.flatten(again)):
            assert one is other


def test_the_roofline_counts_the_launches_that_csrc_starts():
    accept = calls()["accept_drafts"]
    for rule in ("token", "block", "greedy"):
        for logprob in (False, True):
            options = accept.keywords | dict(rule=rule, with_logprob=logprob)
            found = harness.captured(accept.func, *accept.args, **options)
            started = harness.schedule("accept_drafts", harness.recorded(*found))
            counted = launches.launches("accept_drafts", rule=rule, logprob=logprob)
            assert len(started) == counted
    for name in ("block_attention", "cca_qkv", "sample_drafts", "zaya_router"):
        found = harness.captured(calls()[name])
        started = harness.schedule(name, harness.recorded(*found), group_columns=256)
        assert len(started) == launches.launches(name)
    for rows, choices in ((64, 1), (65, 1), (32, 2), (33, 2)):
        experts = torch.zeros(rows, choices, dtype=torch.int32)
        weights = torch.ones(rows, choices)
        call = ops.fused_moe, torch.ones(rows, 8), experts, weights, torch.ones(2, 8, 8)
        found = harness.captured(*call, torch.ones(2, 8, 4))
        started = harness.schedule("fused_moe", harness.recorded(*found), group_columns=64)
        counted = launches.launches("fused_moe", pairs=rows * choices, choices=choices)
        assert len(started) == counted


def test_the_namespace_is_one_constant():
    """A build that sets another has its operators there."""
    code = (
        "import blockdraft.namespace as n; n.NAMESPACE = 'other'\n"
        "import torch, blockdraft.ops; torch.ops.other.fused_moe_reference.default\n"
        "assert blockdraft.ops.moe_dispatch(torch.ones(1, 1).int(), 2, backend='cpp')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
