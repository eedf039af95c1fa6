"""The decode process drawn at random: a check of `plan` that shares nothing with its arithmetic but
the acceptance."""

from collections.abc import Sequence

from .acceptance import Acceptance
from .plan import Accepting

# Requests side by side, and the passes of each that are left out until the process has settled
REQUESTS = 1000
SETTLING = 50


def tokens_per_pass(
    acceptance: Accepting, branches: Sequence[int], passes: int = 1_000_000, seed: int = 0
) -> float:
    """Mean commits of about `passes` passes of each kind of requests."""
    if not 1000 <= passes <= 10**9:
        raise ValueError(f"simulate: expected 1000 .. {10**9} passes, got {passes!r}")
    return sum(share * _of_kind(kind, branches, passes, seed) for share, kind in acceptance.parts)


def _of_kind(acceptance: Acceptance, branches: Sequence[int], passes: int, seed: int) -> float:
    import numpy as np

    rng = np.random.default_rng(seed)
    drafts = np.array(acceptance.drafts)
    offsets = np.array(acceptance.offsets)
    K = len(drafts)
    M = len(offsets)
    index = np.arange(K)
    # the first pass has no drafts
    length = np.zeros(REQUESTS, int)
    shift = np.zeros(REQUESTS, int)
    counted = -(-passes // REQUESTS)
    total = 0
    for step in range(SETTLING + counted):
        chance = drafts * offsets[np.minimum(shift[:, None] + 1 + index, M - 1)]
        kept = (rng.random((REQUESTS, K)) < chance) & (index < length[:, None])
        accepted = np.cumprod(kept, 1).sum(1) if K else np.zeros(REQUESTS, int)
        if step >= SETTLING:
            total += int((accepted + 1).sum())
        used = np.zeros(REQUESTS, int)
        for c in branches:
            live = np.minimum(c, length + 1)
            used = np.maximum(used, np.where(live <= accepted + 1, live, 0))
        shift = accepted + 1 - used
        length = np.where(used > 0, np.clip(M - 1 - shift, 0, K), 0)
    return total / (REQUESTS * counted)
