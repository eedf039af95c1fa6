"""The next drafts from the drafter's logits: every block of every row is measured, then every row
is finished."""

import triton
import triton.language as tl

from .law import (
    LOG2_E,
    Row,
    Vocabulary,
    block_ids,
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
    launch_metadata=launch_metadata, do_not_specialize=["valid", "mask_token", "drafts", "blocks"]
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
    tokens,
    lse,
    workspace,
    logits_request,
    logits_row,
    uniforms_row,
    drafts,
    valid,
    mask_token,
    block,
    blocks,
    PEAK: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
    FINISH: tl.constexpr,
):
    """Program (row, block), or row. An argmax leaves the normaliser of the raw logits."""
    item = tl.program_id(0)
    at = item if FINISH else item // blocks
    request = at // drafts
    i = at % drafts
    live = i < tl.load(draft_len + request)
    heat = tl.load(temperature + request)
    peak = PEAK | (heat <= 0)
    heat = tl.where(peak, 1.0, heat)
    row = Row(logits + request.to(tl.int64) * logits_request + i.to(tl.int64) * logits_row)
    space = Vocabulary(valid, mask_token)
    partials = workspace + at.to(tl.int64) * (3 * blocks)
    if not FINISH:
        if live:
            index = item % blocks
            total, greatest = measure(
                row,
                space,
                exponent(heat),
                index * block,
                tl.minimum((index + 1) * block, valid),
                TILE,
            )
            tl.store(partials + index, total)
            tl.store(partials + blocks + index, greatest.to(tl.float64))
    else:
        token = tl.full([], -1, tl.int32)
        normaliser = tl.full([], 0, tl.float32)
        if live:
            index = tl.arange(0, BLOCKS)
            sums = tl.load(partials + index, mask=index < blocks, other=0)
            greatest = tl.load(
                partials + blocks + index, mask=index < blocks, other=float("-inf")
            ).to(tl.float32)
            law = conclude(sums, greatest, heat, row, space, block, TILE)
            if law.status == 0:
                if peak:
                    token = lowest(sums, greatest, law.top, row, space, block, TILE)
                    total = law.total
                else:
                    kept = truncated(law, row, space, top_k, top_p, request, TILE)
                    total = kept.total
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
                            sums * tl.exp2((greatest.to(tl.float64) - law.top) * law.scale),
                            0,
                        )
                        chosen, r = find(whole, r)
                        first = chosen * block
                        stop = tl.minimum(first + block, valid)
                    token = walk(kept, row, None, None, total, space, first, stop, r, False, TILE)
                normaliser = ((law.top * law.scale + tl.log2(total)) / LOG2_E).to(tl.float32)
        tl.store(tokens + at, token)
        tl.store(lse + at, normaliser)


def _constants(valid: int, blocks: int) -> dict:
    return dict(
        BLOCKS=max(2, triton.next_power_of_2(blocks)),
        TILE=tile_ids(block_ids(valid, blocks), valid),
    )


def launch(
    logits,
    draft_len,
    seed,
    position,
    uniforms,
    temperature,
    top_k,
    top_p,
    greedy,
    valid,
    mask_token,
    tokens,
    lse,
    workspace,
    blocks_of,
) -> None:
    """As the op's schema; `blocks_of(vocabulary)` is how many blocks it has."""
    if logits.numel() == 0:
        return
    blocks, rows = blocks_of(valid), logits.shape[0] * logits.shape[1]
    for programs, finish in ((rows * blocks, False), (rows, True)):
        sample[(programs,)](
            logits,
            draft_len,
            seed,
            position,
            uniforms,
            temperature,
            top_k,
            top_p,
            tokens,
            lse,
            workspace,
            *logits.stride()[:2],
            uniforms.stride(0) if uniforms is not None else 0,
            logits.shape[1],
            valid,
            mask_token,
            block_ids(valid, blocks),
            blocks,
            PEAK=greedy,
            FINISH=finish,
            **_constants(valid, blocks),
            **scan_options(arch()),
        )


def compilations(target: str):
    """(name, kernel, types, constants, options) over ZAYA1-8B's vocabulary, as `launch` compiles
    them; see `offline`."""
    types = dict.fromkeys("draft_len position top_k tokens".split(), "*i32") | dict.fromkeys(
        "temperature top_p lse".split(), "*fp32"
    )
    types |= dict.fromkeys("logits_request logits_row block".split(), "i32:16")
    types |= {"seed": "*i64", "uniforms": "*fp64", "workspace": "*fp64"}
    valid, blocks = 262147, 65
    for dtype in ("bf16", "fp16", "fp32"):
        typed = types | {"logits": f"*{dtype}"}
        for name, absent in (("plain", dict(uniforms=None, top_k=None, top_p=None)), ("full", {})):
            for finish in (False, True):
                constants = _constants(valid, blocks) | absent | dict(PEAK=False, FINISH=finish)
                yield (
                    f"sample {name} {'finish' if finish else 'measure'} {dtype}",
                    sample,
                    typed,
                    constants,
                    scan_options(target),
                )
