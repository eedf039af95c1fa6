"""What AMD assembly says of its kernels: registers, LDS, spills, and the instruction mix of the hot
loop. Text in, numbers out."""

import ctypes
import re
from collections import Counter
from dataclasses import dataclass

from .instructions import (
    CLASSES,
    EXP_CYCLES,
    ISSUE_CYCLES,
    classify,
    loads_16_bytes,
    mfma_cycles,
    mfma_unconfirmed,
    misexecuted,
)
from .loops import hot_loop

# KiB of LDS in a CU
ARCHES = {"gfx942": 64, "gfx950": 160}
# Registers of a lane of a SIMD, VGPR and AGPR together, and the least number that a wave gets
REGISTERS = 512
GRANULE = 8
# Waves of a SIMD, and SIMDs of a CU
MAX_WAVES = 8
SIMDS = 4


@dataclass(frozen=True)
class KernelReport:
    """One kernel as it was compiled.

    kernel, symbol      its name without namespace and parameters, and as linked
    vgpr, agpr, sgpr    registers
    lds, scratch        bytes
    waves_per_simd      occupancy; limited_by: what limits it
    misexecuted         instructions that the silicon executes wrongly: instructions.misexecuted
    loop_*              instructions of one iteration of the hot loop by class, each counted once,
                        in branches and loops within it as well; all 0 without a loop
    loop_mfma_cycles    of the matrix unit, for one wave; None where a shape's cycles are not known
    mfma_cycles_unconfirmed    somebody should confirm those cycles
    loop_issue_cycles   what a wave needs to issue all instructions of the loop
    bound               the larger of the two over all waves of a SIMD, "issue" or "mfma";
                        "unknown" without cycles, "none" without a loop
    """

    kernel: str
    symbol: str
    arch: str
    vgpr: int
    agpr: int
    sgpr: int
    lds: int
    scratch: int
    vgpr_spill: int
    sgpr_spill: int
    threads: int
    waves_per_simd: int
    limited_by: str
    misexecuted: int
    loop_instructions: int
    loop_mfma: int
    loop_valu: int
    loop_trans: int
    loop_salu: int
    loop_lds: int
    loop_vmem: int
    loop_branch: int
    loop_wait: int
    loop_loads_16_bytes: int
    instructions_per_mfma: float | None
    loop_mfma_cycles: int | None
    mfma_cycles_unconfirmed: bool
    loop_issue_cycles: int
    bound: str


def check_arch(arch: str) -> None:
    if arch not in ARCHES:
        raise ValueError(f"arch: expected one of {', '.join(ARCHES)}, got {arch!r}")


def parse(text: str, arch: str, dynamic_lds_bytes: int = 0) -> list[KernelReport]:
    """Every kernel of an assembly listing. dynamic_lds_bytes: LDS given at launch, on top of the
    declared."""
    check_arch(arch)
    found = [_kernel(entry, text, arch, dynamic_lds_bytes) for entry in _metadata(text)]
    if not found:
        raise ValueError("assembly: expected .amdgpu_metadata with at least one kernel, got none")
    return found


def _metadata(text: str) -> list[dict[str, str]]:
    """The kernels' scalar entries in .amdgpu_metadata."""
    section = re.search(r"^amdhsa\.kernels:\n(.*?)^(?:amdhsa\.|\.\.\.)", text, re.S | re.M)
    if not section:
        return []
    entries = re.split(r"^  - ", section[1], flags=re.M)[1:]
    return [dict(re.findall(r"^(?:    )?\.(\w+): +(\S+)$", entry, re.M)) for entry in entries]


