"""Compiles the project's HIP and Triton kernels for AMD without an AMD machine, and reports on
their assembly."""

import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .assembly import KernelReport, check_arch, parse

CSRC = Path(__file__).resolve().parents[1] / "csrc"
OPS = CSRC / "ops"


def hip_sources() -> list[Path]:
    """The project's own, in a source checkout."""
    return sorted(OPS.glob("*/hip.hip"))


def source_name(source: str | Path) -> str:
    """The op, for one of `hip_sources`; the file's name for any other source."""
    path = Path(source)
    return path.parent.name if path.name == "hip.hip" else path.name


def hip_assembly(source: str | Path, arch: str, flags: Sequence[str] = ()) -> str:
    """A .hip file through the clang of `pip install ziglang`.

    Only the device code is compiled, and the sources are told so by BLOCKDRAFT_FREESTANDING: this
    clang cannot compile HIP's headers, which may be installed where it finds them.
    """
    check_arch(arch)
    if importlib.util.find_spec("ziglang") is None:
        raise ValueError(
            "isa: HIP kernels are compiled by ziglang's clang, which is not installed: "
            "pip install 'blockdraft[isa]'"
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
            "-DBLOCKDRAFT_FREESTANDING",
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
                f"isa: {source}: {arch}: expected a source that compiles, "
                f"got\n{done.stderr.strip()[-2000:]}"
            )
        return out.read_text()


def compile_hip(source: str | Path, arch: str, flags: Sequence[str] = ()) -> list[KernelReport]:
    """Every kernel of a .hip file."""
    return parse(hip_assembly(source, arch, flags), arch)


def triton_assembly(
    arch: str, fn: Callable, types: dict, constexprs: dict, options: dict | None = None
) -> tuple[str, int]:
    """One compilation of a Triton kernel, and the bytes of LDS that it is launched with; arguments
    as those of `triton_kernels.offline.build`."""
    check_arch(arch)
    try:
        from ..triton_kernels import offline
    except ImportError as error:
        raise ValueError(
            "isa: Triton kernels need triton with its AMD backend: "
            f"pip install 'blockdraft[isa]' ({error})"
        ) from error
    built = offline.build(arch, fn, types, constexprs, options)
    return built.asm["amdgcn"], built.metadata.shared


def compile_triton(
    fn: Callable, types: dict, constexprs: dict, arch: str, options: dict | None = None
) -> KernelReport:
    """The report of `triton_assembly`."""
    text, lds = triton_assembly(arch, fn, types, constexprs, options)
    return parse(text, arch, lds)[0]


def triton_compilations(arch: str) -> Iterator[tuple]:
    """(name, fn, types, constexprs, options) of each module in triton_kernels that has
    `compilations(arch)`."""
    from .. import triton_kernels as package

    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        listed = getattr(module, "compilations", None)
        if listed:
            yield from listed(arch)
