"""Speculative acceptance from logits. All rows are measured at once, because a GPU would otherwise
idle. Each step is a launch, because it needs all results of the step before.

    MEASURE    a vocab_block of a row: what it adds to the row's normaliser
    NORMALISE  a row: its distribution
    SURPLUS    a vocab_block of a row, block rule: what it adds to the sum of (scale * p - q)+
    DECIDE     a request: how many drafts are kept
    WEIGH      a vocab_block: its mass in the distribution that the token is drawn from
    FINISH     a request: the draw, and the proposal for the next pass
    LOGPROB    a row: log-probability of its committed token, and the most probable ids, if wanted

Rows 0..K of a request are the target's; the drafter's follow.
"""

import triton
import triton.language as tl

from .acceptance import (
    Memory,
    enlist_row,
    given,
    load_distribution,
    measure_row,
    next_pass,
    normalise_draft,
    normalise_target,
    truncate,
    unmixed,
    unmixed_row,
)
from .distribution import (
    FIELDS,
    SPREAD,
    Penalties,
    Vocabulary,
    log_probability,
    logits,
    masses_of,
    tile_ids,
    uniform,
)
from .greatest import list_greatest, list_nothing
from .listing import PLAN, THREADS
from .request import ACCEPT, DRAW, Request, Sampling, row_of_draft, row_of_target
from .residual import draw, weigh
from .rules import BLOCK, GREEDY, TOKEN, chances, decide, shifted
from .target import arch, scan_options

