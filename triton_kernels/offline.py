"""Compiles kernels for a GPU on a machine without one."""

import triton
from triton.backends.amd.compiler import HIPBackend
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def build(target: str, kernel, types: dict, constants: dict, options: dict):
    """The compiled kernel for "gfx942" or "gfx950", as the launcher would compile it. types: by
    name, for parameters that are neither constants nor "i32". What is known of values follows a
    colon: "D", a multiple of 16; "S", a tensor of at most 2 GB. Pointers are both if nothing
    follows."""
    kinds = {
        p.name: "constexpr" if p.is_constexpr or p.name in constants else types.get(p.name, "i32")
        for p in kernel.params
    }
    parts = [kind.partition(":") for kind in kinds.values()]
    known = {
        (i,): HIPBackend.parse_attr(facts if colon else "DS" * kind.startswith("*"))
        for i, (kind, colon, facts) in enumerate(parts)
    }
    signature = {name: kind for name, (kind, *_) in zip(kinds, parts, strict=True)}
    return triton.compile(
        ASTSource(kernel, signature, constants, known),
        target=GPUTarget("hip", target, 64),
        options=options,
    )
