"""How many kernels a call of an op starts on a GPU.

A launch costs microseconds, whatever its work, so that an op of little work may be bound by them.
No other module of the roofline counts launches.
"""

LAUNCHES = {
    "rms_norm": 1,
    "linear": 1,
    "cca_qkv": 1,
    "block_attention": 2,  # splits, then their merge
    "zaya_router": 1,
    "fused_moe": 3,
    "accept_drafts": 1,
    "sample_drafts": 1,
    "commit": 1,
}


def launches(op: str) -> int:
    """Kernels that one call starts."""
    return LAUNCHES[op]
