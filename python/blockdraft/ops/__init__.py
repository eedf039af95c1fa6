"""The public ops. Each checks its arguments, then writes its outputs by one backend
(`backend=None`: the first one that supports them). A tensor passed as an output is written in place
and returned."""

from .accept_drafts import accept_drafts, accept_drafts_workspace
from .block_attention import block_attention, block_attention_workspace
from .cca_qkv import cca_qkv
from .commit import commit
from .fused_moe import fused_moe
from .linear import linear
from .moe_dispatch import moe_dispatch
from .plan_branches import plan_branches
from .residual_norm import residual_norm
from .rope_qkv import rope_qkv
from .sample_drafts import sample_drafts, sample_drafts_workspace
from .zaya_router import zaya_router

__all__ = [
    "accept_drafts",
    "accept_drafts_workspace",
    "block_attention",
    "block_attention_workspace",
    "cca_qkv",
    "commit",
    "fused_moe",
    "linear",
    "moe_dispatch",
    "plan_branches",
    "residual_norm",
    "rope_qkv",
    "sample_drafts",
    "sample_drafts_workspace",
    "zaya_router",
]
