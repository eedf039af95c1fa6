"""What both samplers share: the size of vocab_blocks, and the workspace of a row."""

import torch

from ..types import Sampling
from . import _native, _triton

# Ids of a vocab_block, and a bound on the number of vocab_blocks: large vocabularies have larger
# ones, of a multiple of the unit. They are small because sums within one are fp32.
VOCAB_BLOCK, MAX_VOCAB_BLOCKS, VOCAB_BLOCK_UNIT = 4096, 256, 512

# Doubles of a row's workspace: its state, then a partial and a sum for each vocab_block.
HEADER_DOUBLES, VOCAB_BLOCK_DOUBLES = 20, 3
# Of a row that is truncated: what the Triton kernels list of it.
LIST_DOUBLES = 8192

if _native.EXTENSION is not None:
    _native.agree("a row's header", _native.EXTENSION.header_doubles, HEADER_DOUBLES)
    _native.agree(
        "a vocab_block's part", _native.EXTENSION.vocab_block_doubles, VOCAB_BLOCK_DOUBLES
    )


def vocab_block(vocab: int) -> int:
    """Ids of a vocab_block; depends only on the width of the logits."""
    least = -(-vocab // MAX_VOCAB_BLOCKS)
    return max(VOCAB_BLOCK, -(-least // VOCAB_BLOCK_UNIT) * VOCAB_BLOCK_UNIT)


def truncates(*samplings: Sampling) -> bool:
    """Whether any request may truncate."""
    return any(part is not None for sampling in samplings for part in sampling[1:])


def workspace_shape(logits: torch.Tensor, rows: int, truncated: bool) -> tuple[int, int, int]:
    """Shape of the workspace for `rows` rows per request; empty on a CPU, whose kernels have memory
    of their own."""
    batch, _, vocab = logits.shape
    if not _triton.on_gpu(logits):
        return 0, 0, 0
    blocks = -(-vocab // vocab_block(vocab))
    doubles = HEADER_DOUBLES + VOCAB_BLOCK_DOUBLES * blocks
    return batch, rows, doubles + LIST_DOUBLES * truncated