def _kernel(entry: dict[str, str], text: str, arch: str, dynamic_lds: int) -> KernelReport:
    name = entry["name"].strip("'\"")
    registers = int(entry["vgpr_count"])
    agpr = int(entry.get("agpr_count", 0))
    lds = int(entry["group_segment_fixed_size"]) + dynamic_lds
    threads = int(entry["max_flat_workgroup_size"])
    waves, limit = occupancy(registers, lds, threads, arch)
    code = instructions(name, text)
    return KernelReport(
        kernel=short_name(name),
        symbol=name,
        arch=arch,
        vgpr=registers - agpr,
        agpr=agpr,
        sgpr=int(entry["sgpr_count"]),
        lds=lds,
        scratch=int(entry["private_segment_fixed_size"]),
        vgpr_spill=int(entry["vgpr_spill_count"]),
        sgpr_spill=int(entry["sgpr_spill_count"]),
        threads=threads,
        waves_per_simd=waves,
        limited_by=limit,
        misexecuted=sum(misexecuted(op, arch) for op in code),
        **_loop_figures(hot_loop(code), arch, waves),
    )


class Instruction(str):
    """An instruction or a label. position: where in the sources, if the compiler has told."""

    position = ""


def instructions(name: str, text: str) -> list[Instruction]:
    """Of a kernel, with its labels, without comments and directives."""
    start = re.search(rf"^{re.escape(name)}:.*\n", text, re.M)
    if not start:
        return []
    end = re.compile(r"^\s*\.section\s+\.rodata|^\.Lfunc_end", re.M).search(text, start.end())
    if not end:
        return []
    found = []
    position = ""
    for line in text[start.end() : end.start()].splitlines():
        code, _, comment = (part.strip() for part in line.partition(";"))
        if code.startswith(".loc"):
            position = comment
        elif code and (code.endswith(":") or not code.startswith(".")):
            found.append(Instruction(code))
            found[-1].position = position
    return found


def _loop_figures(loop: list[str], arch: str, waves: int) -> dict:
    """The fields of a report that tell of the hot loop."""
    mix = Counter(map(classify, loop))
    mfma = [op for op in loop if classify(op) == "mfma"]
    cycles = [mfma_cycles(op, arch) for op in mfma]
    matrix = None if None in cycles else sum(cycles)
    issue = ISSUE_CYCLES * len(loop)
    vector = ISSUE_CYCLES * mix["valu"] + EXP_CYCLES * mix["trans"]
    if not loop:
        bound = "none"
    elif matrix is None:
        bound = "unknown"
    elif matrix and matrix * waves >= max(issue, vector * waves):
        bound = "mfma"
    else:
        bound = "issue"
    return {
        "loop_instructions": len(loop),
        **{f"loop_{kind}": mix[kind] for kind in CLASSES},
        "loop_loads_16_bytes": sum(map(loads_16_bytes, loop)),
        "instructions_per_mfma": len(loop) / len(mfma) if mfma else None,
        "loop_mfma_cycles": matrix,
        "mfma_cycles_unconfirmed": any(mfma_unconfirmed(op, arch) for op in mfma),
        "loop_issue_cycles": issue,
        "bound": bound,
    }


def short_name(symbol: str) -> str:
    """A C++ symbol as written, without return type, namespace and parameters; the symbol itself
    where nothing can read it."""
    if not symbol.startswith("_Z"):
        return symbol
    try:
        demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    except OSError:
        return symbol
    demangle.restype = ctypes.c_char_p
    text = demangle(symbol.encode(), None, None, ctypes.byref(ctypes.c_int()))
    name = re.match(r"(?:void )?(.+?>(?=\()|[^(<]+)", text.decode()) if text else None
    return re.sub(r"\w+::", "", name[1]) if name else symbol


def occupancy(registers: int, lds_bytes: int, threads: int, arch: str) -> tuple[int, str]:
    """Waves on a SIMD, and what limits them: registers (of the unified file), LDS, or the
    hardware's 8 waves."""
    waves = -(-threads // 64)
    granules = max(-(-registers // GRANULE), 1)
    by_registers = REGISTERS // (granules * GRANULE)
    workgroups = ARCHES[arch] * 1024 // lds_bytes if lds_bytes else MAX_WAVES * SIMDS
    in_lds = workgroups * waves
    by_lds = in_lds // SIMDS if in_lds >= SIMDS else min(workgroups, 1)
    limits = {"waves": MAX_WAVES, "registers": by_registers, "LDS": by_lds}
    least = min(limits, key=limits.get)
    return limits[least], least
