"""What tests of kernels share: one tolerance table, poisoned outputs, random rows."""

from typing import NamedTuple

import torch

from .layout import BlockLayout
from .types import Rows


class Tolerance(NamedTuple):
    """Bounds on the error relative to the reference's largest and RMS magnitude; `why` is the
    bound's reason."""

    max: float
    rms: float
    why: str


TOLERANCES = {
    torch.float32: Tolerance(
        1e-5, 2e-6, "fp32 sums of up to a few thousand terms in another order"
    ),
    torch.bfloat16: Tolerance(
        1.6e-2,
        4e-3,
        "outputs rounded to 8 bits: half a step is 2**-9; products of rounded operands",
    ),
    torch.float16: Tolerance(
        2e-3,
        5e-4,
        "outputs rounded to 11 bits: half a step is 2**-12; products of rounded operands",
    ),
}


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    dtype: torch.dtype | None = None,
    name: str = "output",
    slack: float = 1.0,
    unit: float = 1e-30,
):
    """Values within slack * TOLERANCES[dtype] (default: actual's dtype), infinities and NaN in the
    same places.

    unit: the least size against which errors count; 1 for logarithms, which pass through 0 without
    being more exact there.
    """
    largest, mean, why = TOLERANCES[dtype or actual.dtype]
    bound = Tolerance(slack * largest, slack * mean, why)
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape, (
        f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    )
    finite = expected.isfinite()
    assert torch.equal(
        actual[~finite].nan_to_num(nan=1.5), expected[~finite].nan_to_num(nan=1.5)
    ), f"{name}: non-finite values differ"
    if not finite.any():
        return
    error, scale = (actual - expected)[finite], expected[finite]
    worst, largest = error.abs().max(), scale.abs().max().clamp(min=unit)
    rms, size = error.square().mean().sqrt(), scale.square().mean().sqrt().clamp(min=unit)
    assert worst <= bound.max * largest and rms <= bound.rms * size, (
        f"{name}: max error {worst / largest:.2e} of the largest (allowed {bound.max:.1e}), "
        f"RMS {rms / size:.2e} (allowed {bound.rms:.1e}: {bound.why})"
    )


def poisoned(*shape: int, dtype: torch.dtype, device="cpu") -> torch.Tensor:
    """An output buffer of NaN, or of integers that nothing yields, so that an element that is never
    written is seen."""
    value = torch.nan if dtype.is_floating_point else -77
    return torch.full(shape, value, dtype=dtype, device=device)


def random_branches(
    layout: BlockLayout, draft_len: torch.Tensor, generator, dead: float = 0.2
) -> torch.Tensor:
    """int32 [B,P]: live branches in 1..draft_len+1 in any order, some dead."""
    shape = (len(draft_len), layout.P)
    branch = 1 + (torch.rand(shape, generator=generator) * (draft_len[:, None] + 1)).int()
    lives = (torch.rand(shape, generator=generator) >= dead) & (draft_len[:, None] >= 0)
    return torch.where(lives, branch, -1).int()


def random_rows(
    layout: BlockLayout,
    prefixes: list[int],
    generator,
    dead: float = 0.2,
    full_drafts: bool = False,
) -> Rows:
    """A decode step's rows: unequal prefixes, shortened drafts, dead proposals."""
    batch = len(prefixes)
    draft_len = torch.randint(0, layout.K + 1, (batch,), generator=generator, dtype=torch.int32)
    if full_drafts:
        draft_len.fill_(layout.K)
    return layout.pack(
        torch.tensor(prefixes, dtype=torch.int32),
        draft_len,
        random_branches(layout, draft_len, generator, dead),
        max(prefixes),
    )


def random_pages(tensors: list[torch.Tensor], capacity: list[int], page: int, generator):
    """Scatter per-request tokens [n_b,Hk,Dh] over shuffled pages; unused slots are NaN. Returns
    cache, block_table."""
    counts = [-(-tokens // page) for tokens in capacity]
    ids = torch.randperm(sum(counts) + 2, generator=generator)
    cache = torch.full((len(ids), page, *tensors[0].shape[1:]), torch.nan, dtype=tensors[0].dtype)
    table = torch.zeros(len(counts), max(max(counts), 1), dtype=torch.int32)
    first = 0
    for b, (tokens, count) in enumerate(zip(tensors, counts)):
        table[b, :count] = ids[first : first + count]
        first += count
        for i, token in enumerate(tokens):
            cache[table[b, i // page], i % page] = token
    return cache, table
