"""RoPE of projected queries and keys, and the store of keys and values, in one launch: a program
has one head of some packed rows. Rows are columns of its tiles."""

import triton
import triton.language as tl

from . import fp8
from .rows import CACHE, Target, cache_strides, cos_and_sin, find_rows, halves, store_head, strides


@triton.jit
def load_head(pointers, channel, DIM: tl.constexpr, live):
    used = (channel < DIM)[:, None] & live[None, :]
    return tl.load(pointers[None, :] + channel[:, None], mask=used, other=0).to(tl.float32)


@triton.jit
def turn(
    source,
    factor,
    angle,
    live,
    to,
    DIM: tl.constexpr,
    HALF_ROTARY: tl.constexpr,
    ROTATED: tl.constexpr,
    REST: tl.constexpr,
    FNUZ: tl.constexpr,
):
    """A head of queries or keys, times `factor`, to its output and to the cache."""
    low, high = halves(DIM, HALF_ROTARY, ROTATED)
    cos, sin = cos_and_sin(angle, low, live, DIM, HALF_ROTARY)
    cos *= factor[None, :]
    sin *= factor[None, :]
    x = load_head(source, low, DIM, live)
    y = load_head(source, high, DIM, live)
    x, y = x * cos - y * sin, y * cos + x * sin
    store_head(x, low, DIM, to, FNUZ)
    store_head(y, high, DIM, to, FNUZ)
    if REST > 0:
        rest = 2 * HALF_ROTARY + tl.arange(0, REST)
        x = load_head(source, rest, DIM, live) * factor[None, :]
        store_head(x, rest, DIM, to, FNUZ)