MEASURE, NORMALISE, ENLIST, TRUNCATE, SURPLUS, DECIDE, WEIGH, FINISH, LOGPROB = map(
    tl.constexpr, range(9)
)


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
    do_not_specialize=[
        "K",
        "biases",
        "top_n",
        "valid",
        "mask_token",
        "mask_rows",
        "proposals",
        "blocks",
    ],
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
    target_min_p,
    drafter_temperature,
    drafter_top_k,
    drafter_top_p,
    drafter_min_p,
    touched,
    counts,
    repetition,
    presence,
    frequency,
    bias_ids,
    bias,
    allowed,
    draft_allowed,
    mix,
    remaining,
    accepted,
    next_token,
    proposal,
    shift,
    next_draft_len,
    status,
    logprob,
    top_tokens,
    top_logprobs,
    workspace,
    target_request,
    target_row,
    draft_request,
    draft_row,
    touched_row,
    counts_row,
    bias_ids_row,
    bias_row,
    biases,
    allowed_request,
    allowed_row,
    draft_allowed_request,
    draft_allowed_row,
    tokens_row,
    lse_row,
    branch_row,
    uniforms_row,
    logprob_row,
    workspace_request,
    top_tokens_request,
    top_tokens_row,
    top_logprobs_request,
    top_logprobs_row,
    top_n,
    K,
    valid,
    mask_token,
    mask_rows,
    proposals,
    vocab_block,
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
    PER_BLOCK: tl.constexpr = STEP == MEASURE or STEP == ENLIST or STEP == SURPLUS or STEP == WEIGH
    item = tl.program_id(0)
    index = item % blocks
    if PER_BLOCK:
        item = item // blocks
    rows = 2 * K + 1
    step_rows = (
        rows
        if STEP == MEASURE or STEP == NORMALISE or STEP == ENLIST or STEP == TRUNCATE
        else K
        if STEP == SURPLUS
        else K + 1
        if STEP == LOGPROB
        else 1
    )
    request = (item // step_rows).to(tl.int64)
    row = item % step_rows
    live = tl.load(draft_len + request)
    request_temperature = tl.load(target_temperature + request)
    sampling = Sampling(
        tl.where(GREEDY, 0.0, request_temperature), target_top_k, target_top_p, target_min_p
    )
    drafter = Sampling(
        tl.load(drafter_temperature + request), drafter_top_k, drafter_top_p, drafter_min_p
    )
    sampled = tl.where(DIRAC, False, drafter.temperature > 0)
    vocabulary = Vocabulary(valid, mask_token)
    own = Request(
        request,
        K,
        live,
        target + request * target_request,
        target_row,
        draft + request * draft_request if draft is not None else None,
        draft_row,
        tokens + request * tokens_row,
        allowed + request * allowed_request if allowed is not None else None,
        allowed_row,
        draft_allowed + request * draft_allowed_request if draft_allowed is not None else None,
        draft_allowed_row,
        Penalties(
            touched + request * touched_row,
            counts + request * counts_row,
            tl.load(repetition + request),
            tl.load(presence + request),
            tl.load(frequency + request),
            bias_ids + request * bias_ids_row if bias_ids is not None else touched,
            bias + request * bias_row if bias is not None else touched,
            biases,
            tokens + request * tokens_row,
            K,
        )
        if touched is not None
        else None,
        tl.load(mix + request) if mix is not None else None,
        sampled,
    )
    base = workspace + request * workspace_request
    plans = base + rows * FIELDS
    partials = plans + rows * PLAN
    surplus = partials + rows * 2 * blocks
    scale_at = surplus + (K + 1) * blocks
    memory = Memory(base, plans, partials, surplus, surplus + K * blocks, scale_at, scale_at + 1)
    first = index * vocab_block
    stop = tl.minimum(first + vocab_block, valid)

    if STEP == MEASURE:
        at = partials + row * 2 * blocks + index
        if row <= K:
            if row <= live:
                total, greatest = measure_row(
                    memory,
                    row,
                    request,
                    row_of_target(own, row),
                    sampling,
                    vocabulary,
                    first,
                    stop,
                    blocks,
                    TILE,
                )
                tl.store(at, total)
                tl.store(at + blocks, greatest.to(tl.float64))
        elif draft is not None and not DIRAC:
            i = row - K - 1
            unknown = sampled & (i < live)
            if draft_lse is not None:
                if unknown:
                    known, _, _ = given(own, i, draft_lse, lse_row, vocabulary)
                    unknown = not known
            if unknown:
                total, greatest = measure_row(
                    memory,
                    row,
                    request,
                    row_of_draft(own, i),
                    drafter,
                    vocabulary,
                    first,
                    stop,
                    blocks,
                    TILE,
                )
                tl.store(at, total)
                tl.store(at + blocks, greatest.to(tl.float64))
    elif STEP == NORMALISE:
        if row <= K:
            if row <= live:
                normalise_target(
                    own, memory, row, sampling, vocabulary, vocab_block, blocks, BLOCKS, TILE
                )
        elif row - K - 1 < live:
            normalise_draft(
                own,
                memory,
                row - K - 1,
                drafter,
                draft_lse,
                lse_row,
                vocabulary,
                vocab_block,
                blocks,
                BLOCKS,
                TILE,
            )
    elif STEP == ENLIST:
        if row <= K:
            if row <= live:
                enlist_row(
                    memory,
                    row,
                    row_of_target(own, row),
                    sampling.temperature,
                    vocabulary,
                    first,
                    stop,
                    index,
                    blocks,
                    TILE,
                )
        elif draft is not None and not DIRAC:
            i = row - K - 1
            if i < live:
                enlist_row(
                    memory,
                    row,
                    row_of_draft(own, i),
                    drafter.temperature,
                    vocabulary,
                    first,
                    stop,
                    index,
                    blocks,
                    TILE,
                )
    elif STEP == TRUNCATE:
        if row <= K:
            if row <= live:
                truncate(
                    memory,
                    row,
                    request,
                    row_of_target(own, row),
                    sampling,
                    vocabulary,
                    vocab_block,
                    blocks,
                    BLOCKS,
                    TILE,
                )
        elif draft is not None and not DIRAC:
            i = row - K - 1
            if i < live:
                truncate(
                    memory,
                    row,
                    request,
                    row_of_draft(own, i),
                    drafter,
                    vocabulary,
                    vocab_block,
                    blocks,
                    BLOCKS,
                    TILE,
                )
    elif STEP == SURPLUS:
        if (row > 0) & (row < live):
            p = load_distribution(memory, row, True)
            q = load_distribution(memory, K + 1 + row, True)
            if (p.point == SPREAD) & (q.point == SPREAD):
                _, _, _, carry = chances(own, memory, vocabulary, ROWS)
                scale = shifted(carry, row)
                mass = tl.zeros([], tl.float64)
                u = uniform(
                    uniforms,
                    request * uniforms_row + row - 1,
                    tl.load(seed + request),
                    tl.load(position + request),
                    row - 1,
                    ACCEPT,
                )
                if u < scale:  # otherwise the test of draft row - 1 fails, whatever the sum
                    # not `_`, which has another type outside
                    whole, mass = masses_of(
                        p,
                        row_of_target(own, row),
                        q,
                        row_of_draft(own, row),
                        p.total / q.total / scale,
                        vocabulary,
                        first,
                        stop,
                        TILE,
                    )
                tl.store(surplus + row * blocks + index, mass)
    elif STEP == DECIDE:
        if live >= 0:
            count, found, scale = decide(
                own, memory, seed, position, uniforms, uniforms_row, vocabulary, blocks, RULE, ROWS
            )
            tl.store(accepted + request, count)
            tl.store(status + request, found)
            tl.store(memory.scale, scale)
    elif STEP == WEIGH:
        if live >= 0:
            if tl.load(status + request) == 0:
                weigh(
                    own,
                    memory,
                    tl.load(accepted + request),
                    tl.load(memory.scale),
                    index,
                    vocab_block,
                    blocks,
                    vocabulary,
                    TILE,
                )
    elif STEP == FINISH:
        count = tl.full([], -1, tl.int32)
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
                token, found = draw(
                    own, memory, kept, u, vocab_block, blocks, vocabulary, BLOCKS, TILE
                )
                count = tl.where(token < 0, -1, kept)
        tl.debug_barrier()  # all waves have read DECIDE's results, which are overwritten now
        tl.store(accepted + request, count)
        tl.store(next_token + request, token)
        tl.store(status + request, found)
        next_pass(
            own,
            count,
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
        count = tl.load(accepted + request)
        value = tl.zeros([], tl.float32)
        if top_tokens is not None:
            top_tokens += request * top_tokens_request + row * top_tokens_row
            top_logprobs += request * top_logprobs_request + row * top_logprobs_row
        if row <= count:
            token = tl.load(own.tokens + row, mask=row < count, other=0)
            token = tl.where(row < count, token, tl.load(next_token + request))
            read = unmixed_row(own, row)
            p = unmixed(
                own, memory, row, read, sampling, vocabulary, vocab_block, blocks, BLOCKS, TILE
            )
            value = log_probability(p, logits(read, vocabulary, token, token, 1), token)
            if top_tokens is not None:
                list_greatest(
                    p,
                    read,
                    vocabulary,
                    top_tokens,
                    top_logprobs,
                    top_n,
                    vocab_block,
                    blocks,
                    BLOCKS,
                    TILE,
                )
        elif top_tokens is not None:
            list_nothing(top_tokens, top_logprobs, top_n)
        tl.store(logprob + request * logprob_row + row, value)


def _steps(K: int, blocks: int, truncated: bool, surplus: bool, with_logprob: bool):
    """(STEP, programs of each request) of the launches, in order."""
    yield MEASURE.value, (2 * K + 1) * blocks
    yield NORMALISE.value, 2 * K + 1
    if truncated:
        yield ENLIST.value, (2 * K + 1) * blocks
        yield TRUNCATE.value, 2 * K + 1
    if surplus and K > 1:
        yield SURPLUS.value, K * blocks
    yield DECIDE.value, 1
    yield WEIGH.value, blocks
    yield FINISH.value, 1
    if with_logprob:
        yield LOGPROB.value, K + 1


def _threads(step: int, truncated: bool) -> int:
    if not truncated or step not in (t.value for t in (NORMALISE, ENLIST, TRUNCATE, LOGPROB)):
        return 256
    return 2 * THREADS if step == NORMALISE.value else THREADS  # it surveys two kinds of rows


def _constants(
    K: int, proposals: int, valid: int, vocab_block: int, rule: int, dirac: bool
) -> dict:
    return dict(
        RULE=int(rule == BLOCK.value),
        GREEDY=rule == GREEDY.value,
        DIRAC=dirac,
        BLOCKS=max(2, triton.next_power_of_2(triton.cdiv(valid, vocab_block))),
        ROWS=max(2, triton.next_power_of_2(K + 1)),
        PROPOSALS=max(2, triton.next_power_of_2(proposals)),
        TILE=tile_ids(vocab_block, valid),
    )


def launch(args) -> None:
    """Runs the kernels on `ops.accept_drafts.Args`."""
    batch, K = args.draft_tokens.shape
    if batch == 0:
        return
    target, draft, proposals = args.target_logits, args.draft_logits, args.branch.shape[1]
    valid, vocab_block = args.num_valid_vocab, args.vocab_block
    blocks = triton.cdiv(valid, vocab_block)
    given = args.draft_tokens, args.draft_lse, args.branch, args.uniforms, args.target_logprob
    p = args.penalties
    strides = [
        *target.stride()[:2],
        *(draft.stride()[:2] if draft is not None else (0, 0)),
        *(t.stride(0) if t is not None else 0 for t in (p.touched, p.counts, p.bias_ids, p.bias)),
        p.bias.shape[1] if p.bias is not None else 0,
        *(
            stride
            for rows in (args.allowed, args.draft_allowed)
            for stride in (rows.stride()[:2] if rows is not None else (0, 0))
        ),
        *(t.stride(0) if t is not None else 0 for t in given),
        args.workspace.stride(0),
        *(
            stride
            for listed in (args.top_tokens, args.top_logprobs)
            for stride in (listed.stride()[:2] if listed is not None else (0, 0))
        ),
        0 if args.top_tokens is None else args.top_tokens.shape[2],
    ]
    constants = _constants(K, proposals, valid, vocab_block, args.rule, args.dirac)
    surplus = args.rule == BLOCK.value and draft is not None and not args.dirac
    samplings = (*args.target_sampling[1:], *args.drafter_sampling[1:])
    truncated = any(t is not None for t in samplings)
    for step, programs in _steps(K, blocks, truncated, surplus, args.target_logprob is not None):
        accept[(batch * programs,)](
            target,
            args.draft_tokens,
            draft,
            args.draft_lse,
            args.draft_len,
            args.branch,
            args.seed,
            args.position,
            args.uniforms,
            *args.target_sampling,
            *args.drafter_sampling,
            *args.penalties,
            args.allowed,
            args.draft_allowed,
            args.mix,
            args.remaining,
            args.accepted,
            args.next_token,
            args.proposal,
            args.shift,
            args.next_draft_len,
            args.status,
            args.target_logprob,
            args.top_tokens,
            args.top_logprobs,
            args.workspace,
            *strides,
            K,
            valid,
            args.mask_token,
            args.mask_rows,
            proposals,
            vocab_block,
            blocks,
            **constants,
            STEP=step,
            **scan_options(arch(), _threads(step, truncated)),
        )


def compilations(target: str):
    """(name, kernel, types, constants, options) over ZAYA1-8B's vocabulary, as `launch` compiles
    them; see `offline`."""
    types = dict.fromkeys(
        "tokens draft_len branch position target_top_k drafter_top_k touched counts bias_ids "
        "allowed draft_allowed remaining accepted next_token proposal shift next_draft_len "
        "status top_tokens".split(),
        "*i32",
    )
    types |= dict.fromkeys(
        "target_temperature target_top_p target_min_p drafter_temperature drafter_top_p "
        "drafter_min_p repetition presence frequency bias mix logprob top_logprobs".split(),
        "*fp32",
    )
    types |= dict.fromkeys(
        "target_request target_row draft_request draft_row vocab_block".split(), "i32:D"
    )
    types |= {"seed": "*i64"} | dict.fromkeys("uniforms draft_lse workspace".split(), "*fp64")
    unchanged = dict.fromkeys(
        "uniforms touched counts repetition presence frequency bias_ids bias allowed draft_allowed "
        "mix remaining top_tokens top_logprobs".split()
    )
    bare = unchanged | dict.fromkeys(
        f"{rows}_{cut}" for rows in ("target", "drafter") for cut in ("top_k", "top_p", "min_p")
    )
    greedy = bare | dict.fromkeys(("draft", "draft_lse"))
    K, valid, vocab_block, blocks = 16, 262147, 4096, 65
    for dtype in ("bf16", "fp16", "fp32"):
        typed = types | {"target": f"*{dtype}", "draft": f"*{dtype}"}
        for name, rule, absent in (
            ("token", TOKEN, bare),
            ("block", BLOCK, bare),
            ("greedy", GREEDY, greedy),
            ("truncated", TOKEN, unchanged),
            ("full", BLOCK, {}),
        ):
            constants = _constants(K, 3, valid, vocab_block, rule.value, rule is GREEDY)
            truncated = name in ("truncated", "full")
            for step, _ in _steps(K, blocks, truncated, rule is BLOCK, name == "full"):
                yield (
                    f"accept {name} step={step} {dtype}",
                    accept,
                    typed,
                    constants | absent | dict(STEP=step),
                    scan_options(target, _threads(step, truncated)),
                )
