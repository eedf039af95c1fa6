"""SwiGLU experts of routed rows. Weights are the streamed operand, rows are columns: a program has
some output channels of one expert, and up to COLUMNS of the pairs (row, choice) routed to it."""

import triton
import triton.language as tl

from . import moe_dispatch, target
from .weights import FORMATS, load_weights, stored

FEW_PAIRS = 64  # so many are routed by each program itself, without being sorted


@triton.jit
def find_item(
    experts,
    order,
    offsets,
    pairs,
    num_experts,
    experts_row,
    items,
    tiles,
    CHOICES: tl.constexpr,
    COLUMNS: tl.constexpr,
    FEW: tl.constexpr,
    FEW_PAIRS: tl.constexpr,
    DIES: tl.constexpr,
):
    """(expert or -1, tile, pairs [COLUMNS], -1 where there are fewer) of this program's item. Items
    that share weights follow each other; programs go to the dies in turn, so each die gets a
    contiguous part of the items."""
    found = -1
    tile = 0
    first = 0
    chunk = 0
    count = 0
    left = tl.program_id(0) % DIES * tl.cdiv(items, DIES) + tl.program_id(0) // DIES
    if FEW:
        few = tl.arange(0, FEW_PAIRS)
        of_pair = moe_dispatch.expert_of(experts, few, pairs, experts_row, CHOICES)
    for expert in range(num_experts):
        if FEW:
            own = tl.sum((of_pair == expert).to(tl.int32), 0)
            start = 0
        else:
            start = tl.load(offsets + expert)
            own = tl.load(offsets + expert + 1) - start
        chunks = tl.cdiv(own, COLUMNS)
        if (found < 0) & (left >= 0) & (left < chunks * tiles):
            found = expert
            tile = left // chunks
            chunk = left % chunks
            first = start
            count = own
        left -= chunks * tiles
    rank = chunk * COLUMNS + tl.arange(0, COLUMNS)
    if FEW:
        own_pair = of_pair == found
        rank_of_pair = tl.cumsum(own_pair.to(tl.int32), 0) - 1
        same = own_pair[None, :] & (rank_of_pair[None, :] == rank[:, None])
        pair = tl.sum(tl.where(same, few[None, :] + 1, 0), 1) - 1
    else:
        pair = tl.load(order + first + rank, mask=rank < count, other=-1)
    return found, tile, pair


