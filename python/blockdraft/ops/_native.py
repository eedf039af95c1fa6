"""The C++ kernels: importing the extension registers them with torch under the schemas of
`blockdraft.registry`."""

from ..native import load

try:
    DEVICES, MISSING = load("_ops").devices.split(), None
except ImportError as error:
    DEVICES, MISSING = [], f"the C++ extension is not built ({error})"


def unsupported(*tensors) -> str | None:
    """The reason why the extension cannot take these tensors, or None."""
    if MISSING:
        return MISSING
    kind = tensors[0].device.type
    return (
        None
        if kind in DEVICES
        else f"the C++ kernels were built for {' and '.join(DEVICES)}, not for {kind}"
    )


def unaligned(**tensors) -> str | None:
    """The reason why rows cannot be read 16 bytes at a time (None entries are skipped), or None."""
    for name, t in tensors.items():
        if t is not None and (
            t.storage_offset() * t.element_size() % 16
            or any(stride * t.element_size() % 16 for stride in t.stride()[:-1])
        ):
            return f"{name}: rows begin at multiples of 16 bytes"
    return None
