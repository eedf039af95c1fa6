"""Triton kernels: a file for each op, and what they are made of; installed as
blockdraft.triton_kernels."""

from .. import env

if env.triton_interpreter():
    from . import interpreter

    interpreter.mend()
