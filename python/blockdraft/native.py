"""The compiled extensions, in the variant that was built for this CPU."""

import importlib
import importlib.util
from types import ModuleType


def load(name: str) -> ModuleType:
    """The module of this name, or its AVX-512 variant where this CPU runs it and there is one.
    ImportError if it is not built."""
    probe = importlib.import_module("._probe", __package__)
    wide = f".{name}_avx512"
    has_wide = probe.has_avx512() and importlib.util.find_spec(wide, __package__)
    return importlib.import_module(wide if has_wide else f".{name}", __package__)
