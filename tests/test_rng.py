"""The generator against published vectors, and what its numbers depend on."""

import torch

from blockdraft import rng


def test_published_vectors():
    """The known-answer tests that come with Random123 (kat_vectors, philox4x32 10)."""
    ones = 0xFFFFFFFF
    cases = [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    counter, key, expected = (torch.tensor([case[i] for case in cases]) for i in range(3))
    assert torch.equal(rng.philox4x32(counter, key), expected)


def test_uniform_depends_on_everything_and_on_nothing_else():
    seed, position = torch.tensor([1, 1, 2, -7]), torch.tensor([5, 6, 5, 5])
    u = rng.uniform(seed, position, 4, rng.ACCEPT)
    assert u.dtype == torch.float64 and (u >= 0).all() and (u < 1).all() and len(u.unique()) == 16
    assert torch.equal(rng.uniform(seed[2:3], position[2:3], 2, rng.ACCEPT), u[2:3, :2])
    assert not torch.equal(rng.uniform(seed, position, 4, rng.DRAW), u)


def test_uniform_is_uniform():
    u = rng.uniform(torch.arange(20000), torch.zeros(20000), 8, rng.DRAFT)
    counts = torch.histc(u, 64, 0, 1)
    assert ((counts - u.numel() / 64) ** 2 / (u.numel() / 64)).sum() < 110  # chi2(63), p = 2e-4
