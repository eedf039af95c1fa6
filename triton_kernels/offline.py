"""Compiles kernels for a GPU on a machine without one."""

import triton
from triton._C.libtriton import ir
from triton.backends.amd.compiler import HIPBackend
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend


def build(target: str, kernel, types: dict, constants: dict, options: dict):
    """The compiled kernel for "gfx942" or "gfx950", as the launcher would compile it. types: by
    name, for parameters that are neither constants nor "i32". What is known of values follows a
    colon: "D", a multiple of 16; "S", a tensor of at most 2 GB. Pointers are both if nothing
    follows."""
    source = _source(kernel, types, constants)
    return triton.compile(source, target=_device(target), options=options)


def read(target: str, kernel, types: dict, constants: dict, options: dict) -> None:
    """Has the compiler read the kernel and find the type of every value, which is its first stage;
    arguments as those of `build`."""
    backend = make_backend(_device(target))
    parsed = backend.parse_options(dict(options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(parsed), backend.get_module_map()
    source = _source(kernel, types, constants)
    source.make_ir(_device(target), parsed, functions, modules, context)


def _device(target: str) -> GPUTarget:
    return GPUTarget("hip", target, 64)


def _source(kernel, types: dict, constants: dict) -> ASTSource:
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
    return ASTSource(kernel, signature, constants, known)