@triton.jit(do_not_specialize=["pairs"])
def gate_up(
    x,
    experts,
    weights,
    scales,
    order,
    offsets,
    activations,
    pairs,
    num_experts,
    items,
    x_row,
    experts_row,
    weights_expert,
    weights_row,
    scales_expert,
    scales_row,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    FORMAT: tl.constexpr,
    CHOICES: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    FEW: tl.constexpr,
    FEW_PAIRS: tl.constexpr,
    DIES: tl.constexpr,
):
    """activations[pair] = silu(gate) * up."""
    tiles = tl.cdiv(INNER, CHANNELS)
    expert, tile, pair = find_item(
        experts,
        order,
        offsets,
        pairs,
        num_experts,
        experts_row,
        items,
        tiles,
        CHOICES,
        COLUMNS,
        FEW,
        FEW_PAIRS,
        DIES,
    )
    if expert < 0:
        return
    channel = tile * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, DEPTH)
    # channels beyond the last are computed from it, and not stored
    row = tl.minimum(channel, INNER - 1)
    weights += expert.to(tl.int64) * weights_expert
    if FORMAT:
        scales += expert.to(tl.int64) * scales_expert
    token_at = x + (tl.maximum(pair, 0) // CHOICES).to(tl.int64)[None, :] * x_row + k[:, None]
    gate = tl.zeros((CHANNELS, COLUMNS), tl.float32)
    up = tl.zeros((CHANNELS, COLUMNS), tl.float32)
    for start in range(0, HIDDEN, DEPTH):
        inside = k < HIDDEN - start
        gates = load_weights(
            weights, scales, row, start, weights_row, scales_row, x, HIDDEN, DEPTH, FORMAT
        )
        ups = load_weights(
            weights, scales, row + INNER, start, weights_row, scales_row, x, HIDDEN, DEPTH, FORMAT
        )
        tokens = tl.load(token_at + start, mask=inside[:, None] & (pair >= 0)[None, :], other=0)
        gate = tl.dot(gates, tokens, gate, input_precision="ieee")
        up = tl.dot(ups, tokens, up, input_precision="ieee")
    value = gate / (1 + tl.exp2(-1.4426950408889634 * gate)) * up
    tl.store(
        activations + pair.to(tl.int64)[None, :] * INNER + channel[:, None],
        value.to(activations.dtype.element_ty),
        mask=(pair >= 0)[None, :] & (channel < INNER)[:, None],
    )


@triton.jit(do_not_specialize=["pairs"])
def down(
    activations,
    experts,
    scale,
    weights,
    scales,
    x,
    skip_prob,
    order,
    offsets,
    out,
    partials,
    pairs,
    num_experts,
    items,
    experts_row,
    scale_row,
    weights_expert,
    weights_row,
    scales_expert,
    scales_row,
    x_row,
    out_row,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    FORMAT: tl.constexpr,
    CHOICES: tl.constexpr,
    SKIP: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    FEW: tl.constexpr,
    FEW_PAIRS: tl.constexpr,
    DIES: tl.constexpr,
):
    """out of rows with one choice; with more, partials[pair]."""
    tiles = tl.cdiv(HIDDEN, CHANNELS)
    expert, tile, pair = find_item(
        experts,
        order,
        offsets,
        pairs,
        num_experts,
        experts_row,
        items,
        tiles,
        CHOICES,
        COLUMNS,
        FEW,
        FEW_PAIRS,
        DIES,
    )
    if expert < 0:
        return
    channel = tile * CHANNELS + tl.arange(0, CHANNELS)
    k = tl.arange(0, DEPTH)
    row = tl.minimum(channel, HIDDEN - 1)
    weights += expert.to(tl.int64) * weights_expert
    if FORMAT:
        scales += expert.to(tl.int64) * scales_expert
    token_at = activations + tl.maximum(pair, 0).to(tl.int64)[None, :] * INNER + k[:, None]
    y = tl.zeros((CHANNELS, COLUMNS), tl.float32)
    for start in range(0, INNER, DEPTH):
        inside = k < INNER - start
        products = load_weights(
            weights, scales, row, start, weights_row, scales_row, x, INNER, DEPTH, FORMAT
        )
        tokens = tl.load(token_at + start, mask=inside[:, None] & (pair >= 0)[None, :], other=0)
        y = tl.dot(products, tokens, y, input_precision="ieee")
    used = (pair >= 0)[None, :] & (channel < HIDDEN)[:, None]
    if CHOICES > 1:
        tl.store(partials + pair.to(tl.int64)[None, :] * HIDDEN + channel[:, None], y, mask=used)
    else:
        factor = tl.load(scale + pair.to(tl.int64) * scale_row, mask=pair >= 0, other=0)
        y *= factor[None, :]
        at = pair.to(tl.int64)[None, :]
        if SKIP:
            prob = tl.load(skip_prob + pair, mask=pair >= 0, other=0)
            y += tl.load(x + at * x_row + channel[:, None], mask=used, other=0) * prob[None, :]
        tl.store(out + at * out_row + channel[:, None], y.to(out.dtype.element_ty), mask=used)


@triton.jit
def combine(
    experts,
    scale,
    x,
    skip_prob,
    partials,
    out,
    experts_row,
    scale_row,
    x_row,
    out_row,
    HIDDEN: tl.constexpr,
    CHOICES: tl.constexpr,
    SKIP: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Program (row, channels): the sum over the row's choices. With one choice, only rows without
    an expert."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    used = channel < HIDDEN
    if CHOICES == 1:
        if tl.load(experts + row * experts_row) >= 0:
            return
    y = tl.zeros((CHANNELS,), tl.float32)
    if SKIP:
        value = tl.load(x + row * x_row + channel, mask=used, other=0).to(tl.float32)
        y = value * tl.load(skip_prob + row)
    if CHOICES > 1:
        for choice in range(CHOICES):
            live = tl.load(experts + row * experts_row + choice) >= 0
            at = partials + (row * CHOICES + choice) * HIDDEN + channel
            factor = tl.load(scale + row * scale_row + choice, mask=live, other=0)
            y += factor * tl.load(at, mask=used & live, other=0)
    tl.store(out + row * out_row + channel, y.to(out.dtype.element_ty), mask=used)


def tile_options(arch: str, pairs: int, num_experts: int) -> dict:
    """Of the products. Few rows an expert: narrow tiles, so that many programs read weights."""
    few = pairs <= FEW_PAIRS
    columns = 16 if pairs <= 16 * num_experts else 64
    if arch == "interpreter":
        return dict(CHANNELS=32, COLUMNS=16, DEPTH=64, FEW=few, FEW_PAIRS=FEW_PAIRS)
    return dict(
        CHANNELS=32 if columns == 16 else 64,
        COLUMNS=columns,
        DEPTH=128 if columns == 16 else 64,
        FEW=few,
        FEW_PAIRS=FEW_PAIRS,
    )


def launch(args) -> None:
    """The two products and `combine`; a sort before them where there are many pairs."""
    x, rows, choices = args.x, len(args.x), args.experts.shape[1]
    if x.numel() == 0:
        return
    num_experts, hidden = args.down.shape[:2]
    inner = args.activations.shape[1]
    pairs = rows * choices
    arch = target.arch()
    options = tile_options(arch, pairs, num_experts)
    dies = target.dies(arch)
    if not options["FEW"]:
        moe_dispatch.launch((args.experts, num_experts, args.order, args.offsets))
    chunks = min(pairs, pairs // options["COLUMNS"] + min(num_experts, pairs))
    first, second = (
        stored(weights, scale)
        for weights, scale in (
            (args.gate_up, args.gate_up_scale),
            (args.down, args.down_scale),
        )
    )
    shared = dict(
        HIDDEN=hidden, INNER=inner, FORMAT=first.format, CHOICES=choices, DIES=dies, **options
    )

    def items(channels: int) -> tuple[int, tuple[int]]:
        """Items, and a grid that gives each die as many."""
        count = chunks * triton.cdiv(channels, options["CHANNELS"])
        return count, (triton.cdiv(count, dies) * dies,)

    count, grid = items(inner)
    gate_up[grid](
        x,
        args.experts,
        first.weights,
        first.scales,
        args.order,
        args.offsets,
        args.activations,
        pairs,
        num_experts,
        count,
        x.stride(0),
        args.experts.stride(0),
        *first.strides,
        **shared,
    )
    count, grid = items(hidden)
    down[grid](
        args.activations,
        args.experts,
        args.weights,
        second.weights,
        second.scales,
        x,
        args.skip_prob,
        args.order,
        args.offsets,
        args.out,
        args.partials,
        pairs,
        num_experts,
        count,
        args.experts.stride(0),
        args.weights.stride(0),
        *second.strides,
        x.stride(0),
        args.out.stride(0),
        SKIP=args.skip,
        **shared,
    )
    combine[(rows, triton.cdiv(hidden, 1024))](
        args.experts,
        args.weights,
        x,
        args.skip_prob,
        args.partials,
        args.out,
        args.experts.stride(0),
        args.weights.stride(0),
        x.stride(0),
        args.out.stride(0),
        HIDDEN=hidden,
        CHOICES=choices,
        SKIP=args.skip,
        CHANNELS=1024,
    )


def compilations(arch: str):
    """(name, kernel, types, constants, options) for ZAYA1-8B, few and many rows; see `offline`."""
    fp8 = "fp8e4b8" if arch == "gfx942" else "fp8e4nv"
    stored_as = {"": None, "fp8": (f"*{fp8}", "*fp32"), "mxfp4": ("*u8", "*u8")}
    for dtype, format in (("bf16", ""), ("fp32", ""), ("bf16", "fp8"), ("bf16", "mxfp4")):
        tensors = dict.fromkeys("x weights activations out".split(), f"*{dtype}")
        tensors |= dict.fromkeys("experts order offsets".split(), "*i32")
        tensors |= dict.fromkeys("scale skip_prob partials".split(), "*fp32")
        strides = "x_row weights_expert weights_row out_row".split()
        types = tensors | dict.fromkeys(strides, "i32:D")
        if format:
            types |= dict(zip(("weights", "scales"), stored_as[format]))
        name = f"{dtype} {format}".strip()
        for rows in (16, 272, 2048):
            options = tile_options(arch, rows, 16)
            shared = dict(HIDDEN=2048, INNER=2048, CHOICES=1, DIES=target.dies(arch), **options)
            shared |= dict(FORMAT=FORMATS.index(format))
            if not format:
                shared |= dict(scales=None)
            yield f"gate_up {name} rows={rows}", gate_up, types, shared, {}
            yield f"down {name} rows={rows}", down, types, dict(SKIP=0, **shared), {}
        if format:
            continue
        sizes = dict(HIDDEN=2048, CHOICES=8, SKIP=0, CHANNELS=1024)
        yield f"combine {dtype}", combine, types, sizes, {}
