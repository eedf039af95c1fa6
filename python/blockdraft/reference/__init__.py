"""The ops in plain torch, as pure functions of tensors: they define what an op means, and are the
backend that is always available."""

from .accept_drafts import accept_drafts
from .block_attention import block_attention
from .cca_qkv import cca_qkv, store_kv
from .commit import commit
from .fused_moe import fused_moe
from .linear import linear
from .moe_dispatch import moe_dispatch
from .plan_branches import plan_branches
from .residual_norm import residual_norm
from .rope_qkv import rope_qkv
from .sample_drafts import sample_drafts
from .zaya_router import zaya_router

__all__ = [
    "accept_drafts",
    "block_attention",
    "cca_qkv",
    "commit",
    "fused_moe",
    "linear",
    "moe_dispatch",
    "plan_branches",
    "residual_norm",
    "rope_qkv",
    "sample_drafts",
    "store_kv",
    "zaya_router",
]
