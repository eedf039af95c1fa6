"""Speculative acceptance, straight from logits. All rows are measured at once, since a GPU has
nothing better to do; a step is a launch of its own where it needs the whole of what another left.

    MEASURE    a block of a row: what it adds to the row's normaliser
    NORMALISE  a row: its law
    SURPLUS    a block of a row, block mode: what it adds to the sum of (scale * p - q)+
    DECIDE     a request: how many drafts are kept
    WEIGH      a block: its mass in the law that the token is drawn from
    FINISH     a request: the draw, and what follows for the next pass
    LOGPROB    a row: log-probability of its committed token, if wanted

Rows 0..K of a request are the target's, then come the draft's.
"""

import triton
import triton.language as tl

from .acceptance import (
    ACCEPT,
    DRAW,
    Batch,
    Memory,
    Shaping,
    chances,
    decide,
    draw,
    given,
    load_law,
    log_probability,
    next_pass,
    normalise_draft,
    normalise_target,
    row_of_draft,
    row_of_target,
    shifted,
    weigh,
)
from .law import (
    FIELDS,
    SPREAD,
    Vocabulary,
    block_ids,
    exponent,
    mass_of,
    measure,
    tile_ids,
    uniform,
)
from .target import arch, scan_options

MEASURE, NORMALISE, SURPLUS, DECIDE, WEIGH, FINISH, LOGPROB = map(tl.constexpr, range(7))


def launch_metadata(grid, kernel, args):
    batch, rows = args["draft_len"].shape[0], 2 * args["K"] + 1
    return {
        "name": f"accept_drafts {args['STEP']} requests={batch}",
        "bytes": batch * rows * args["valid"] * args["target"].element_size()
        if args["STEP"] == MEASURE.value
        else 0,
    }


