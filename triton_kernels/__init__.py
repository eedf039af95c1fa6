"""Triton kernels, one file an op; installed as blockdraft.triton_kernels."""

from .. import env

if env.triton_interpreter():
    from . import interpreter

    interpreter.mend()
