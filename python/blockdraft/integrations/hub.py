"""The layout of the kernels hub (`kernels` 0.17): `python -m blockdraft.integrations.hub FOLDER`.

    FOLDER/build/torch-universal/                       Triton kernels and references
    FOLDER/build/torch-stable-abi210-cpu-x86_64-linux/  and what this installation was compiled for

Each variant is this package without its commands, under a name of its own: `kernels` loads it by
path, and its operators live in a namespace that no other build has.

    LOCAL_KERNELS="zyphra/blockdraft=FOLDER/build"
    kernels.get_local_kernel(Path("FOLDER/build")).ops.block_attention(...)
"""

import hashlib
import json
import platform
import shutil
import sys
from pathlib import Path

from .. import __version__

PACKAGE = Path(__file__).parents[1]
# What needs more than torch and Triton, or files beside the code.
LEFT_OUT = {"bench", "roofline", "train", "demo", "data", "integrations", "cli.py", "info.py"}
STABLE_ABI = "torch-stable-abi210"  # of libtorch, as in setup.py


def build(folder: Path) -> list[Path]:
    """Writes the variants; returns their folders."""
    from ..ops import _native

    variants = [_variant(folder, "torch-universal", "universal", native=False)]
    if _native.MISSING is None:
        on_gpu = "cuda" in _native.DEVICES
        backend = _rocm() if on_gpu else "cpu"
        name = f"{STABLE_ABI}-{backend}-{platform.machine()}-{platform.system().lower()}"
        kind = "rocm" if on_gpu else "cpu"
        variants.append(_variant(folder, name, kind, native=True))
    return variants


def _rocm() -> str:
    import torch

    major, minor = torch.version.hip.split(".")[:2]
    return f"rocm{major}{minor}"


def _files(native: bool) -> list[Path]:
    """Of the package, without those that are left out, by path."""
    ends = {".py", ".so"} if native else {".py"}
    found = (path.relative_to(PACKAGE) for path in _sources() if path.suffix in ends)
    return sorted(path for path in found if path.parts[0] not in LEFT_OUT)


def _sources() -> list[Path]:
    """The Triton kernels stand elsewhere in a development install."""
    return [path for path in PACKAGE.rglob("*") if path.is_file()]


def _variant(folder: Path, name: str, kind: str, native: bool) -> Path:
    out = folder / "build" / name
    shutil.rmtree(out, ignore_errors=True)
    digest = hashlib.sha256()
    for path in _files(native):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PACKAGE / path, out / path)
        digest.update(f"{path}\0".encode() + (out / path).read_bytes())
    identity = f"_blockdraft_{kind}_{digest.hexdigest()[:10]}"
    constant = out / "namespace.py"
    before = constant.read_text()
    after = before.replace('NAMESPACE = "blockdraft"', f'NAMESPACE = "{identity}"')
    assert after != before, f"{constant}: expected NAMESPACE = 'blockdraft'"
    constant.write_text(after)
    metadata = {
        "id": identity,
        "name": "blockdraft",
        "version": int(__version__.partition(".")[0]),
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": kind} if native else {"type": "cpu"},
    }
    (out / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m blockdraft.integrations.hub FOLDER")
    for variant in build(Path(sys.argv[1])):
        print(variant)
