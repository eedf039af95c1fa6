"""The C++ kernels: importing the extension registers them with torch under the schemas of `blockdraft.registry`."""

try:
    from .. import _ops  # noqa: F401
    MISSING = None
except ImportError as error:
    MISSING = f"the C++ extension is not built ({error})"


def unsupported(device_types: tuple[str, ...], *tensors) -> str | None:
    """The reason why the extension cannot take these tensors, or None."""
    if MISSING:
        return MISSING
    kind = tensors[0].device.type
    return None if kind in device_types else f"the C++ kernels run on {' or '.join(device_types)}, not on {kind}"
