"""A row's greatest logits, without a sort: the greatest of each vocab_block, of which the one that
has the greatest of all is read again after each that is taken."""

import triton
import triton.language as tl

from .distribution import LAST, is_kept, log_probability, logits


@triton.jit
def list_greatest(
    distribution,
    row,
    vocabulary,
    tokens,
    logprobs,
    n,
    vocab_block,
    blocks,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Writes the n most probable ids in descending order, equal ones in ascending order of ids, and
    their log-probabilities; -1 and -inf where no more ids have a probability."""
    index = tl.arange(0, BLOCKS)
    greatest = tl.full((BLOCKS,), float("-inf"), tl.float32)
    ids = tl.full((BLOCKS,), LAST, tl.int32)
    taken = tl.full([], float("inf"), tl.float32)
    for block in range(blocks):
        x, token = _following(row, vocabulary, block, vocab_block, taken, -1, TILE)
        greatest = tl.where(index == block, x, greatest)
        ids = tl.where(index == block, token, ids)
    for rank in range(n):
        taken = tl.max(greatest, 0)
        block = tl.min(tl.where(greatest == taken, index, LAST), 0)
        token = tl.min(tl.where(index == block, ids, LAST), 0)
        exists = (taken > float("-inf")) & is_kept(distribution, taken, token)
        tl.store(tokens + rank, tl.where(exists, token, -1))
        value = log_probability(distribution, taken, token)
        tl.store(logprobs + rank, tl.where(exists, value, float("-inf")))
        x, following = _following(row, vocabulary, block, vocab_block, taken, token, TILE)
        greatest = tl.where(index == block, x, greatest)
        ids = tl.where(index == block, following, ids)


@triton.jit
def list_nothing(tokens, logprobs, n):
    for rank in range(n):
        tl.store(tokens + rank, -1)
        tl.store(logprobs + rank, float("-inf"))


@triton.jit
def _following(row, vocabulary, block, vocab_block, before, token, TILE: tl.constexpr):
    """The logit and the id of a vocab_block that follow the logit `before` of `token`."""
    greatest = tl.full([], float("-inf"), tl.float32)
    found = tl.full([], LAST, tl.int32)
    first = block * vocab_block
    for start in range(first, tl.minimum(first + vocab_block, vocabulary.valid), TILE):
        ids = start + tl.arange(0, TILE)
        x = logits(row, vocabulary, start, ids, TILE)
        x = tl.where((x < before) | ((x == before) & (ids > token)), x, float("-inf"))
        top = tl.max(x, 0)
        lowest = tl.min(tl.where(x == top, ids, LAST), 0)
        found = tl.where(top > greatest, lowest, found)
        greatest = tl.maximum(greatest, top)
    return greatest, found
