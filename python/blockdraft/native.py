"""The compiled extensions, in the variant that was built for this CPU."""

import importlib
import importlib.util
from types import ModuleType


def load(name: str) -> ModuleType:
    """`blockdraft.<name>`, or its AVX-512 variant where this CPU runs it and there is one.
    ImportError if it is not built."""
    probe = importlib.import_module("blockdraft._probe")
    wide = f"blockdraft.{name}_avx512"
    return importlib.import_module(
        wide if probe.has_avx512() and importlib.util.find_spec(wide) else f"blockdraft.{name}"
    )
