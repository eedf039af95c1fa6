"""What AMD assembly says of its kernels: registers, LDS, spills, and the instruction mix of the hot
loop. Text in, numbers out."""

import ctypes
import re
from collections import Counter
from dataclasses import dataclass

ARCHES = {"gfx942": 64, "gfx950": 160}  # KiB of LDS in a CU
# per lane of a SIMD, VGPR and AGPR together; waves of a SIMD; SIMDs of a CU
REGISTERS, GRANULE, MAX_WAVES, SIMDS = 512, 8, 8, 4

# cycles that one SIMD's matrix unit spends on an instruction (AMD's matrix instruction calculator;
# f8f6f4: derived)
MFMA_CYCLES = {
    "gfx942": {
        "16x16x4 32": 32,
        "32x32x2 32": 64,
        "16x16x16 16": 16,
        "32x32x8 16": 32,
        "16x16x32 8": 16,
        "32x32x16 8": 32,
    },
    "gfx950": {
        "16x16x4 32": 32,
        "32x32x2 32": 64,
        "16x16x16 16": 16,
        "32x32x8 16": 32,
        "16x16x32 16": 16,
        "32x32x16 16": 32,
        "16x16x32 8": 16,
        "32x32x16 8": 32,
        "16x16x128 8": 32,
        "16x16x128 4": 16,
        "32x32x64 8": 64,
        "32x32x64 4": 32,
    },
}
# fp32: what the quoted fp32 rate (163.4 TFLOP/s of MI300X, 157.3 of MI355X: 64 flops a clock and
# SIMD) leaves for one; the others of gfx950: taken to be gfx942's
_FP32 = ("16x16x4 32", "32x32x2 32")
UNCONFIRMED = {
    "gfx942": _FP32,
    "gfx950": (*_FP32, "16x16x16 16", "32x32x8 16", "16x16x32 8", "32x32x16 8"),
}
# a wave issues at most one instruction in 4 cycles; v_exp and its like take 16
ISSUE_CYCLES, EXP_CYCLES = 4, 16
CLASSES = ("mfma", "valu", "trans", "salu", "lds", "vmem", "branch", "wait")
_PREFIX = (
    ("v_mfma", "mfma"),
    ("v_smfmac", "mfma"),
    ("v_", "valu"),
    ("ds_", "lds"),
    ("global_", "vmem"),
    ("buffer_", "vmem"),
    ("flat_", "vmem"),
    ("scratch_", "vmem"),
    ("s_cbranch", "branch"),
    ("s_branch", "branch"),
    ("s_endpgm", "branch"),
    ("s_setpc", "branch"),
    ("s_waitcnt", "wait"),
    ("s_nop", "wait"),
    ("s_barrier", "wait"),
    ("s_sleep", "wait"),
    ("s_", "salu"),
)
_TRANS = re.compile(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_")
_WIDE = re.compile(r"(global|buffer|flat)_load_(lds_)?dwordx4\b")


@dataclass(frozen=True)
class KernelReport:
    """kernel: its name without namespace and parameters; symbol: as linked. vgpr, agpr, sgpr:
    registers. lds, scratch: bytes. waves_per_simd: occupancy, and what limits it. loop_*:
    instructions of one iteration of the innermost loop with most MFMAs (most instructions where
    there is none) by class, each counted once, in branches and loops within it as well; all 0
    without a loop. loop_mfma_cycles: the matrix unit's, of one wave, None where a shape's cycles
    are not known, mfma_cycles_unconfirmed where nobody confirmed them. loop_issue_cycles: what a
    wave needs to issue them all. bound: the larger of the two over all waves of a SIMD, "issue" or
    "mfma"; "unknown" without cycles, "none" without a loop."""

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


def parse(text: str, arch: str, dynamic_lds_bytes: int = 0) -> list[KernelReport]:
    """Every kernel of an assembly listing. dynamic_lds_bytes: LDS given at launch, on top of the
    declared."""
    if arch not in ARCHES:
        raise ValueError(f"arch: expected one of {', '.join(ARCHES)}, got {arch!r}")
    found = [_kernel(entry, text, arch, dynamic_lds_bytes) for entry in _metadata(text)]
    if not found:
        raise ValueError("assembly: expected .amdgpu_metadata with at least one kernel, got none")
    return found


def _metadata(text: str) -> list[dict[str, str]]:
    """The kernels' scalar entries in .amdgpu_metadata."""
    block = re.search(r"^amdhsa\.kernels:\n(.*?)^(?:amdhsa\.|\.\.\.)", text, re.S | re.M)
    entries = re.split(r"^  - ", block.group(1), flags=re.M)[1:] if block else []
    return [dict(re.findall(r"^(?:    )?\.(\w+): +(\S+)$", entry, re.M)) for entry in entries]


def _kernel(entry: dict[str, str], text: str, arch: str, dynamic_lds: int) -> KernelReport:
    name = entry["name"].strip("'\"")
    body = re.search(
        rf"^{re.escape(name)}:.*?\n(.*?)^\s*\.section\s+\.rodata|^{re.escape(name)}:.*?\n(.*?)^\.Lfunc_end",
        text,
        re.S | re.M,
    )
    lines = _instructions(next(filter(None, body.groups())) if body else "")
    total, agpr = int(entry["vgpr_count"]), int(entry.get("agpr_count", 0))
    lds, threads = (
        int(entry["group_segment_fixed_size"]) + dynamic_lds,
        int(entry["max_flat_workgroup_size"]),
    )
    waves, limit = occupancy(total, lds, threads, arch)
    loop = hot_loop(lines)
    mix = Counter(map(classify, loop))
    mfma = [op for op in loop if classify(op) == "mfma"]
    cycles = [mfma_cycles(op, arch) for op in mfma]
    matrix = None if None in cycles else sum(cycles)
    doubtful = any(_shape(op) in UNCONFIRMED[arch] for op in mfma)
    issue = ISSUE_CYCLES * len(loop)
    vector = ISSUE_CYCLES * mix["valu"] + EXP_CYCLES * mix["trans"]
    bound = (
        "unknown"
        if matrix is None
        else "mfma"
        if matrix and matrix * waves >= max(issue, vector * waves)
        else "issue"
    )
    return KernelReport(
        short_name(name),
        name,
        arch,
        total - agpr,
        agpr,
        int(entry["sgpr_count"]),
        lds,
        int(entry["private_segment_fixed_size"]),
        int(entry["vgpr_spill_count"]),
        int(entry["sgpr_spill_count"]),
        threads,
        waves,
        limit,
        len(loop),
        *(mix[c] for c in CLASSES),
        sum(bool(_WIDE.match(op)) for op in loop),
        len(loop) / len(mfma) if mfma else None,
        matrix,
        doubtful,
        issue,
        bound if loop else "none",
    )


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
    wave_count = -(-threads // 64)
    by_registers = REGISTERS // max(-(-registers // GRANULE) * GRANULE, GRANULE)
    groups = ARCHES[arch] * 1024 // lds_bytes if lds_bytes else MAX_WAVES * SIMDS
    by_lds = groups * wave_count // SIMDS if groups * wave_count >= SIMDS else min(groups, 1)
    limits = {"waves": MAX_WAVES, "registers": by_registers, "LDS": by_lds}
    least = min(limits, key=limits.get)
    return limits[least], least


def classify(instruction: str) -> str:
    if _TRANS.match(instruction):
        return "trans"
    return next((kind for prefix, kind in _PREFIX if instruction.startswith(prefix)), "salu")


def mfma_cycles(instruction: str, arch: str) -> int | None:
    return MFMA_CYCLES[arch].get(_shape(instruction))


def _shape(instruction: str) -> str | None:
    """ "32x32x8 16": rows, columns, depth and bits of the operands."""
    found = re.match(
        r"v_mfma_(?:scale_)?f32_(\d+x\d+x\d+)_?(f32|bf16|f16|fp8|bf8|f8f6f4)", instruction
    )
    if not found:
        return None
    bits = (
        32
        if found[2] == "f32"
        else 16
        if found[2] in ("bf16", "f16")
        else 4
        if re.search(r"cbsz:4\b", instruction)
        else 8
    )
    return f"{found[1]} {bits}"


def _instructions(body: str) -> list[str]:
    """Instructions and labels (which end with a colon), without comments and directives."""
    lines = (line.split(";")[0].strip() for line in body.splitlines())
    return [line for line in lines if line and (line.endswith(":") or not line.startswith("."))]


def hot_loop(lines: list[str]) -> list[str]:
    """Instructions of the innermost loop with most MFMAs; of the innermost with most instructions
    where there is no MFMA."""
    blocks, edges = _blocks(lines)
    loops = _loops(edges)

    def instructions(loop):
        return [op for i in sorted(loop) for op in blocks[i]]

    def weight(loop):
        ops = instructions(loop)
        return sum(classify(op) == "mfma" for op in ops), len(ops)

    useful = [loop for loop in loops if weight(loop)[0]] or loops
    inner = [loop for loop in useful if not any(other < loop for other in useful)]
    return instructions(max(inner, key=weight)) if inner else []


def _blocks(lines: list[str]) -> tuple[list[list[str]], list[set[int]]]:
    """Basic blocks, and the successors of each."""
    blocks, label = [[]], {}
    for line in lines:
        if line.endswith(":"):
            if blocks[-1]:
                blocks.append([])
            label[line[:-1]] = len(blocks) - 1
            continue
        blocks[-1].append(line)
        if classify(line) == "branch":
            blocks.append([])
    edges = []
    for i, block in enumerate(blocks):
        last = block[-1] if block else ""
        target = label.get(last.split()[-1]) if last.startswith(("s_branch", "s_cbranch")) else None
        falls = not last.startswith(("s_branch", "s_endpgm", "s_setpc")) and i + 1 < len(blocks)
        edges.append({j for j in (target, i + 1 if falls else None) if j is not None})
    return blocks, edges


def _loops(edges: list[set[int]]) -> list[set[int]]:
    """Natural loops: for each header, the blocks that reach a back edge to it."""
    before = [{i for i, after in enumerate(edges) if j in after} for j in range(len(edges))]
    everything = set(range(len(edges)))
    dominators = [{0}] + [set(everything) for _ in edges[1:]]
    changed = True
    while changed:
        changed = False
        for j in range(1, len(edges)):
            new = {j} | (
                set.intersection(*(dominators[i] for i in before[j])) if before[j] else set()
            )
            changed |= new != dominators[j]
            dominators[j] = new
    loops = {}
    for i, after in enumerate(edges):
        for header in after & dominators[i]:
            body, open_blocks = loops.setdefault(header, {header}), [i]
            while open_blocks:
                block = open_blocks.pop()
                if block not in body:
                    body.add(block)
                    open_blocks += before[block]
    return list(loops.values())
