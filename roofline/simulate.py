"""The decode process drawn at random: a check of `plan` that shares nothing with its arithmetic but
the acceptance."""

from .acceptance import Acceptance


def tokens_per_pass(
    acceptance: Acceptance, branches: tuple[int, ...], passes: int = 1_000_000, seed: int = 0
) -> float:
    """Mean commits of about `passes` passes, over up to 1000 requests side by side after 50 passes
    to settle."""
    import numpy as np

    if not 1000 <= passes <= 10**9:
        raise ValueError(f"simulate: expected 1000 .. {10**9} passes, got {passes!r}")
    rng, K, M = np.random.default_rng(seed), len(acceptance.drafts), len(acceptance.offsets)
    requests, settle = 1000, 50
    drafts, offsets = np.array(acceptance.drafts), np.array(acceptance.offsets)
    length = np.zeros(requests, int)  # D: the first pass has no drafts
    shift = np.zeros(requests, int)
    index, total, steps = np.arange(K), 0, -(-passes // requests)
    for step in range(settle + steps):
        chance = drafts * offsets[np.minimum(shift[:, None] + 1 + index, M - 1)]
        kept = (rng.random((requests, K)) < chance) & (index < length[:, None])
        accepted = np.cumprod(kept, 1).sum(1) if K else np.zeros(requests, int)
        if step >= settle:
            total += int((accepted + 1).sum())
        used = np.zeros(requests, int)
        for c in branches:
            live = np.minimum(c, length + 1)
            used = np.maximum(used, np.where(live <= accepted + 1, live, 0))
        shift = accepted + 1 - used
        length = np.where(used > 0, np.clip(M - 1 - shift, 0, K), 0)
    return total / (requests * steps)
