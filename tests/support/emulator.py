"""Runs AMD code objects in tinygrad's instruction-level CDNA emulator (a checkout of
github.com/tinygrad/tinygrad of August 2026, given by `pytest --emulator PATH`). It does not model
speed."""

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
import types
from collections import Counter
from functools import cache
from pathlib import Path

import harness
import operations
from corrections import correct_pseudo_code, corrected
from waves import Schedule

from blockdraft.roofline import isa
from blockdraft.roofline.assembly import instructions
from blockdraft.roofline.verdicts import fingerprint


class Emulator:
    def __init__(self, checkout: Path, scratch: Path):
        """`scratch`: a folder for a `clang` script, which the emulator needs if none is
        installed."""
        if not shutil.which("clang"):
            clang = scratch / "clang"
            clang.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang clang "$@"\n')
            clang.chmod(0o755)
            os.environ["PATH"] += os.pathsep + str(scratch)
        os.environ["DEV"] = "CPU"
        sys.path.insert(0, str(checkout))
        from tinygrad.runtime.support.elf import elf_loader

        source = (checkout / "test/mockgpu/amd/emu.py").read_text()
        self.emu = types.ModuleType("emu")
        self.emu.__file__ = str(checkout / "test/mockgpu/amd/emu.py")
        self.emu.__package__ = "test.mockgpu.amd"
        exec(compile(corrected(source), self.emu.__file__, "exec"), self.emu.__dict__)
        correct_pseudo_code(self.emu.PCODE_CDNA)
        self.schedule = self.emu.schedule = Schedule(self.emu.decode_inst)
        self.load = elf_loader
        self.ran: set[tuple[str, str, str]] = set()  # architecture, kernel, fingerprint

    def ran_code(self, arch: str, kernel: str, text: str) -> None:
        """Notes that a kernel of this assembly ran."""
        self.ran.add((arch, kernel, fingerprint(instructions(kernel, text))))

    def run(
        self,
        code_object: Path,
        kernel: str,
        groups: int | tuple[int, ...],
        threads: int,
        arguments: bytes | int,
        dynamic_lds: int = 0,
    ) -> Counter[tuple]:
        """Launches the kernel whose mangled name contains `kernel`. arguments: their bytes or their
        address. Pointers in them are host addresses. Returns how many instructions each wave has
        executed, by (workgroup, wave)."""
        data = code_object.read_bytes()
        image, sections, _ = self.load(data)
        descriptor = symbol(sections, kernel)
        memory = (ctypes.c_uint8 * len(image)).from_buffer_copy(bytes(image))
        lds, private, kernarg = struct.unpack_from("<III", image, descriptor)
        entry = descriptor + struct.unpack_from("<q", image, descriptor + 16)[0]
        rsrc2 = struct.unpack_from("<I", image, descriptor + 52)[0]
        rsrc2 = (rsrc2 & ~(0x1FF << 15)) | ((lds + dynamic_lds + 511) // 512 << 15)
        if isinstance(arguments, int):
            arguments = ctypes.string_at(arguments, kernarg)
        segment = (ctypes.c_uint8 * max(kernarg, len(arguments))).from_buffer_copy(
            arguments.ljust(kernarg, b"\0")
        )
        base = ctypes.addressof(memory)
        operations.machine = data[48]
        self.schedule.begin()
        grid = (groups,) if isinstance(groups, int) else groups
        self.emu.run_asm(
            base + entry,
            len(image) - entry,
            *grid,
            *(1,) * (3 - len(grid)),
            threads,
            1,
            1,
            ctypes.addressof(segment),
            rsrc2=rsrc2,
            scratch_size=private,
            arch="cdna",
        )
        return self.schedule.executed


class HipKernels:
    """The code objects of .hip files, by ziglang's clang, and ops that run on them."""

    def __init__(self, emulator: Emulator, folder: Path):
        self.emulator, self.folder = emulator, folder
        self.code, self.text = cache(self.code), cache(self.text)

    def text(self, source: Path, arch: str) -> str:
        return isa.hip_assembly(source, arch, [f"-I{Path(__file__).parent}"])

    def code(self, source: Path, arch: str) -> Path:
        stem = self.folder / f"{isa.source_name(source)}.{arch}"
        return assembled(self.text(source, arch), arch, stem)

    def launch(
        self, arch: str, op: str, params: harness.Params | None, kind: int
    ) -> dict[str, Counter[tuple]]:
        """All that the op's own HIP launcher starts. kind: as for harness.launched. Returns what
        each launch has executed, by its kernel's symbol."""
        executed = {}

        def run(launch: harness.Launch) -> None:
            source = isa.OPS / launch.op / "hip.hip"
            code, size = self.code(source, arch), (launch.groups, launch.threads)
            self.emulator.ran_code(arch, launch.kernel, self.text(source, arch))
            executed[launch.kernel] = self.emulator.run(
                code, f"{launch.kernel}.kd", *size, launch.argument
            )

        harness.launched(op, params, kind, run)
        return executed


# The emulator executes lanes one by one. If a DPP operation writes the register that it reads from
# other lanes, later lanes would read new values, so it is made to read a copy, in v255. What a
# kernel keeps there is in a255 meanwhile.
IN_PLACE = re.compile(r"^(\s+v_\w+_dpp) (v\d+), \2\b(.*)$", re.M)
COPY = r"\tv_mov_b32_e32 v255, \2\n\1 \2, v255\3"
KEEP = rf"\tv_accvgpr_write_b32 a255, v255\n{COPY}\n\tv_accvgpr_read_b32 v255, a255"
# It reads v128 and above in the short encoding of 16-bit operations as high halves, as RDNA does.
SHORT = re.compile(r"^(\s+v_\w*16\w*)_e32\b", re.M)


def assembled(text: str, arch: str, stem: Path) -> Path:
    """The code object of assembly text."""
    assembly, object_file, linked = (Path(f"{stem}{end}") for end in (".s", ".o", ".co"))
    assembly.write_text(IN_PLACE.sub(KEEP if re.search(r"\bv255\b", text) else COPY, text))
    zig = [sys.executable, "-m", "ziglang"]
    assemble = ["clang", "--target=amdgcn-amd-amdhsa", f"-mcpu={arch}", "-c", "-x", "assembler"]
    subprocess.run([*zig, *assemble, assembly, "-o", object_file], check=True)
    subprocess.run([*zig, "ld.lld", "-shared", object_file, "-o", linked], check=True)
    return linked


def symbol(sections, name: str) -> int:
    """The address of the kernel descriptor whose symbol contains `name`."""
    table = next(s for s in sections if s.name == ".dynsym").content
    names = next(s for s in sections if s.name == ".dynstr").content
    for at in range(0, len(table), 24):
        start, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", table, at)
        found = bytes(names[start : bytes(names).index(b"\0", start)]).decode()
        if name in found and found.endswith(".kd"):
            return value
    raise LookupError(f"no kernel {name}")
