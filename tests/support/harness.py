"""Builds the checks of csrc (tests/support/*checks.cpp), which tests call with the parameters that
the extension itself would launch."""

import ctypes
import fcntl
import hashlib
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from blockdraft import registry
from blockdraft.ops import _native

ROOT = Path(__file__).parents[2]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
REPORT = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
TARGETS = {"cpu": 0, "sim": 1, "sim with one buffer": 2}
CXX = ["c++", "-std=c++20", "-O1", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"]
Params = ctypes.Array  # of bytes


class Captured(Exception):
    """Carries an op and its Args out of a public call."""


def captured(call, *args, **options):
    """(op, Args) that the call of a public op would pass to its backend."""

    def carry(self, backend, args):
        raise Captured(self, args)

    own = registry.Op.__call__
    registry.Op.__call__ = carry
    try:
        call(*args, **options)
    except Captured as found:
        return found.args
    finally:
        registry.Op.__call__ = own


def recorded(op, args) -> Params | None:
    """The parameters that the extension's torch.cpp makes of an op's Args; None if it launches
    nothing."""
    _native.EXTENSION.record(True)
    try:
        op.backends["cpp"].run(*op.flatten(args))
    finally:
        _native.EXTENSION.record(False)
    kept = _native.EXTENSION.recorded()
    return ctypes.create_string_buffer(kept) if kept else None


def schedule(op: str, params: Params, group_columns: int = 0) -> list[tuple[int, int]]:
    """(step, groups) of the launches that csrc starts for these parameters."""
    out = (ctypes.c_int64 * 32)()
    count = getattr(checks(), f"schedule_{op}")(params, group_columns, out)
    return [(out[2 * i], out[2 * i + 1]) for i in range(count)]


FLAGS: list[str] = []  # additional compiler flags, from pytest --native-flags


def built(sources, csrc: Path) -> ctypes.CDLL:
    """A shared library of C++ sources that include the headers of `csrc`."""
    command = [*CXX, "-Wno-psabi", *FLAGS, f"-I{csrc}"]
    return _linked("checks", {source: command for source in sources}, csrc)


def _linked(name: str, commands: dict[Path, list], csrc: Path) -> ctypes.CDLL:
    """Compiles each source by its command, in parallel, unless what they read was built before."""
    read = [*commands, *csrc.rglob("*.h"), *(ROOT / "tests/support").glob("*.h")]
    flags = [str(word) for command in commands.values() for word in command[:-1]]
    texts = [path.read_text() for path in sorted(read)]
    key = hashlib.sha256("".join(flags + texts).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "checks" / key
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{name}.so"
    with open(folder / "lock", "w") as lock:  # only one test process compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            objects = [folder / f"{i}.o" for i in range(len(commands))]
            running = [
                subprocess.Popen([*command, "-c", source, "-o", out])
                for (source, command), out in zip(commands.items(), objects)
            ]
            assert not any([process.wait() for process in running]), "a source does not compile"
            link = [*CXX, *FLAGS, "-shared", *objects, "-o", folder / "linking.so"]
            subprocess.run(link, check=True)
            (folder / "linking.so").rename(library)
    return ctypes.CDLL(str(library))


def hip_headers() -> Path | None:
    """Triton's wheel has those of HIP's runtime."""
    found = importlib.util.find_spec("triton")
    folder = Path(found.origin).parent / "backends/amd/include" if found else None
    return folder if folder and folder.exists() else None


@cache
def _launchers() -> ctypes.CDLL:
    """The host's part of every .hip file, by ziglang's clang, with a HIP that reports launches."""
    zig = Path(importlib.util.find_spec("ziglang").origin).parent
    csrc = ROOT / "csrc"
    hip = [sys.executable, "-m", "ziglang", "clang", "--target=x86_64-linux-gnu", "-x", "hip"]
    hip += ["--cuda-host-only", "-nogpuinc", "-nogpulib", "-D__HIP_PLATFORM_AMD__"]
    hip += ["-Xclang", "-fcuda-include-gpubinary", "-Xclang", "/dev/null"]  # no device code
    hip += ["-std=c++20", "-O1", "-fPIC", "-idirafter", zig / "lib/include"]
    hip += ["-isystem", hip_headers(), f"-I{csrc}"]
    commands = {source: hip for source in sorted(csrc.glob("ops/*/hip.hip"))}
    own = ROOT / "tests/support/launches.cpp"
    return _linked("launches", commands | {own: [*CXX, "-Wno-psabi", f"-I{csrc}"]}, csrc)


class Launch(NamedTuple):
    """A kernel that an op starts: its symbol, the op whose .hip file has it, its workgroups and
    their threads, and where its argument lies."""

    kernel: str
    op: str
    groups: int
    threads: int
    argument: int


def launched(op: str, params: Params | None, kind: int, run) -> None:
    """Calls run(Launch) for each launch that the op's own HIP launcher makes, while the arguments
    live. kind: of TYPES; for commit the bytes of a unit, for plan_branches of a probability."""
    failures = []

    def report(kernel, groups, threads, argument):
        try:
            symbol = kernel.decode()
            stem = re.search(r"\d([a-z_]+)_kernel", symbol)[1]
            run(Launch(symbol, stem, groups, threads, argument))
        except BaseException as failure:  # ctypes would only print it
            failures.append(failure)

    callback = REPORT(lambda *launch: None if failures else report(*launch))
    _launchers().report_launches(callback)
    if params is not None:
        getattr(_launchers(), f"launch_{op}")(kind, params)
    if failures:
        raise failures[0]


@cache
def _checks() -> ctypes.CDLL | None:
    """None: they do not compile, which one test after the other would find out again."""
    sources = [
        *sorted((ROOT / "tests/support").glob("*checks.cpp")),
        *sorted((ROOT / "csrc").glob("ops/*/cpu.cpp")),
    ]
    try:
        return built(sources, ROOT / "csrc")
    except AssertionError:
        return None


def checks() -> ctypes.CDLL:
    """The checks (tests/support/*checks.cpp) and the CPU launchers."""
    loaded = _checks()
    assert loaded, (
        "tests/support/*checks.cpp or csrc does not compile: see the first compiler error"
    )
    return loaded


def pointer(t: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())
