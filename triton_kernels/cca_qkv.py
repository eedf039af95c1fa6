"""Compressed convolutional attention, from projections to q, k, v, in one launch: a program has one
head of some packed rows. Rows are columns of its tiles."""

import triton
import triton.language as tl

from . import fp8
from .rows import CACHE, Target, cache_strides, cos_and_sin, find_rows, halves, store_head, strides


@triton.jit
def ancestor(row, first, index, own, back):
    """The packed row `back` tokens before each row; -e: the e-th newest stored token."""
    verify = own - (back - index)
    return tl.where(back <= index, row - back, tl.where(verify >= 0, first + verify, verify))


@triton.jit
def mix(
    qk,
    conv_state,
    weight,
    bias,
    channel,
    row,
    first,
    index,
    own,
    slot,
    live,
    qk_row,
    conv_slot,
    conv_token,
    weight_row,
    tap,
    DIM: tl.constexpr,
    TAPS0: tl.constexpr,
    HISTORY: tl.constexpr,
    STORED: tl.constexpr,
):
    """The first convolution of the head's channels, as the second one's `tap` sees it. Pointers are
    to the head's channels."""
    inside = channel < DIM
    out = tl.load(bias + channel, mask=inside, other=0).to(tl.float32)[:, None]
    for i in tl.static_range(TAPS0):
        source = ancestor(row, first, index, own, HISTORY - tap - i)
        used = inside[:, None] & (live & (source >= 0))[None, :]
        x = tl.load(
            qk + ((source.to(tl.int64) * qk_row)[None, :] + channel[:, None]), mask=used, other=0
        )
        if STORED:
            at = slot.to(tl.int64) * conv_slot + (HISTORY + source) * conv_token
            used = inside[:, None] & (live & (source < 0) & (slot >= 0))[None, :]
            x += tl.load(conv_state + (at[None, :] + channel[:, None]), mask=used, other=0)
        factor = tl.load(weight + channel * weight_row + i, mask=inside, other=0)
        out += factor.to(tl.float32)[:, None] * x.to(tl.float32)
    return out.to(qk.dtype.element_ty)


