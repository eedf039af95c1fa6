"""ZAYA's router in two launches: the down projection, whose channels are divided among many
programs; then, by one program for 16 rows, RMSNorm, the MLP and the choice. Weights are the
streamed operand, rows are columns."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["rows"])
def project(
    hidden,
    prev_state,
    weight,
    bias,
    eda_scale,
    state,
    rows,
    hidden_row,
    prev_row,
    weight_row,
    state_row,
    HIDDEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """state = weight hidden + bias + prev_state * eda_scale, TILE channels by COLUMNS rows."""
    channel = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    k = tl.arange(0, DEPTH)
    # channels beyond the last are computed from it, and not stored
    weight_at = weight + tl.minimum(channel, CHANNELS - 1)[:, None] * weight_row + k[None, :]
    hidden_at = hidden + row[None, :] * hidden_row + k[:, None]
    y = tl.zeros((TILE, COLUMNS), tl.float32)
    for start in range(0, HIDDEN, DEPTH):
        inside = k < HIDDEN - start
        weights = tl.load(weight_at + start, mask=inside[None, :], other=0)
        tokens = tl.load(hidden_at + start, mask=inside[:, None] & (row < rows)[None, :], other=0)
        y = tl.dot(weights, tokens, y, input_precision="ieee")
    used = (channel < CHANNELS)[:, None] & (row < rows)[None, :]
    y += tl.load(bias + channel, mask=channel < CHANNELS, other=0).to(tl.float32)[:, None]
    if prev_state is not None:
        scale = tl.load(eda_scale + channel, mask=channel < CHANNELS, other=0).to(tl.float32)
        prev_at = prev_state + row[None, :] * prev_row + channel[:, None]
        y += tl.load(prev_at, mask=used, other=0).to(tl.float32) * scale[:, None]
    state_at = state + row[None, :] * state_row + channel[:, None]
    tl.store(state_at, y.to(state.dtype.element_ty), mask=used)


@triton.jit
def product(weights, x, total):
    """total + weights x of fp32 x: by weights of 16 bits, what rounding x loses is added."""
    if weights.dtype == tl.float32:
        total = tl.dot(weights, x, total, input_precision="ieee")
    else:
        high = x.to(weights.dtype)
        total = tl.dot(weights, high, total)
        total = tl.dot(weights, (x - high.to(tl.float32)).to(weights.dtype), total)
    return total


@triton.jit
def gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def matrix(pointer, row, rows, column, columns, stride):
    """The elements at [row, column] of a matrix; zeros outside."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(pointer + row[:, None] * stride + column[None, :], mask=inside, other=0)


@triton.jit
def vector(pointer, at, size):
    return tl.load(pointer + at, mask=at < size, other=0).to(tl.float32)[:, None]


@triton.jit(do_not_specialize=["rows"])
def route(
    state,
    norm_weight,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    out_weight,
    balancing_bias,
    live,
    chosen_weights,
    experts,
    skip_prob,
    eps,
    rows,
    state_row,
    fc1_row,
    fc2_row,
    out_row,
    weights_row,
    experts_row,
    CHANNELS: tl.constexpr,
    CLASSES: tl.constexpr,
    CHOICES: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """PADDED and PADDED_CLASSES: powers of two; BLOCK channels of the first layer at a time."""
    row = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    k = tl.arange(0, PADDED)
    used = (row < rows)[None, :] & (k < CHANNELS)[:, None]
    x = tl.load(state + row[None, :] * state_row + k[:, None], mask=used, other=0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 0) / CHANNELS + eps)[None, :]
    x *= vector(norm_weight, k, CHANNELS)
    y = tl.zeros((PADDED, COLUMNS), tl.float32)
    for first in range(0, CHANNELS, BLOCK):
        j = first + tl.arange(0, BLOCK)
        weights = matrix(fc1_weight, j, CHANNELS, k, CHANNELS, fc1_row)
        part = product(weights, x, tl.zeros((BLOCK, COLUMNS), tl.float32))
        part = gelu(part + vector(fc1_bias, j, CHANNELS))
        y = product(matrix(fc2_weight, k, CHANNELS, j, CHANNELS, fc2_row), part, y)
    y = gelu(y + vector(fc2_bias, k, CHANNELS))
    index = tl.arange(0, PADDED_CLASSES)
    weights = matrix(out_weight, index, CLASSES, k, CHANNELS, out_row)
    logits = product(weights, y, tl.zeros((PADDED_CLASSES, COLUMNS), tl.float32))
    logits = tl.where((index < CLASSES)[:, None], logits, float("-inf"))
    power = tl.exp2((logits - tl.max(logits, 0)[None, :]) * LOG2_E)
    prob = power / tl.sum(power, 0)[None, :]
    score = prob + vector(balancing_bias, index, CLASSES)
    left = tl.zeros((PADDED_CLASSES, COLUMNS), tl.int1) | (index < CLASSES)[:, None]
    alive = row < rows
    if live is not None:
        alive = alive & (tl.load(live + row, mask=row < rows, other=0) != 0)
    skip = tl.zeros((COLUMNS,), tl.float32)
    for choice in tl.static_range(CHOICES):
        best = tl.max(tl.where(left, score, float("-inf")), 0)
        at = tl.where(left & (score == best[None, :]), index[:, None], CLASSES)
        at = tl.min(at, 0)
        at = tl.where(at == CLASSES, choice, at)  # all are NaN
        own = index[:, None] == at[None, :]
        chosen = tl.sum(tl.where(own, prob, 0), 0)
        skipped = at == CLASSES - 1
        skip = tl.where(skipped & alive, chosen, skip)
        kept = alive & (skipped == 0)
        to = row * weights_row + choice
        tl.store(chosen_weights + to, tl.where(kept, chosen, 0), mask=row < rows)
        tl.store(experts + row * experts_row + choice, tl.where(kept, at, -1), mask=row < rows)
        left = left & (own == 0)
    tl.store(skip_prob + row, skip, mask=row < rows)


