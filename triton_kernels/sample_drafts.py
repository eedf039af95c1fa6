"""Draws the next drafts from the drafter's logits: one launch measures every vocab_block of every
row, a second one draws from every row."""

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
    truncated,
    uniform,
    walk,
)
from .target import arch, scan_options

DRAFT = tl.constexpr(2)  # purpose of a uniform


def launch_metadata(grid, kernel, args):
    rows, vocab = args["draft_len"].shape[0] * args["drafts"], args["valid"]
    measured = 0 if args["FINISH"] else rows * vocab
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
    FINISH: tl.constexpr,
):
    """A program measures a vocab_block of a row or, with FINISH, draws from a row. Where the draft
    is the argmax, the normaliser is that of the raw logits."""
    item = tl.program_id(0)
    at = item if FINISH else item // blocks
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
    vocabulary = Vocabulary(valid, mask_token)
    partials = workspace + at.to(tl.int64) * workspace_row
    if not FINISH:
        if live:
            index = item % blocks
            total, greatest = measure(
                row,
                vocabulary,
                exponent(request_temperature),
                index * vocab_block,
                tl.minimum((index + 1) * vocab_block, valid),
                TILE,
            )
            tl.store(partials + index, total)
            tl.store(partials + blocks + index, greatest.to(tl.float64))
    else:
        token = tl.full([], -1, tl.int32)
        top = tl.full([], 0, tl.float64)
        log_sum = tl.full([], 0, tl.float64)
        cut = tl.full([], 0, tl.float64)
        tie = tl.full([], 0, tl.float64)
        if live:
            index = tl.arange(0, BLOCKS)
            sums = tl.load(partials + index, mask=index < blocks, other=0)
            greatest = tl.load(
                partials + blocks + index, mask=index < blocks, other=float("-inf")
            ).to(tl.float32)
            distribution = conclude(
                sums, greatest, request_temperature, row, vocabulary, vocab_block, TILE
            )
            if distribution.status == 0:
                cut = distribution.cut.to(tl.float64)
                tie = distribution.tie.to(tl.float64)
                if peak:
                    token = lowest(
                        sums, greatest, distribution.top, row, vocabulary, vocab_block, TILE
                    )
                    total = distribution.total
                else:
                    kept = truncated(
                        distribution, row, vocabulary, top_k, top_p, min_p, request, TILE
                    )
                    total = kept.total
                    cut = kept.cut.to(tl.float64)
                    tie = kept.tie.to(tl.float64)
                    u = uniform(
                        uniforms,
                        request.to(tl.int64) * uniforms_row + i,
                        tl.load(seed + request),
                        tl.load(position + request),
                        i,
                        DRAFT,
                    )
                    first = 0
                    stop = valid
                    r = u * total
                    if kept.cut == float("-inf"):
                        whole = tl.where(
                            sums > 0,
                            sums
                            * tl.exp2(
                                (greatest.to(tl.float64) - distribution.top) * distribution.scale
                            ),
                            0,
                        )
                        chosen, r = find(whole, r)
                        first = chosen * vocab_block
                        stop = tl.minimum(first + vocab_block, valid)
                    token = walk(
                        kept, row, None, None, total, vocabulary, first, stop, r, False, TILE
                    )
                top = distribution.top.to(tl.float64)
                log_sum = tl.log2(total) / LOG2_E
        tl.store(tokens + at, token)
        tl.store(lse + at * 4, top)
        tl.store(lse + at * 4 + 1, log_sum)
        tl.store(lse + at * 4 + 2, cut)
        tl.store(lse + at * 4 + 3, tie)


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
    for programs, finish in ((rows * blocks, False), (rows, True)):
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
            FINISH=finish,
            **_constants(valid, vocab_block),
            **scan_options(arch()),
        )


def compilations(target: str):
    """(name, kernel, types, constants, options) over ZAYA1-8B's vocabulary, as `launch` compiles
    them; see `offline`."""
    types = dict.fromkeys(
        "draft_len position top_k touched counts bias_ids allowed tokens".split(), "*i32"
    ) | dict.fromkeys("temperature top_p min_p repetition presence frequency bias".split(), "*fp32")
    types |= dict.fromkeys("logits_request logits_row vocab_block".split(), "i32:D")
    types |= {"seed": "*i64"} | dict.fromkeys("uniforms lse workspace".split(), "*fp64")
    valid, vocab_block = 262147, 4096
    for dtype in ("bf16", "fp16", "fp32"):
        typed = types | {"logits": f"*{dtype}"}
        for name, absent in (
            (
                "plain",
                dict.fromkeys(
                    "uniforms top_k top_p min_p touched counts repetition presence frequency "
                    "bias_ids bias allowed".split()
                ),
            ),
            ("full", {}),
        ):
            for finish in (False, True):
                constants = (
                    _constants(valid, vocab_block) | absent | dict(PEAK=False, FINISH=finish)
                )
                yield (
                    f"sample {name} {'finish' if finish else 'measure'} {dtype}",
                    sample,
                    typed,
                    constants,
                    scan_options(target),
                )