@triton.jit(do_not_specialize=["total", "batch"])
def rotate(
    q,
    k,
    v,
    cos_sin,
    cu_rows,
    prefix_lens,
    draft_len,
    branch,
    query_scale,
    block_table,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    q_out,
    k_out,
    v_out,
    total,
    batch,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    angle_row,
    branch_row,
    table_row,
    q_out_row,
    q_out_head,
    k_out_row,
    k_out_head,
    v_out_row,
    v_out_head,
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
    HALF_ROTARY: tl.constexpr,
    PAGE: tl.constexpr,
    MASKS: tl.constexpr,
    P: tl.constexpr,
    FNUZ: tl.constexpr,
    WIDTH: tl.constexpr,
    ROTATED: tl.constexpr,
    REST: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """WIDTH: DIM, ROTATED: HALF_ROTARY, REST: DIM - 2 * HALF_ROTARY, each padded to a power of two;
    REST is 0 where nothing is left. Heads of queries come first, then those of keys and values."""
    head = tl.program_id(1)
    kv = (head - QUERY_HEADS) % KV_HEADS
    row = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    request, first, index, own, prefix, live = find_rows(
        row, cu_rows, prefix_lens, draft_len, branch, branch_row, batch, MASKS, P
    )
    exists = row < total
    live = live & exists
    position = tl.where(live, prefix + own + index, 0)
    place = row.to(tl.int64)
    angle = cos_sin + position.to(tl.int64) * angle_row
    one = tl.full((COLUMNS,), 1, tl.float32)
    if head < QUERY_HEADS:
        source = q + place * q_row + head * q_head
        out = q_out + place * q_out_row + head * q_out_head
        factor = one
        if query_scale is not None:
            factor = tl.load(query_scale + position)
        to = Target(out, exists, None, None, None)
        turn(source, factor, angle, live, to, DIM, HALF_ROTARY, ROTATED, REST, FNUZ)
        return

    # keys and values of live verify rows are kept in the cache
    keep = live & (own == 0)
    kept = None
    step = None
    if k_cache is not None:
        table_at = block_table + request.to(tl.int64) * table_row + position // PAGE
        page = tl.load(table_at, mask=keep, other=0).to(tl.int64)
    if head < QUERY_HEADS + KV_HEADS:
        source = k + place * k_row + kv * k_head
        out = k_out + place * k_out_row + kv * k_out_head
        if k_cache is not None:
            kept = k_cache + page * K_PAGE + position % PAGE * K_TOKEN + kv * K_HEAD
            if k_scale is not None:
                step = tl.load(k_scale + page * K_SCALE_PAGE + kv * K_SCALE_HEAD)
        to = Target(out, exists, kept, keep, step)
        turn(source, one, angle, live, to, DIM, HALF_ROTARY, ROTATED, REST, FNUZ)
        return

    every = tl.arange(0, WIDTH)
    x = load_head(v + place * v_row + kv * v_head, every, DIM, live)
    out = v_out + place * v_out_row + kv * v_out_head
    if v_cache is not None:
        kept = v_cache + page * V_PAGE + position % PAGE * V_TOKEN + kv * V_HEAD
        if v_scale is not None:
            step = tl.load(v_scale + page * V_SCALE_PAGE + kv * V_SCALE_HEAD)
    store_head(x, every, DIM, Target(out, exists, kept, keep, step), FNUZ)


WARPS = 4


def tile_options(head_dim: int, rotary: int) -> dict:
    return dict(
        WIDTH=triton.next_power_of_2(head_dim),
        ROTATED=triton.next_power_of_2(max(rotary // 2, 1)),
        REST=triton.next_power_of_2(head_dim - rotary) if head_dim > rotary else 0,
        COLUMNS=16,
    )


def launch(args) -> None:
    total, query_heads, head_dim = args.q.shape
    if total == 0:
        return
    rows, kv_heads, rotary = args.rows, args.k.shape[1], args.cos_sin.shape[1]
    options = tile_options(head_dim, rotary)
    rotate[triton.cdiv(total, options["COLUMNS"]), query_heads + 2 * kv_heads](
        args.q,
        args.k,
        args.v,
        args.cos_sin,
        rows.cu_rows,
        rows.prefix_lens,
        rows.draft_len,
        rows.branch,
        args.query_scale,
        args.block_table,
        fp8.codes(args.k_cache),
        fp8.codes(args.v_cache),
        args.k_scale,
        args.v_scale,
        args.q_out,
        args.k_out,
        args.v_out,
        total,
        len(rows.prefix_lens),
        *args.q.stride()[:2],
        *args.k.stride()[:2],
        *args.v.stride()[:2],
        args.cos_sin.stride(0),
        rows.branch.stride(0),
        *strides(args.block_table, 1),
        *args.q_out.stride()[:2],
        *args.k_out.stride()[:2],
        *args.v_out.stride()[:2],
        **cache_strides(args),
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        DIM=head_dim,
        HALF_ROTARY=rotary // 2,
        PAGE=1 if args.k_cache is None else args.k_cache.shape[1],
        MASKS=rows.mask_rows,
        P=rows.branch.shape[1],
        FNUZ=fp8.is_fnuz(args.k_cache),
        **options,
        num_warps=WARPS,
    )


def compilations(arch: str):
    """(name, kernel, types, constants, options) for Nemotron-Labs-Diffusion 3B; see `offline`."""
    for dtype, low in (("bf16", False), ("fp32", False), ("bf16", True)):
        tensors = "q k v k_cache v_cache q_out k_out v_out"
        types = dict.fromkeys(tensors.split(), f"*{dtype}")
        types |= dict(cos_sin="*fp32", query_scale="*fp32")
        indices = "cu_rows prefix_lens draft_len branch block_table"
        types |= dict.fromkeys(indices.split(), "*i32")
        wide = "q_row q_head k_row k_head v_row v_head angle_row"
        wide += " q_out_row q_out_head k_out_row k_out_head v_out_row v_out_head"
        types |= dict.fromkeys(wide.split(), "i32:D")
        sizes = dict(QUERY_HEADS=32, KV_HEADS=8, DIM=128, HALF_ROTARY=64, PAGE=16, MASKS=16, P=3)
        sizes |= dict(FNUZ=arch == "gfx942", **tile_options(128, 128))
        sizes |= dict(zip(CACHE, (16384, 1024, 128) * 2 + (8, 1) * 2))
        if low:
            types |= dict(k_cache="*u8", v_cache="*u8", k_scale="*fp32", v_scale="*fp32")
        else:
            sizes |= dict(k_scale=None, v_scale=None)
        name = f"rotate {dtype}" + " fp8" * low
        yield name, rotate, types, sizes, dict(num_warps=WARPS)
