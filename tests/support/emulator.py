"""Runs AMD code objects in tinygrad's instruction-level CDNA emulator (a checkout of github.com/tinygrad/tinygrad of August 2026,
given by `pytest --emulator PATH`). It says nothing about speed."""

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

# The checkout computes the row of a 32x32 MFMA result register wrongly.
WRONG = "m_base = c_grp * UOp.const(16, dtypes.int) + UOp.const((out_reg // 4) * 4 + out_reg % 4, dtypes.int)"
RIGHT = "m_base = c_grp * UOp.const(4, dtypes.int) + UOp.const((out_reg // 4) * 8 + out_reg % 4, dtypes.int)"


class Emulator:
    def __init__(self, checkout: Path, scratch: Path):
        """`scratch`: a folder for a `clang` that the emulator calls, if there is none."""
        if not shutil.which("clang"):
            clang = scratch / "clang"
            clang.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang clang "$@"\n')
            clang.chmod(0o755)
            os.environ["PATH"] += os.pathsep + str(scratch)
        os.environ["DEV"] = "CPU"
        sys.path.insert(0, str(checkout))
        from tinygrad.runtime.support.elf import elf_loader

        source = (checkout / "test/mockgpu/amd/emu.py").read_text()
        assert WRONG in source, "the emulator is not the version that these corrections are for"
        self.emu = types.ModuleType("emu")
        self.emu.__file__ = str(checkout / "test/mockgpu/amd/emu.py")
        self.emu.__package__ = "test.mockgpu.amd"
        exec(compile(source.replace(WRONG, RIGHT), self.emu.__file__, "exec"), self.emu.__dict__)
        self.load = elf_loader

    def run(self, code_object: Path, kernel: str, groups: int, threads: int, arguments: bytes) -> None:
        """Launch the kernel whose mangled name contains `kernel`; pointers in the arguments are host addresses."""
        data = code_object.read_bytes()
        image, sections, _ = self.load(data)
        descriptor = symbol(sections, kernel)
        memory = (ctypes.c_uint8 * len(image)).from_buffer_copy(bytes(image))
        lds, private, kernarg = struct.unpack_from("<III", image, descriptor)
        entry = descriptor + struct.unpack_from("<q", image, descriptor + 16)[0]
        rsrc2 = struct.unpack_from("<I", image, descriptor + 52)[0]
        rsrc2 = (rsrc2 & ~(0x1FF << 15)) | ((lds + 511) // 512 << 15)
        segment = (ctypes.c_uint8 * max(kernarg, len(arguments))).from_buffer_copy(arguments.ljust(kernarg, b"\0"))
        base = ctypes.addressof(memory)
        self.emu.run_asm(base + entry, len(image) - entry, groups, 1, 1, threads, 1, 1, ctypes.addressof(segment),
                         rsrc2=rsrc2, scratch_size=private, arch="cdna")


def code_object(source: Path, arch: str, folder: Path) -> Path:
    """A .hip file compiled, assembled and linked by ziglang's clang."""
    from blockdraft.roofline.isa import hip_assembly

    assembly, object_file, linked = (folder / f"{source.stem}.{arch}.{end}" for end in ("s", "o", "co"))
    assembly.write_text(hip_assembly(source, arch, [f"-I{Path(__file__).parent}"]))
    zig = [sys.executable, "-m", "ziglang"]
    assemble = ["clang", "--target=amdgcn-amd-amdhsa", f"-mcpu={arch}", "-c", "-x", "assembler"]
    subprocess.run([*zig, *assemble, assembly, "-o", object_file], check=True)
    subprocess.run([*zig, "ld.lld", "-shared", object_file, "-o", linked], check=True)
    return linked


def symbol(sections, name: str) -> int:
    """Address of the kernel descriptor `*name*.kd`."""
    table = next(s for s in sections if s.name == ".dynsym").content
    names = next(s for s in sections if s.name == ".dynstr").content
    for at in range(0, len(table), 24):
        start, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", table, at)
        found = bytes(names[start : bytes(names).index(b"\0", start)]).decode()
        if name in found and found.endswith(".kd"):
            return value
    raise LookupError(f"no kernel {name}")
