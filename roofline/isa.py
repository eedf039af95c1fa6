"""Compiles the project's HIP and Triton kernels for AMD without an AMD machine, and reports on
their assembly."""

import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .assembly import ARCHES, KernelReport, parse

CSRC = Path(__file__).resolve().parents[1] / "csrc"


def hip_sources() -> list[Path]:
    """The project's own, in a source checkout."""
    return sorted(CSRC.glob("*.hip"))


def hip_assembly(source: str | Path, arch: str, flags: Sequence[str] = ()) -> str:
    """A .hip file through the clang of `pip install ziglang`, for the device only and without HIP's
    headers."""
    if arch not in ARCHES:
        raise ValueError(f"arch: expected one of {', '.join(ARCHES)}, got {arch!r}")
    if importlib.util.find_spec("ziglang") is None:
        raise ValueError(
            "isa: HIP kernels are compiled by ziglang's clang, which is not installed: pip install 'blockdraft[isa]'"
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.s"
        command = [
            sys.executable,
            "-m",
            "ziglang",
            "clang",
            "--target=x86_64-linux-gnu",
            "-x",
            "hip",
            f"--offload-arch={arch}",
            "--cuda-device-only",
            "-nogpuinc",
            "-nogpulib",
            "-O3",
            "-std=c++20",
            f"-I{CSRC}",
            *flags,
            "-S",
            str(source),
            "-o",
            str(out),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise ValueError(
                f"isa: {source}: {arch}: expected a source that compiles, got\n{done.stderr.strip()[-2000:]}"
            )
        return out.read_text()


def compile_hip(source: str | Path, arch: str, flags: Sequence[str] = ()) -> list[KernelReport]:
    """Every kernel of a .hip file."""
    return parse(hip_assembly(source, arch, flags), arch)


def compile_triton(
    fn, types: dict, constexprs: dict, arch: str, options: dict | None = None
) -> KernelReport:
    """One compilation of a Triton kernel; arguments as those of `triton_kernels.offline.build`."""
    if arch not in ARCHES:
        raise ValueError(f"arch: expected one of {', '.join(ARCHES)}, got {arch!r}")
    try:
        from ..triton_kernels import offline
    except ImportError as error:
        raise ValueError(
            f"isa: Triton kernels need triton with its AMD backend: pip install 'blockdraft[isa]' ({error})"
        ) from error
    built = offline.build(arch, fn, types, constexprs, options)
    return parse(built.asm["amdgcn"], arch, built.metadata.shared)[0]


def triton_compilations(arch: str) -> Iterator[tuple]:
    """(name, fn, types, constexprs, options) of each module in triton_kernels that has
    `compilations(arch)`."""
    package = importlib.import_module("blockdraft.triton_kernels")
    for module in pkgutil.iter_modules(package.__path__, "blockdraft.triton_kernels."):
        listed = getattr(importlib.import_module(module.name), "compilations", None)
        if listed:
            yield from listed(arch)
