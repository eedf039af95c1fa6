"""Rotary position embedding of projected queries and keys (arXiv 2104.09864)."""

import torch

from ..types import Rows
from .cca_qkv import rotate


def rope_qkv(q, k, v, cos_sin, rows: Rows, query_scale=None):
    """q [T,Hq,Dh], k and v [T,Hk,Dh] in fp32; dead rows are 0."""
    table = rows.table(len(q))
    angles, live = cos_sin[table.position], table.live[:, None, None]
    q, k = (rotate(x.float(), angles) for x in (q, k))
    if query_scale is not None:
        q = q * query_scale[table.position, None, None]
    return tuple(torch.where(live, x.float(), 0) for x in (q, k, v))