def project_options(bits: int) -> dict:
    """A wave for each program: many programs read weights."""
    return dict(TILE=16, COLUMNS=16, DEPTH=4096 // bits)


def route_options(channels: int, classes: int, bits: int) -> dict:
    padded = max(16, triton.next_power_of_2(channels))
    return dict(
        PADDED=padded,
        PADDED_CLASSES=max(16, triton.next_power_of_2(classes)),
        BLOCK=min(padded, max(16, 512 // bits)),
        COLUMNS=16,
    )


def launch(args) -> None:
    rows, hidden = args.hidden.shape
    if rows == 0:
        return
    classes, channels = args.out_weight.shape
    bits = 8 * args.hidden.element_size()
    options = project_options(bits)
    grid = triton.cdiv(rows, options["COLUMNS"]), triton.cdiv(channels, options["TILE"])
    project[grid](
        args.hidden,
        args.prev_state,
        args.down_weight,
        args.down_bias,
        args.eda_scale,
        args.state,
        rows,
        args.hidden.stride(0),
        0 if args.prev_state is None else args.prev_state.stride(0),
        args.down_weight.stride(0),
        args.state.stride(0),
        HIDDEN=hidden,
        CHANNELS=channels,
        **options,
        num_warps=1,
    )
    options = route_options(channels, classes, bits)
    route[(triton.cdiv(rows, options["COLUMNS"]),)](
        args.state,
        args.norm_weight,
        args.fc1_weight,
        args.fc1_bias,
        args.fc2_weight,
        args.fc2_bias,
        args.out_weight,
        args.balancing_bias,
        args.live,
        args.weights,
        args.experts,
        args.skip_prob,
        args.eps,
        rows,
        args.state.stride(0),
        args.fc1_weight.stride(0),
        args.fc2_weight.stride(0),
        args.out_weight.stride(0),
        args.weights.stride(0),
        args.experts.stride(0),
        CHANNELS=channels,
        CLASSES=classes,
        CHOICES=args.weights.shape[1],
        **options,
        num_warps=8,
    )


def compilations(arch: str):
    """(name, kernel, types, constants, options) for ZAYA1-8B; see `offline`."""
    for dtype, bits in (("bf16", 16), ("fp32", 32)):
        names = "hidden prev_state weight bias eda_scale state norm_weight fc1_weight fc1_bias"
        tensors = dict.fromkeys(f"{names} fc2_weight fc2_bias out_weight".split(), f"*{dtype}")
        tensors |= dict.fromkeys("balancing_bias chosen_weights skip_prob".split(), "*fp32")
        strides = "hidden_row prev_row weight_row state_row fc1_row fc2_row out_row"
        types = tensors | dict.fromkeys(strides.split(), "i32:D")
        types |= dict(experts="*i32", live="*i1", eps="fp32")
        sizes = dict(HIDDEN=2048, CHANNELS=256, **project_options(bits))
        yield f"project {dtype}", project, types, sizes, dict(num_warps=1)
        sizes = dict(CHANNELS=256, CLASSES=17, CHOICES=1, **route_options(256, 17, bits))
        yield f"route {dtype}", route, types, sizes, dict(num_warps=8)
