"""Every environment variable that blockdraft reads."""

import os


def check_values() -> bool:
    """BLOCKDRAFT_CHECK_VALUES=1: also check the values of index tensors on a GPU, which costs a synchronisation a call."""
    return os.environ.get("BLOCKDRAFT_CHECK_VALUES", "0") == "1"
