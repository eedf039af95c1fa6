"""Compile kernels for a GPU that is not there, and read what became of them."""

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def build(target: str, kernel, signature: dict, constants: dict, options: dict):
    """The compiled kernel for "gfx942" or "gfx950", its pointers aligned to 16 bytes as torch's are."""
    attributes = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=GPUTarget("hip", target, 64), options=options)


def report(compiled) -> dict:
    """Registers, spills, LDS and instructions; the hot loop is the loop with most MFMA."""
    text = compiled.asm["amdgcn"]
    numbers = {name: int(re.search(rf"\.{key}:\s+(\d+)", text)[1]) for name, key in (
        ("vgpr", "vgpr_count"), ("agpr", "agpr_count"), ("sgpr", "sgpr_count"), ("vgpr_spills", "vgpr_spill_count"),
        ("sgpr_spills", "sgpr_spill_count"), ("scratch", "private_segment_fixed_size"))}
    loop = max(loops(text), key=lambda lines: sum("v_mfma" in line for line in lines), default=[])
    count = lambda pattern: sum(bool(re.search(pattern, line)) for line in loop)  # noqa: E731
    return numbers | dict(lds=compiled.metadata.shared, instructions=len(loop), mfma=count("v_mfma"),
                          loads16=count(r"(global|buffer)_load_(lds_)?dwordx4"), loads=count(r"(global|buffer|flat)_load"),
                          lds_reads=count("ds_read"), lds_writes=count("ds_write"), barriers=count("s_barrier"))


def loops(text: str) -> list[list[str]]:
    """Instructions from each label to the last branch back to it."""
    lines = [line.strip() for line in text.splitlines() if line.startswith((".LBB", "\t"))]
    labels = {line.split(":")[0]: i for i, line in enumerate(lines) if line.startswith(".LBB")}
    found = {}
    for i, line in enumerate(lines):
        branch = re.match(r"s_c?branch\w*\s+(\.LBB\w+)", line)
        if branch and labels.get(branch[1], i) < i:
            found[branch[1]] = lines[labels[branch[1]] : i]
    return [[line for line in body if not line.startswith((".", ";"))] for body in found.values()]
