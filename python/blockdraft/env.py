"""Every environment variable that blockdraft reads."""

import os
from functools import cache


def check_values() -> bool:
    """BLOCKDRAFT_CHECK_VALUES=1: also check the values of index tensors on a GPU, which costs a
    synchronisation a call."""
    return os.environ.get("BLOCKDRAFT_CHECK_VALUES", "0") == "1"


@cache
def triton_interpreter() -> bool:
    """TRITON_INTERPRET=1 (Triton's own, read where a kernel is defined): run the Triton kernels on
    the CPU, slowly."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
