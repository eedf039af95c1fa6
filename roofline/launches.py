"""How many kernels a call of an op starts on a GPU.

A launch costs microseconds, whatever its work, so that an op of little work may be bound by them.
No other module of the roofline counts launches.
"""

# The least keys of a chunk of the prefix on a GPU: `chunk_keys` of the op block_attention. Two
# chunks that are all of a prefix are one split.
CHUNK_KEYS = 512

# So many pairs of a row and a choice are routed without a sort: `kFewPairs` of fused_moe
FEW_PAIRS = 64

# On a GPU torch's library multiplies. The count is assumed: one launch.
ASSUMED = {"linear": 1}
ONE_LAUNCH = (
    "cca_qkv",
    "commit",
    "moe_dispatch",
    "plan_branches",
    "residual_norm",
    "rope_qkv",
)
KERNELS = (
    *ONE_LAUNCH,
    "block_attention",
    "fused_moe",
    "accept_drafts",
    "sample_drafts",
    "zaya_router",
)


def launches(
    op: str,
    *,
    prefix: int = 0,
    pairs: float = 0,
    choices: int = 1,
    rule: str = "token",
    cut: bool = False,
    logprob: bool = False,
) -> int:
    """Kernels that one call starts, by the schedule of the op:

    block_attention   attend; merge, where the longest `prefix` has more than one split
    cca_qkv           convolve
    commit            commit
    fused_moe         gate and up product, down product; before them dispatch, where there are more
                      `pairs` of a row and a choice than a workgroup routes by itself; combine,
                      where a row has several `choices`
    moe_dispatch      dispatch
    plan_branches     plan
    residual_norm     norm
    rope_qkv          rotate
    accept_drafts     measure; normalise, where `rule` is "block" or rows are `cut` (top-k, top-p,
                      min-p) or mixed; draw; logprob, where log-probabilities are asked for. 2 to 4
                      in all; the Triton kernels start 5 to 9
    sample_drafts     measure; cut, where rows are `cut` (two in Triton); finish
    zaya_router       project, route
    the others        as ASSUMED

    An op ignores the options that are not its own.
    """
    if op == "block_attention":
        return 1 + (prefix > 2 * CHUNK_KEYS)
    if op in ONE_LAUNCH:
        return 1
    if op == "fused_moe":
        return 2 + (pairs > FEW_PAIRS) + (choices > 1)
    if op == "accept_drafts":
        return 2 + (rule == "block" or cut) + logprob
    if op == "sample_drafts":
        return 2 + cut
    if op == "zaya_router":
        return 2
    if op in ASSUMED:
        return ASSUMED[op]
    known = ", ".join(sorted((*KERNELS, *ASSUMED)))
    raise ValueError(f"launches: op: expected one of {known}, got {op!r}")
