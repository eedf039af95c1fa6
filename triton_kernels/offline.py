"""Compiles kernels for a GPU on a machine without one."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def build(target: str, kernel, types: dict, constants: dict, options: dict):
    """The compiled kernel for "gfx942" or "gfx950". types: by name, for parameters that are neither
    constants nor "i32". Pointers are assumed to be aligned to 16 bytes, as torch's are; values of
    type "i32:16" are assumed to be multiples of 16."""
    kinds = {
        p.name: "constexpr" if p.is_constexpr or p.name in constants else types.get(p.name, "i32")
        for p in kernel.params
    }
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(kinds.values())
        if kind.startswith("*") or ":" in kind
    }
    signature = {name: kind.split(":")[0] for name, kind in kinds.items()}
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("hip", target, 64),
        options=options,
    )
