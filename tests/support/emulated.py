"""The Triton kernels' AMD code in an emulator of the instructions."""

import inspect
import struct

import torch
from emulator import assembled
from triton.backends.amd.compiler import HIPBackend

from blockdraft.roofline.assembly import parse
from blockdraft.triton_kernels import offline

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e4m3fnuz: "*fp8e4b8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    int: "i32",
    float: "fp32",
}
OPTIONS = ("num_warps", "num_stages", "matrix_instr_nonkdim", "waves_per_eu", "allow_flush_denorm")


def specialised(parameter, value) -> str:
    """The type of an argument and what Triton's launcher lets the compiler know of its value."""
    if parameter.is_constexpr or value is None:
        return "constexpr"
    kind = TYPES[getattr(value, "dtype", type(value))]
    if isinstance(value, torch.Tensor):
        return f"{kind}:{HIPBackend.get_tensor_specialization(value, align=True)}"
    if parameter.do_not_specialize or isinstance(value, float):
        return kind
    aligned = HIPBackend.get_int_specialization(value, align=True)
    return "constexpr" if value == 1 else f"{kind}:{aligned}"


class Emulated:
    """Stands in for a kernel: compiles it for the very arguments of a launch, and runs that
    code."""

    def __init__(self, kernel, arch, emulator, folder):
        self.kernel, self.arch, self.emulator, self.folder = kernel, arch, emulator, folder
        self.reports = []

    def __getitem__(self, grid):
        return lambda *args, **named: self.launch(grid, args, named)

    def launch(self, grid, args, named):
        options = {key: named.pop(key) for key in OPTIONS if key in named}
        given = inspect.signature(self.kernel.fn).bind(*args, **named).arguments
        types = {p.name: specialised(p, given[p.name]) for p in self.kernel.params}
        fixed = {name: given[name] for name, kind in types.items() if kind == "constexpr"}
        moving = {name: value for name, value in given.items() if name not in fixed}
        built = offline.build(self.arch, self.kernel, types, fixed, options)
        path = assembled(built.asm["amdgcn"], self.arch, self.folder / self.kernel.__name__)
        self.emulator.ran_code(self.arch, self.kernel.__name__, built.asm["amdgcn"])
        self.reports += parse(built.asm["amdgcn"], self.arch, built.metadata.shared)
        packed = struct.pack(
            "".join({"*": "Q", "i": "i", "f": "f"}[types[name][0]] for name in moving),
            *(getattr(value, "data_ptr", lambda value=value: value)() for value in moving.values()),
        )
        packed += bytes(-len(packed) % 8)  # two pointers to scratch memory follow, unused
        self.emulator.run(
            path,
            self.kernel.__name__,
            grid,
            64 * built.metadata.num_warps,
            packed,
            built.metadata.shared,
        )
