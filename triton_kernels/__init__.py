"""Triton kernels, one file for each op; installed as blockdraft.triton_kernels."""

from .. import env

if env.triton_interpreter():
    from . import interpreter  # noqa: F401  (patches Triton's)