@triton.jit
def pair(weight, channel, x, y, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The second convolution of two taps, of some channels. Its weights are read as they lie."""
    k = tl.arange(0, 2 * WIDTH)
    inside = (channel < DIM)[:, None] & (k < 2 * DIM)[None, :]
    weights = tl.load(weight + channel[:, None] * (2 * DIM) + k[None, :], mask=inside, other=0)
    first, second = tl.split(tl.reshape(weights, (channel.shape[0], WIDTH, 2)))
    out = tl.dot(first, x, input_precision="ieee")
    return tl.dot(second, y, out, input_precision="ieee")


@triton.jit
def one_tap(
    weight, channel, x, total, tap, DIM: tl.constexpr, TAPS: tl.constexpr, WIDTH: tl.constexpr
):
    """total + one tap of the second convolution."""
    k = tl.arange(0, WIDTH)
    inside = (channel < DIM)[:, None] & (k < DIM)[None, :]
    at = weight + channel[:, None] * (TAPS * DIM) + k[None, :] * TAPS + tap
    return tl.dot(tl.load(at, mask=inside, other=0), x, total, input_precision="ieee")


@triton.jit
def with_residual(y, channel, DIM: tl.constexpr, inputs, other, live, bias):
    """Adds the bias and the residual path; beyond DIM: zeros."""
    inside = channel < DIM
    used = inside[:, None] & live[None, :]
    y += tl.load(bias + channel, mask=inside, other=0).to(tl.float32)[:, None]
    mine = tl.load(inputs[None, :] + channel[:, None], mask=used, other=0).to(tl.float32)
    return tl.where(used, y + 0.5 * (mine + other), 0)


@triton.jit
def average(pointers, channel, DIM: tl.constexpr, live, COUNT: tl.constexpr):
    """The mean of the channels of COUNT heads that follow each other."""
    used = (channel < DIM)[:, None] & live[None, :]
    total = tl.load(pointers[None, :] + channel[:, None], mask=used, other=0).to(tl.float32)
    for head in tl.static_range(1, COUNT):
        at = pointers[None, :] + head * DIM + channel[:, None]
        total += tl.load(at, mask=used, other=0).to(tl.float32)
    return total / COUNT


@triton.jit(do_not_specialize=["total", "batch"])
def convolve(
    qk,
    v_now,
    v_late,
    conv0_weight,
    conv0_bias,
    conv1_weight,
    conv1_bias,
    temp,
    cos_sin,
    cu_rows,
    prefix_lens,
    draft_len,
    branch,
    conv_state,
    late_state,
    slots,
    late_start,
    block_table,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    q,
    k,
    v,
    norm_eps,
    total,
    batch,
    qk_row,
    now_row,
    late_row,
    conv0_row,
    angle_row,
    branch_row,
    conv_slot,
    conv_token,
    late_slot,
    table_row,
    q_row,
    q_head,
    out_k_row,
    out_k_head,
    out_v_row,
    out_v_head,
    K_PAGE: tl.constexpr,
    K_TOKEN: tl.constexpr,
    K_HEAD: tl.constexpr,
    V_PAGE: tl.constexpr,
    V_TOKEN: tl.constexpr,
    V_HEAD: tl.constexpr,
    K_SCALE_PAGE: tl.constexpr,
    K_SCALE_HEAD: tl.constexpr,
    V_SCALE_PAGE: tl.constexpr,
    V_SCALE_HEAD: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TAPS0: tl.constexpr,
    TAPS1: tl.constexpr,
    HALF_ROTARY: tl.constexpr,
    PAGE: tl.constexpr,
    MASKS: tl.constexpr,
    P: tl.constexpr,
    CLAMP: tl.constexpr,
    FNUZ: tl.constexpr,
    WIDTH: tl.constexpr,
    ROTATED: tl.constexpr,
    REST: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """WIDTH: DIM, ROTATED: HALF_ROTARY, REST: DIM - 2 * HALF_ROTARY, each padded to a power of two.
    CLAMP: whether norm_eps is the least norm."""
    GROUP: tl.constexpr = QUERY_HEADS // KV_HEADS
    HISTORY: tl.constexpr = TAPS0 + TAPS1 - 2
    STORED: tl.constexpr = slots is not None
    head = tl.program_id(1)
    kv = head - QUERY_HEADS
    row = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    request, first, index, own, prefix, live = find_rows(
        row, cu_rows, prefix_lens, draft_len, branch, branch_row, batch, MASKS, P
    )
    exists = row < total
    live = live & exists
    position = tl.where(live, prefix + own + index, 0)
    slot = tl.full((COLUMNS,), -1, tl.int32)
    if STORED:
        slot = tl.where(prefix > 0, tl.load(slots + request), -1)

    # The second convolution, on the first: of the halves that are rotated, and of the rest.
    low, high = halves(DIM, HALF_ROTARY, ROTATED)
    rest = 2 * HALF_ROTARY + tl.arange(0, REST)
    every = tl.arange(0, WIDTH)
    weight = conv1_weight + head.to(tl.int64) * DIM * DIM * TAPS1
    y_low = tl.zeros((ROTATED, COLUMNS), tl.float32)
    y_high = tl.zeros((ROTATED, COLUMNS), tl.float32)
    y_rest = tl.zeros((REST, COLUMNS), tl.float32)
    before = tl.zeros((WIDTH, COLUMNS), qk.dtype.element_ty)
    for tap in tl.static_range(TAPS1):
        x = mix(
            qk + head * DIM,
            conv_state + head * DIM if STORED else conv_state,
            conv0_weight + head * DIM * conv0_row,
            conv0_bias + head * DIM,
            every,
            row,
            first,
            index,
            own,
            slot,
            live,
            qk_row,
            conv_slot,
            conv_token,
            conv0_row,
            tap,
            DIM,
            TAPS0,
            HISTORY,
            STORED,
        )
        if TAPS1 != 2:
            y_low = one_tap(weight, low, x, y_low, tap, DIM, TAPS1, WIDTH)
            y_high = one_tap(weight, high, x, y_high, tap, DIM, TAPS1, WIDTH)
            y_rest = one_tap(weight, rest, x, y_rest, tap, DIM, TAPS1, WIDTH)
        elif tap == 1:
            y_low = pair(weight, low, before, x, DIM, WIDTH)
            y_high = pair(weight, high, before, x, DIM, WIDTH)
            y_rest = pair(weight, rest, before, x, DIM, WIDTH)
        before = x
    inputs = qk + row.to(tl.int64) * qk_row
    mine = inputs + head * DIM
    bias = conv1_bias + head * DIM
    if kv < 0:
        others = inputs + (QUERY_HEADS + head // GROUP) * DIM
        other_low = average(others, low, DIM, live, 1)
        other_high = average(others, high, DIM, live, 1)
        other_rest = average(others, rest, DIM, live, 1)
    else:
        others = inputs + kv * GROUP * DIM
        other_low = average(others, low, DIM, live, GROUP)
        other_high = average(others, high, DIM, live, GROUP)
        other_rest = average(others, rest, DIM, live, GROUP)
    y_low = with_residual(y_low, low, DIM, mine, other_low, live, bias)
    y_high = with_residual(y_high, high, DIM, mine, other_high, live, bias)
    y_rest = with_residual(y_rest, rest, DIM, mine, other_rest, live, bias)

    square = tl.sum(y_low * y_low, 0) + tl.sum(y_high * y_high, 0) + tl.sum(y_rest * y_rest, 0)
    if CLAMP:
        norm = tl.sqrt(square)
        norm = tl.where(norm < norm_eps, norm_eps, norm)  # keeps NaN
    else:
        norm = tl.sqrt(square + norm_eps)
    scale = tl.sqrt(tl.full((), DIM, tl.float32)) / norm
    if kv >= 0:
        scale *= tl.load(temp + kv).to(tl.float32)
    angle = cos_sin + position.to(tl.int64) * angle_row
    cos, sin = cos_and_sin(angle, low, live, DIM, HALF_ROTARY)
    scale = tl.where(live, scale, 0)[None, :]
    x_low = (y_low * cos - y_high * sin) * scale
    x_high = (y_high * cos + y_low * sin) * scale
    x_rest = y_rest * scale

    place = row.to(tl.int64)
    if kv < 0:
        to = Target(q + place * q_row + head * q_head, exists, None, None, None)
        store_head(x_low, low, DIM, to, FNUZ)
        store_head(x_high, high, DIM, to, FNUZ)
        store_head(x_rest, rest, DIM, to, FNUZ)
        return

    # keys and values of live verify rows are kept in the cache
    out = k + place * out_k_row + kv * out_k_head
    out_v = v + place * out_v_row + kv * out_v_head
    keep = live & (own == 0)
    kept = None
    kept_v = None
    step = None
    if k_cache is not None:
        table_at = block_table + request.to(tl.int64) * table_row + position // PAGE
        page = tl.load(table_at, mask=keep, other=0).to(tl.int64)
        kept = k_cache + page * K_PAGE + position % PAGE * K_TOKEN + kv * K_HEAD
        kept_v = v_cache + page * V_PAGE + position % PAGE * V_TOKEN + kv * V_HEAD
        if k_scale is not None:
            step = tl.load(k_scale + page * K_SCALE_PAGE + kv * K_SCALE_HEAD)
    to = Target(out, exists, kept, keep, step)
    store_head(x_low, low, DIM, to, FNUZ)
    store_head(x_high, high, DIM, to, FNUZ)
    store_head(x_rest, rest, DIM, to, FNUZ)

    # half of the value channels come from the parent
    HALF: tl.constexpr = KV_HEADS * DIM // 2
    channel = kv * DIM + every
    used = (every < DIM)[:, None] & live[None, :]
    late = used & (channel >= HALF)[:, None]
    parent = ancestor(row, first, index, own, 1)[None, :]
    x = tl.load(
        v_now + place[None, :] * now_row + channel[:, None],
        mask=used & (channel < HALF)[:, None],
        other=0,
    )
    x += tl.load(
        v_late + parent.to(tl.int64) * late_row + channel[:, None] - HALF,
        mask=late & (parent >= 0),
        other=0,
    )
    known = slot >= 0
    if STORED:
        at = late_state + slot.to(tl.int64)[None, :] * late_slot + channel[:, None] - HALF
        x += tl.load(at, mask=late & (parent < 0) & known[None, :], other=0)
    if late_start is not None:
        fresh = late & (parent < 0) & (known == 0)[None, :]
        x += tl.load(late_start + channel[:, None] - HALF, mask=fresh, other=0)
    if v_scale is not None:
        step = tl.load(v_scale + page * V_SCALE_PAGE + kv * V_SCALE_HEAD)
    store_head(x, every, DIM, Target(out_v, exists, kept_v, keep, step), FNUZ)


WARPS = 2  # with more, each of which has all tokens in registers, the compiler spills


def tile_options(head_dim: int, rotary: int) -> dict:
    def padded(n: int) -> int:
        return max(16, triton.next_power_of_2(n))

    return dict(
        WIDTH=padded(head_dim),
        ROTATED=padded(rotary // 2),
        REST=padded(head_dim - rotary),
        COLUMNS=16,
    )


def launch(args) -> None:
    total, query_heads, head_dim = args.q.shape
    if total == 0:
        return
    rows, taps1 = args.rows, args.conv1_weight.shape[2]
    rotary = args.cos_sin.shape[1]
    options = tile_options(head_dim, rotary)
    kv_heads = args.k.shape[1]
    grid = triton.cdiv(total, options["COLUMNS"]), query_heads + kv_heads
    convolve[grid](
        args.qk,
        args.v_now,
        args.v_late,
        args.conv0_weight,
        args.conv0_bias,
        args.conv1_weight,
        args.conv1_bias,
        args.temp,
        args.cos_sin,
        rows.cu_rows,
        rows.prefix_lens,
        rows.draft_len,
        rows.branch,
        args.conv_state,
        args.late_state,
        args.slots,
        args.late_start,
        args.block_table,
        fp8.codes(args.k_cache),
        fp8.codes(args.v_cache),
        args.k_scale,
        args.v_scale,
        args.q,
        args.k,
        args.v,
        abs(args.norm_eps),
        total,
        len(rows.prefix_lens),
        args.qk.stride(0),
        args.v_now.stride(0),
        args.v_late.stride(0),
        args.conv0_weight.stride(0),
        args.cos_sin.stride(0),
        rows.branch.stride(0),
        *strides(args.conv_state, 2),
        *strides(args.late_state, 1),
        *strides(args.block_table, 1),
        *args.q.stride()[:2],
        *args.k.stride()[:2],
        *args.v.stride()[:2],
        **cache_strides(args),
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        DIM=head_dim,
        TAPS0=args.conv0_weight.shape[2],
        TAPS1=taps1,
        HALF_ROTARY=rotary // 2,
        PAGE=1 if args.k_cache is None else args.k_cache.shape[1],
        MASKS=rows.mask_rows,
        P=rows.branch.shape[1],
        CLAMP=args.norm_eps < 0,
        FNUZ=fp8.is_fnuz(args.k_cache),
        **options,
        num_warps=WARPS,
    )


def compilations(arch: str):
    """(name, kernel, types, constants, options) for ZAYA1-8B; see `offline`."""
    for dtype, low in (("bf16", False), ("fp32", False), ("bf16", True)):
        names = "qk v_now v_late conv0_weight conv0_bias conv1_weight conv1_bias temp conv_state"
        tensors = f"{names} late_state late_start k_cache v_cache q k v"
        types = dict.fromkeys(tensors.split(), f"*{dtype}") | dict(cos_sin="*fp32", norm_eps="fp32")
        indices = "cu_rows prefix_lens draft_len branch slots block_table"
        types |= dict.fromkeys(indices.split(), "*i32")
        wide = "qk_row now_row late_row angle_row conv_slot conv_token late_slot"
        wide += " q_row q_head out_k_row out_k_head out_v_row out_v_head"
        types |= dict.fromkeys(wide.split(), "i32:D")
        sizes = dict(QUERY_HEADS=8, KV_HEADS=2, DIM=128, TAPS0=2, TAPS1=2, HALF_ROTARY=32, PAGE=16)
        sizes |= dict(MASKS=16, P=3, CLAMP=True, FNUZ=arch == "gfx942", **tile_options(128, 64))
        sizes |= dict(zip(CACHE, (4096, 256, 128) * 2 + (2, 1) * 2))
        if low:
            types |= dict(k_cache="*u8", v_cache="*u8", k_scale="*fp32", v_scale="*fp32")
        else:
            sizes |= dict(k_scale=None, v_scale=None)
        name = f"convolve {dtype}" + " fp8" * low
        yield name, convolve, types, sizes, dict(num_warps=WARPS)
