"""Builds the checks of csrc (tests/support/*checks.cpp), which tests call with the parameters that
the extension itself would launch."""

import ctypes
import fcntl
import hashlib
import subprocess
from functools import cache
from pathlib import Path

import torch

from blockdraft import registry
from blockdraft.ops import _native

ROOT = Path(__file__).parents[2]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
TARGETS = {"cpu": 0, "sim": 1, "sim with one buffer": 2}
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
    command = [
        "c++",
        "-std=c++20",
        "-O1",
        "-fPIC",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        *FLAGS,
        f"-I{csrc}",
    ]
    read = [*sources, *csrc.rglob("*.h"), *(ROOT / "tests/support").glob("*.h")]
    key = hashlib.sha256(
        "".join(command[:-1] + [path.read_text() for path in sorted(read)]).encode()
    ).hexdigest()[:16]
    folder = ROOT / "build" / "checks" / key
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "checks.so"
    with open(folder / "lock", "w") as lock:  # only one test process compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            objects = [folder / f"{i}.o" for i in range(len(sources))]
            running = [
                subprocess.Popen([*command, "-c", source, "-o", out])
                for source, out in zip(sources, objects)
            ]
            assert not any([process.wait() for process in running]), "a source does not compile"
            subprocess.run([*command, "-shared", *objects, "-o", folder / "linking.so"], check=True)
            (folder / "linking.so").rename(library)
    return ctypes.CDLL(str(library))


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
