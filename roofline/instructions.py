"""AMD instructions by class, and the cycles of those of the matrix unit."""

import re

# A wave issues at most one instruction in 4 cycles; v_exp and its like take 16
ISSUE_CYCLES = 4
EXP_CYCLES = 16

CLASSES = ("mfma", "valu", "trans", "salu", "lds", "vmem", "branch", "wait")
# The first prefix that fits decides
_CLASS_OF_PREFIX = {
    "v_mfma": "mfma",
    "v_smfmac": "mfma",
    "v_": "valu",
    "ds_": "lds",
    "global_": "vmem",
    "buffer_": "vmem",
    "flat_": "vmem",
    "scratch_": "vmem",
    "s_cbranch": "branch",
    "s_branch": "branch",
    "s_endpgm": "branch",
    "s_setpc": "branch",
    "s_waitcnt": "wait",
    "s_nop": "wait",
    "s_barrier": "wait",
    "s_sleep": "wait",
    "s_": "salu",
}
_TRANSCENDENTAL = re.compile(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_")
_WIDE_LOAD = re.compile(r"(global|buffer|flat)_load_(lds_)?dwordx4\b")
_MFMA = re.compile(r"v_mfma_(?:scale_)?f32_(\d+x\d+x\d+)_?(f32|bf16|f16|fp8|bf8|f8f6f4)")

_MISEXECUTED = re.compile(r"v_pk_fma_f32\b.*\bop_sel:\[0,1,0\]")

# Cycles that one SIMD's matrix unit spends on an instruction, by shape and bits of the operands,
# from AMD's matrix instruction calculator; those of f8f6f4 are derived
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
# The cycles of fp32 are what its quoted rate leaves for an instruction: 163.4 TFLOP/s of MI300X and
# 157.3 of MI355X are 64 flops a clock and SIMD. The others of gfx950 are taken from gfx942.
_FP32 = ("16x16x4 32", "32x32x2 32")
_UNCONFIRMED = {
    "gfx942": _FP32,
    "gfx950": (*_FP32, "16x16x16 16", "32x32x8 16", "16x16x32 8", "32x32x16 8"),
}


def classify(instruction: str) -> str:
    """One of CLASSES."""
    if _TRANSCENDENTAL.match(instruction):
        return "trans"
    for prefix, kind in _CLASS_OF_PREFIX.items():
        if instruction.startswith(prefix):
            return kind
    return "salu"


def loads_16_bytes(instruction: str) -> bool:
    return bool(_WIDE_LOAD.match(instruction))


def misexecuted(instruction: str, arch: str) -> bool:
    """gfx950 gives wrong results for a v_pk_fma_f32 whose first result takes the high half of the
    second operand and the low ones of the others (rocMLIR issue 2459)."""
    return arch == "gfx950" and bool(_MISEXECUTED.match(instruction))


def mfma_cycles(instruction: str, arch: str) -> int | None:
    """None where the shape's cycles are not known."""
    return MFMA_CYCLES[arch].get(_shape(instruction))


def mfma_unconfirmed(instruction: str, arch: str) -> bool:
    return _shape(instruction) in _UNCONFIRMED[arch]


def _shape(instruction: str) -> str | None:
    """Rows, columns and depth of the product, and bits of the operands, such as "32x32x8 16"."""
    found = _MFMA.match(instruction)
    return f"{found[1]} {_bits(found[2], instruction)}" if found else None


def _bits(operands: str, instruction: str) -> int:
    if operands == "f32":
        return 32
    if operands in ("bf16", "f16"):
        return 16
    # f8f6f4 names the format of its operands in a modifier, whose 4 is fp4
    return 4 if re.search(r"cbsz:4\b", instruction) else 8
