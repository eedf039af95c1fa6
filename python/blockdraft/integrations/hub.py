"""The layout of the kernels hub (`kernels` 0.17): `python -m blockdraft.integrations.hub FOLDER`.

    FOLDER/build/torch-universal/                       Triton kernels and references
    FOLDER/build/torch-stable-abi210-cpu-x86_64-linux/  and what this installation was compiled for

Each variant is this package without commands and models, under a name of its own: `kernels` loads
it by path, and its operators live in a namespace that no other build has.

    LOCAL_KERNELS="me/blockdraft=FOLDER/build"
    kernels.get_local_kernel(Path("FOLDER/build")).ops.block_attention(...)
"""

import hashlib
import importlib
import json
import platform
import shutil
import sys
from pathlib import Path

from .. import __version__

PACKAGE = Path(__file__).parents[1]
KEPT = {"ops", "reference", "triton_kernels"}  # the other folders need more than torch and Triton
LEFT_OUT = {"cli.py", "info.py"}
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


def _files(native: bool) -> dict[Path, Path]:
    """From their place in a variant to where they are."""
    found = {path.relative_to(PACKAGE): path for path in PACKAGE.glob("*.py")}
    if native:
        found |= {path.relative_to(PACKAGE): path for path in PACKAGE.glob("*.so")}
    for folder in KEPT:
        package = importlib.import_module(f"..{folder}", __package__)  # may stand elsewhere
        for path in Path(package.__file__).parent.glob("*.py"):
            found[Path(folder, path.name)] = path
    return {place: found[place] for place in sorted(found) if place.name not in LEFT_OUT}


def _variant(folder: Path, name: str, kind: str, native: bool) -> Path:
    out = folder / "build" / name
    shutil.rmtree(out, ignore_errors=True)
    digest = hashlib.sha256()
    for place, path in _files(native).items():
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / place)
        digest.update(f"{place}\0".encode() + path.read_bytes())
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
