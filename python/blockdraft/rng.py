"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011).

The key is the request's 64-bit seed. The counter is (position, row, purpose, 0), where position is
n, the prefix length at which the pass began: it grows with every pass, so no number is used twice.
The position of each token would repeat, since the block rule reads all numbers of a pass and the
next pass visits some of the same tokens again.
"""

import torch

# purposes: the test of a draft, the draw of the next token, the draw of a draft
ACCEPT, DRAW, DRAFT = 0, 1, 2

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Ten rounds of the generator. Every entry of counter int64 [...,4], key int64 [...,2] and the
    result int64 [...,4] is a 32-bit word."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        # a product that exceeds int64 wraps around, and still holds all of its 64 bits
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        high0 = (product0 >> 32) & _WORD
        high1 = (product1 >> 32) & _WORD
        c0 = high1 ^ c1 ^ k0
        c1 = product1 & _WORD
        c2 = high0 ^ c3 ^ k1
        c3 = product0 & _WORD
        k0 = (k0 + _WEYL[0]) & _WORD
        k1 = (k1 + _WEYL[1]) & _WORD
    return torch.stack([c0, c1, c2, c3], -1)


def uniform(seed: torch.Tensor, position: torch.Tensor, rows: int, purpose: int) -> torch.Tensor:
    """float64 [B,rows] in [0,1), multiples of 2**-53: one number for each row of each request.
    seed and position are integers [B].

    Each number takes two words: one of 24 bits could not reach the rare ids of a large vocabulary.
    """
    seed = seed.long()[:, None].expand(-1, rows)
    position = position.long()[:, None].expand(-1, rows)
    row = torch.arange(rows, device=seed.device).expand_as(seed)
    counter = torch.stack([position, row, torch.full_like(row, purpose), torch.zeros_like(row)], -1)
    key = torch.stack([seed & _WORD, (seed >> 32) & _WORD], -1)
    word = philox4x32(counter, key)
    bits = (word[..., 0] >> 5) * 2**26 + (word[..., 1] >> 6)
    return bits.double() * 2.0**-53
