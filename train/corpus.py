"""The text: the standard library of the running Python, without what is held out."""

import random
import sysconfig
from pathlib import Path

import torch

from ..data import BYTE_EOS, HELD_OUT

_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def training_files(tests: bool) -> list[Path]:
    """All modules but the held-out ones and those that test them; `tests`: with the library's own
    tests."""
    root = _stdlib()
    skip = _FOREIGN if tests else _FOREIGN | {"test", "tests", "idle_test", "lib2to3"}
    held_out = HELD_OUT | {f"test_{name}" for name in HELD_OUT}
    return sorted(
        path
        for path in root.rglob("*.py")
        if not skip & set(path.relative_to(root).parts) and path.name not in held_out
    )


def held_out_files() -> list[Path]:
    return [_stdlib() / name for name in sorted(HELD_OUT)]


def tokens(paths: list[Path], seed: int | None = None) -> torch.Tensor:
    """int16: the files' bytes in the order of the paths (`seed`: shuffled), an end after each."""
    paths = list(paths)
    if seed is not None:
        random.Random(seed).shuffle(paths)
    return torch.cat([torch.tensor([*path.read_bytes(), BYTE_EOS]).short() for path in paths])
