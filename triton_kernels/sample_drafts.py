"""Draws the next drafts from the drafter's logits: one launch measures every vocab_block of every
row, the last one draws from every row. Where rows are truncated, two between them plan and fill
lists."""

import triton
import triton.language as tl

from .distribution import (
    LOG2_E,
    Changed,
    Masked,
    Row,
    Vocabulary,
    conclude,
    exponent,
    find,
    lowest,
    measure,
    tile_ids,
    uniform,
    walk,
)
from .images import spare
from .limits import limits, truncates
from .listing import PLAN, THREADS, enlist, listing_at, needs_sample, survey
from .target import arch, scan_options
from .truncation import truncated, with_cut

NAMES = ("measure", "survey", "enlist", "finish")
MEASURE, SURVEY, ENLIST, FINISH = map(tl.constexpr, range(len(NAMES)))
DRAFT = tl.constexpr(2)  # purpose of a uniform


def launch_metadata(grid, kernel, args):
    rows, vocab = args["draft_len"].shape[0] * args["drafts"], args["valid"]
    measured = rows * vocab * (args["STEP"] in (MEASURE.value, ENLIST.value))
    return {
        "name": f"sample_drafts rows={rows}",
        "flops32": 4 * measured,
        "bytes": measured * args["logits"].element_size(),
    }


