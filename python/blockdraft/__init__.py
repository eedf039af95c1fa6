"""GPU kernels for block-diffusion decoding with compressed convolutional attention and top-1 MoE,
as PyTorch ops.

Importing this package imports neither torch nor a GPU runtime; `blockdraft.ops`,
`blockdraft.models` and `blockdraft.decode` are loaded on first use.
"""

import importlib

__version__ = "0.1.0"

_LAZY = {
    "BlockLayout": "layout",
    "Rows": "types",
    "BlockDecoder": "decode",
    "Request": "decode",
    "Sampling": "types",
    "Accepted": "types",
}

__all__ = list(_LAZY)


def __getattr__(name):
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    if name in ("ops", "reference", "models", "decode", "layout", "rng", "testing", "types"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
