"""GPU kernels for block-diffusion decoding with compressed convolutional attention and top-1 MoE,
as PyTorch ops.

Importing this package imports neither torch nor a GPU runtime: the roofline tool and the command's
help need none. What uses torch is loaded when it is first asked for.
"""

import importlib

__version__ = "0.1.0"

# public name -> the module that defines it
_LAZY = {
    "BlockDecoder": "decode",
    "BlockLayout": "layout",
    "Request": "types",
    "Completion": "types",
    "Rows": "types",
    "MoeWorkspace": "types",
    "Penalties": "types",
    "Sampling": "types",
    "Accepted": "types",
    "words_of": "types",
    "Batch": "batch",
    "choose_layout": "choose",
    "choose_layouts": "choose",
    "Plan": "plan",
}
_MODULES = ("ops", "reference", "models", "decode", "layout", "rng", "testing", "types")

__all__ = list(_LAZY)


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