@triton.jit(
    launch_metadata=launch_metadata,
    do_not_specialize=["valid", "biases", "mask_token", "drafts", "blocks"],
)
def sample(
    logits,
    draft_len,
    seed,
    position,
    uniforms,
    temperature,
    top_k,
    top_p,
    min_p,
    touched,
    counts,
    repetition,
    presence,
    frequency,
    bias_ids,
    bias,
    allowed,
    tokens,
    lse,
    workspace,
    logits_request,
    logits_row,
    touched_row,
    counts_row,
    bias_ids_row,
    bias_row,
    biases,
    allowed_request,
    allowed_row,
    uniforms_row,
    workspace_row,
    drafts,
    valid,
    mask_token,
    vocab_block,
    blocks,
    PEAK: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    """A program measures or lists a vocab_block of a row, or surveys or draws from a row. Where the
    draft is the argmax, the normaliser is that of the raw logits."""
    PER_BLOCK: tl.constexpr = STEP == MEASURE or STEP == ENLIST
    TRUNCATED: tl.constexpr = top_k is not None or top_p is not None or min_p is not None
    item = tl.program_id(0)
    at = item // blocks if PER_BLOCK else item
    request = at // drafts
    i = at % drafts
    live = i < tl.load(draft_len + request)
    request_temperature = tl.load(temperature + request)
    peak = PEAK | (request_temperature <= 0)
    request_temperature = tl.where(peak, 1.0, request_temperature)
    own = logits + request.to(tl.int64) * logits_request + i.to(tl.int64) * logits_row
    words = None
    if allowed is not None:
        words = allowed + request.to(tl.int64) * allowed_request + i.to(tl.int64) * allowed_row
    if touched is not None:
        bits = touched + request.to(tl.int64) * touched_row
        row = Changed(
            own,
            own,
            tl.full([], 1, tl.float32),
            words if allowed is not None else bits,
            tl.full([], allowed is not None, tl.int1),
            bits,
            counts + request.to(tl.int64) * counts_row,
            tl.load(repetition + request),
            tl.load(presence + request),
            tl.load(frequency + request),
            bias_ids + request * bias_ids_row if bias_ids is not None else touched,
            bias + request * bias_row if bias is not None else touched,
            biases,
            tokens,
            0 * i,
        )
    elif allowed is not None:
        row = Masked(own, words)
    else:
        row = Row(own)
    LOGITS: tl.constexpr = TILE // 8 if TRUNCATED else TILE  # at a time, beside a list
    vocabulary = Vocabulary(valid, mask_token)
    SPARE: tl.constexpr = spare(logits.dtype.element_ty, len(row))
    plan = workspace + at.to(tl.int64) * workspace_row
    partials = plan + PLAN
    listing = listing_at(plan, partials + 2 * blocks, partials + 4 * blocks)
    index = item % blocks
    first = index * vocab_block
    stop = tl.minimum(first + vocab_block, valid)
    if STEP == MEASURE:
        if live:
            scale = exponent(request_temperature)
            sampled = needs_sample(vocabulary, top_k, top_p, min_p, request)
            sample_at = listing.sample if TRUNCATED else None
            total, greatest = measure(row, vocabulary, scale, first, stop, sample_at, sampled, TILE)
            tl.store(partials + index, total)
            tl.store(partials + blocks + index, greatest.to(tl.float64))
    elif STEP == ENLIST:
        if live & ~peak:
            scale = exponent(request_temperature)
            enlist(scale, row, vocabulary, listing, first, stop, index, blocks, SPARE, TILE)
    else:
        token = tl.full([], -1, tl.int32)
        top = tl.full([], 0, tl.float64)
        log_sum = top
        cut = top
        tie = top
        if live:
            block = tl.arange(0, BLOCKS)
            sums = tl.load(partials + block, mask=block < blocks, other=0)
            greatest = tl.load(
                partials + blocks + block, mask=block < blocks, other=float("-inf")
            ).to(tl.float32)
            distribution = conclude(
                sums, greatest, request_temperature, None, vocabulary, vocab_block, TILE
            )
            kept_by = limits(distribution, vocabulary, top_k, top_p, min_p, request)
            if STEP == SURVEY:
                survey(distribution, kept_by, vocabulary, listing, SPARE)
            elif distribution.status == 0:
                total = distribution.total
                cut = distribution.cut.to(tl.float64)
                tie = distribution.tie.to(tl.float64)
                if peak:
                    token = lowest(
                        sums, greatest, distribution.top, row, vocabulary, vocab_block, LOGITS
                    )
                else:
                    u = uniform(
                        uniforms,
                        request.to(tl.int64) * uniforms_row + i,
                        tl.load(seed + request),
                        tl.load(position + request),
                        i,
                        DRAFT,
                    )
                    if truncates(kept_by):
                        kept, first, stop, r = truncated(
                            distribution,
                            kept_by,
                            row,
                            vocabulary,
                            listing,
                            u,
                            vocab_block,
                            blocks,
                            SPARE,
                            BLOCKS,
                            LOGITS,
                        )
                        total = kept.total
                        cut = kept.cut.to(tl.float64)
                        tie = kept.tie.to(tl.float64)
                    else:
                        whole = tl.where(
                            sums > 0,
                            sums
                            * tl.exp2(
                                (greatest.to(tl.float64) - distribution.top) * distribution.scale
                            ),
                            0,
                        )
                        chosen, r = find(whole, u * total)
                        first = chosen * vocab_block
                        stop = tl.minimum(first + vocab_block, valid)
                    kept = with_cut(distribution, cut.to(tl.float32), tie.to(tl.int32), total)
                    HALF: tl.constexpr = TILE // 2 if TRUNCATED else TILE
                    token = walk(
                        kept, row, None, None, total, vocabulary, first, stop, r, False, HALF
                    )
                top = distribution.top.to(tl.float64)
                log_sum = tl.log2(total) / LOG2_E
        if STEP == FINISH:
            tl.store(tokens + at, token)
            tl.store(lse + at * 4, top)
            tl.store(lse + at * 4 + 1, log_sum)
            tl.store(lse + at * 4 + 2, cut)
            tl.store(lse + at * 4 + 3, tie)


def _steps(rows: int, blocks: int, truncated: bool):
    """(STEP, programs) of the launches, in order."""
    yield MEASURE.value, rows * blocks
    if truncated:
        yield SURVEY.value, rows
        yield ENLIST.value, rows * blocks
    yield FINISH.value, rows


def _threads(step: int, truncated: bool) -> int:
    return THREADS if truncated and step != MEASURE.value else 256


def _constants(valid: int, vocab_block: int) -> dict:
    return dict(
        BLOCKS=max(2, triton.next_power_of_2(triton.cdiv(valid, vocab_block))),
        TILE=tile_ids(vocab_block, valid),
    )


def launch(args) -> None:
    """Runs the kernels on `ops.sample_drafts.Args`."""
    logits, uniforms = args.logits, args.uniforms
    if logits.numel() == 0:
        return
    p = args.penalties
    valid, vocab_block = args.num_valid_vocab, args.vocab_block
    blocks, rows = triton.cdiv(valid, vocab_block), logits.shape[0] * logits.shape[1]
    truncated = any(t is not None for t in args.drafter_sampling[1:])
    for step, programs in _steps(rows, blocks, truncated):
        sample[(programs,)](
            logits,
            args.draft_len,
            args.seed,
            args.position,
            uniforms,
            *args.drafter_sampling,
            *p,
            args.allowed,
            args.draft_tokens,
            args.draft_lse,
            args.workspace,
            *logits.stride()[:2],
            *(
                t.stride(0) if t is not None else 0
                for t in (p.touched, p.counts, p.bias_ids, p.bias)
            ),
            p.bias.shape[1] if p.bias is not None else 0,
            *(args.allowed.stride()[:2] if args.allowed is not None else (0, 0)),
            uniforms.stride(0) if uniforms is not None else 0,
            args.workspace.stride(1),
            logits.shape[1],
            valid,
            args.mask_token,
            vocab_block,
            blocks,
            PEAK=args.greedy,
            STEP=step,
            **_constants(valid, vocab_block),
            **scan_options(arch(), _threads(step, truncated)),
        )


def compilations(target: str):
    """(name, kernel, types, constants, options) over ZAYA1-8B's vocabulary, as `launch` compiles
    them; see `offline`."""
    types = dict.fromkeys(
        "draft_len position top_k touched counts bias_ids allowed tokens".split(), "*i32"
    ) | dict.fromkeys("temperature top_p min_p repetition presence frequency bias".split(), "*fp32")
    types |= dict.fromkeys("logits_request logits_row vocab_block".split(), "i32:D")
    types |= {"seed": "*i64"} | dict.fromkeys("uniforms lse workspace".split(), "*fp64")
    unchanged = dict.fromkeys(
        "uniforms touched counts repetition presence frequency bias_ids bias allowed".split()
    )
    bare = unchanged | dict.fromkeys(("top_k", "top_p", "min_p"))
    valid, vocab_block = 262147, 4096
    for dtype in ("bf16", "fp16", "fp32"):
        typed = types | {"logits": f"*{dtype}"}
        for name, absent in (("plain", bare), ("truncated", unchanged), ("full", {})):
            for step, _ in _steps(1, 1, name != "plain"):
                constants = _constants(valid, vocab_block) | absent | dict(PEAK=False, STEP=step)
                yield (
                    f"sample {name} {NAMES[step]} {dtype}",
                    sample,
                    typed,
                    constants,
                    scan_options(target, _threads(step, name != "plain")),
                )