@triton.jit(
    launch_metadata=launch_metadata,
    do_not_specialize=["K", "valid", "mask_token", "mask_rows", "proposals", "blocks"],
)
def accept(
    target,
    tokens,
    draft,
    draft_lse,
    draft_len,
    branch,
    seed,
    position,
    uniforms,
    target_temperature,
    target_top_k,
    target_top_p,
    drafter_temperature,
    drafter_top_k,
    drafter_top_p,
    mix,
    remaining,
    accepted,
    next_token,
    proposal,
    shift,
    next_draft_len,
    status,
    logprob,
    workspace,
    target_request,
    target_row,
    draft_request,
    draft_row,
    tokens_row,
    lse_row,
    branch_row,
    uniforms_row,
    logprob_row,
    K,
    valid,
    mask_token,
    mask_rows,
    proposals,
    block,
    blocks,
    RULE: tl.constexpr,
    GREEDY: tl.constexpr,
    DIRAC: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    PROPOSALS: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    PER_BLOCK: tl.constexpr = STEP == MEASURE or STEP == SURPLUS or STEP == WEIGH
    item = tl.program_id(0)
    index = item % blocks
    if PER_BLOCK:
        item = item // blocks
    rows = 2 * K + 1
    step_rows = (
        rows
        if STEP == MEASURE or STEP == NORMALISE
        else K
        if STEP == SURPLUS
        else K + 1
        if STEP == LOGPROB
        else 1
    )
    request = (item // step_rows).to(tl.int64)
    r = item % step_rows
    live = tl.load(draft_len + request)
    heat = tl.load(target_temperature + request)
    shaping = Shaping(tl.where(GREEDY, 0.0, heat), target_top_k, target_top_p)
    drafter = Shaping(tl.load(drafter_temperature + request), drafter_top_k, drafter_top_p)
    sampled = tl.where(DIRAC, False, drafter.temperature > 0)
    space = Vocabulary(valid, mask_token)
    b = Batch(
        request,
        K,
        live,
        target + request * target_request,
        target_row,
        draft + request * draft_request if draft is not None else None,
        draft_row,
        tokens + request * tokens_row,
        tl.load(mix + request) if mix is not None else None,
        sampled,
    )
    base = workspace + request * (rows * (FIELDS + 2 * blocks) + (K + 1) * blocks + 1)
    partials = base + rows * FIELDS
    surplus = partials + rows * 2 * blocks
    memory = Memory(base, partials, surplus, surplus + K * blocks, surplus + (K + 1) * blocks)
    first = index * block
    stop = tl.minimum(first + block, valid)

    if STEP == MEASURE:
        at = partials + r * 2 * blocks + index
        if r <= K:
            if r <= live:
                total, greatest = measure(
                    row_of_target(b, r), space, exponent(shaping.temperature), first, stop, TILE
                )
                tl.store(at, total)
                tl.store(at + blocks, greatest.to(tl.float64))
        elif draft is not None and not DIRAC:
            i = r - K - 1
            unknown = sampled & (i < live)
            if draft_lse is not None:
                if unknown:
                    known, _ = given(b, i, draft_lse, lse_row, drafter, space)
                    unknown = not known
            if unknown:
                total, greatest = measure(
                    row_of_draft(b, i), space, exponent(drafter.temperature), first, stop, TILE
                )
                tl.store(at, total)
                tl.store(at + blocks, greatest.to(tl.float64))
    elif STEP == NORMALISE:
        if r <= K:
            if r <= live:
                normalise_target(b, memory, r, shaping, space, block, blocks, BLOCKS, TILE)
        elif r - K - 1 < live:
            normalise_draft(
                b,
                memory,
                r - K - 1,
                drafter,
                draft_lse,
                lse_row,
                space,
                block,
                blocks,
                BLOCKS,
                TILE,
            )
    elif STEP == SURPLUS:
        if (r > 0) & (r < live):
            p = load_law(memory, r, True)
            q = load_law(memory, K + 1 + r, True)
            if (p.point == SPREAD) & (q.point == SPREAD):
                _, _, _, carry = chances(b, memory, space, ROWS)
                scale = shifted(carry, r)
                mass = tl.zeros([], tl.float64)
                u = uniform(
                    uniforms,
                    request * uniforms_row + r - 1,
                    tl.load(seed + request),
                    tl.load(position + request),
                    r - 1,
                    ACCEPT,
                )
                if u < scale:  # the probability that it is compared with is at most `scale`
                    mass = mass_of(
                        p,
                        row_of_target(b, r),
                        q,
                        row_of_draft(b, r),
                        p.total / q.total / scale,
                        space,
                        first,
                        stop,
                        TILE,
                    )
                tl.store(surplus + r * blocks + index, mass)
    elif STEP == DECIDE:
        if live >= 0:
            a, found, scale = decide(
                b, memory, seed, position, uniforms, uniforms_row, space, blocks, RULE, ROWS
            )
            tl.store(accepted + request, a)
            tl.store(status + request, found)
            tl.store(memory.scale, scale)
    elif STEP == WEIGH:
        if live >= 0:
            if tl.load(status + request) == 0:
                weigh(
                    b,
                    memory,
                    tl.load(accepted + request),
                    tl.load(memory.scale),
                    index,
                    block,
                    blocks,
                    space,
                    TILE,
                )
    elif STEP == FINISH:
        a = tl.full([], -1, tl.int32)
        token = tl.full([], -1, tl.int32)
        found = tl.zeros([], tl.int32)
        if live >= 0:
            found = tl.load(status + request)
            if found == 0:
                u = uniform(
                    uniforms,
                    request * uniforms_row + K,
                    tl.load(seed + request),
                    tl.load(position + request),
                    tl.zeros([], tl.int32),
                    DRAW,
                )
                kept = tl.load(accepted + request)
                token, found = draw(b, memory, kept, u, block, blocks, space, BLOCKS, TILE)
                a = tl.where(token < 0, -1, kept)
        tl.debug_barrier()  # every wave has read what DECIDE left there
        tl.store(accepted + request, a)
        tl.store(next_token + request, token)
        tl.store(status + request, found)
        next_pass(
            b,
            a,
            branch + request * branch_row,
            proposals,
            mask_rows,
            remaining,
            proposal,
            shift,
            next_draft_len,
            PROPOSALS,
        )
    else:
        a = tl.load(accepted + request)
        value = tl.zeros([], tl.float32)
        if r <= a:
            token = tl.load(b.tokens + r, mask=r < a, other=0)
            token = tl.where(r < a, token, tl.load(next_token + request))
            value = log_probability(b, memory, r, token, shaping, space, TILE)
        tl.store(logprob + request * logprob_row + r, value)


def _steps(K: int, blocks: int, surplus: bool, with_logprob: bool):
    """(STEP, programs of a request) of the launches, in order."""
    yield MEASURE.value, (2 * K + 1) * blocks
    yield NORMALISE.value, 2 * K + 1
    if surplus and K > 1:
        yield SURPLUS.value, K * blocks
    yield DECIDE.value, 1
    yield WEIGH.value, blocks
    yield FINISH.value, 1
    if with_logprob:
        yield LOGPROB.value, K + 1


def _constants(K: int, proposals: int, valid: int, blocks: int, mode: str, dirac: bool) -> dict:
    return dict(
        RULE=int(mode == "block"),
        GREEDY=mode == "greedy",
        DIRAC=dirac,
        BLOCKS=max(2, triton.next_power_of_2(blocks)),
        ROWS=max(2, triton.next_power_of_2(K + 1)),
        PROPOSALS=max(2, triton.next_power_of_2(proposals)),
        TILE=tile_ids(block_ids(valid, blocks), valid),
    )


def launch(
    target,
    tokens,
    draft,
    draft_lse,
    draft_len,
    branch,
    mask_rows,
    seed,
    position,
    uniforms,
    target_temperature,
    target_top_k,
    target_top_p,
    drafter_temperature,
    drafter_top_k,
    drafter_top_p,
    mix,
    dirac,
    mode,
    valid,
    mask_token,
    remaining,
    accepted,
    next_token,
    proposal,
    shift,
    next_draft_len,
    status,
    logprob,
    workspace,
    blocks_of,
) -> None:
    """As the op's schema; `blocks_of(vocabulary)` is how many blocks it has."""
    batch, K = tokens.shape
    if batch == 0:
        return
    blocks = blocks_of(valid)
    strides = [
        *target.stride()[:2],
        *(draft.stride()[:2] if draft is not None else (0, 0)),
        tokens.stride(0),
    ]
    strides += [t.stride(0) if t is not None else 0 for t in (draft_lse, branch, uniforms, logprob)]
    constants = _constants(K, branch.shape[1], valid, blocks, mode, dirac)
    surplus = mode == "block" and draft is not None and not dirac
    for step, programs in _steps(K, blocks, surplus, logprob is not None):
        accept[(batch * programs,)](
            target,
            tokens,
            draft,
            draft_lse,
            draft_len,
            branch,
            seed,
            position,
            uniforms,
            target_temperature,
            target_top_k,
            target_top_p,
            drafter_temperature,
            drafter_top_k,
            drafter_top_p,
            mix,
            remaining,
            accepted,
            next_token,
            proposal,
            shift,
            next_draft_len,
            status,
            logprob,
            workspace,
            *strides,
            K,
            valid,
            mask_token,
            mask_rows,
            branch.shape[1],
            block_ids(valid, blocks),
            blocks,
            **constants,
            STEP=step,
            **scan_options(arch()),
        )


def compilations(target: str):
    """(name, kernel, types, constants, options) over ZAYA1-8B's vocabulary, as `launch` compiles
    them; see `offline`."""
    types = dict.fromkeys(
        "tokens draft_len branch position target_top_k drafter_top_k remaining accepted next_token proposal shift "
        "next_draft_len status".split(),
        "*i32",
    )
    types |= dict.fromkeys(
        "draft_lse target_temperature target_top_p drafter_temperature drafter_top_p mix logprob".split(),
        "*fp32",
    )
    types |= dict.fromkeys(
        "target_request target_row draft_request draft_row block".split(), "i32:16"
    )
    types |= {"seed": "*i64", "uniforms": "*fp64", "workspace": "*fp64"}
    bare = dict.fromkeys(
        "uniforms target_top_k target_top_p drafter_top_k drafter_top_p mix remaining".split()
    )
    greedy = bare | dict.fromkeys(("draft", "draft_lse"))
    K, valid, blocks = 16, 262147, 65
    for dtype in ("bf16", "fp16", "fp32"):
        typed = types | {"target": f"*{dtype}", "draft": f"*{dtype}"}
        for name, mode, absent in (
            ("token", "token", bare),
            ("block", "block", bare),
            ("greedy", "greedy", greedy),
            ("full", "block", {}),
        ):
            constants = _constants(K, 3, valid, blocks, mode, mode == "greedy")
            for step, _ in _steps(K, blocks, mode == "block", name == "full"):
                yield (
                    f"accept {name} step={step} {dtype}",
                    accept,
                    typed,
                    constants | absent | dict(STEP=step),
                    scan_options(target),
                )
