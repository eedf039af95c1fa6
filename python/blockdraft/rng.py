"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011).

Key: the request's 64-bit seed. Counter: (n of this step, row, purpose, vocabulary block). n grows
with every step, so no number is used twice; a counter made of token positions would repeat, since
block acceptance reads all uniforms of a step and the next step visits some of its positions again.
"""

import torch

ACCEPT, DRAW, DRAFT = 0, 1, 2  # purposes

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Ten rounds. counter int64 [...,4], key int64 [...,2], result int64 [...,4]; every entry is a
    32-bit word."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        # the wrapped int64 holds all 64 bits
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _WORD, (product1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _WORD, high0 ^ c3 ^ k1, product0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return torch.stack([c0, c1, c2, c3], -1)


def uniform(seed: torch.Tensor, position: torch.Tensor, rows: int, purpose: int) -> torch.Tensor:
    """float64 [B,rows] in [0,1), multiples of 2**-53: one number for each row of each request
    (seed, position int [B]).

    Two words each: over 262,272 ids a 24-bit number could not reach the rare ones.
    """
    seed, position = (
        seed.long()[:, None].expand(-1, rows),
        position.long()[:, None].expand(-1, rows),
    )
    row = torch.arange(rows, device=seed.device).expand_as(seed)
    counter = torch.stack([position, row, torch.full_like(row, purpose), torch.zeros_like(row)], -1)
    word = philox4x32(counter, torch.stack([seed & _WORD, (seed >> 32) & _WORD], -1))
    return ((word[..., 0] >> 5) * 2**26 + (word[..., 1] >> 6)).double() * 2.0**-53
