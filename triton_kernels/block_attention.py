"""Attention of verify rows and proposals over a paged prefix and each other.

A program is one (request, KV head, split of the prefix, row tile). The query heads of the KV head
are adjacent columns, so that a key is read once for all of them. A prefix consists of chunks, each
of which has a result of its own. Two adjacent ones are joined: by the program, if its split has
both, or else by the merge. So the order in which a row is summed depends on its own request alone.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from . import fp8
from .target import arch, dies

LOG2_E = 1.4426950408889634
NOWHERE = tl.constexpr(1 << 30)
FEW_COLUMNS = 64  # up to which a program may take two chunks


@dataclass(frozen=True)
class Config:
    columns: int  # of a row tile: rows x query heads of a KV head
    keys: int  # of a key tile; must not depend on the rows, since the order of sums depends on it
    xcds: int  # the dies to which the hardware assigns workgroups in turn
    options: dict  # of the compiler


def config(target: str, head_dim: int, itemsize: int, rows: int, group: int) -> Config:
    """For a target ("gfx942", "gfx950", "sm_90", "interpreter") and requests of up to `rows` rows,
    with `group` query heads for each KV head."""
    # The cost of a tile: its columns, and about 32 more because every tile stages the keys.
    sizes = (64,) if itemsize == 4 else (128, 64)
    columns = min(sizes, key=lambda size: triton.cdiv(rows, size // group) * (size + 32))
    if target == "interpreter":
        return Config(columns, 16, dies(target), {})
    # The waves divide the columns, so that a row's sums stay within a wave.
    options = dict(num_warps=4, num_stages=2)
    if target.startswith("gfx"):  # with two waves on a SIMD each has 256 registers
        options |= dict(matrix_instr_nonkdim=16, waves_per_eu=1 if itemsize == 4 else 2)
    return Config(columns, 32, dies(target), options)


@triton.jit
def _row(row, rows, verify, draft_len, branch, MASK_ROWS: tl.constexpr):
    """For a row of the request: how many verify keys it sees (0: it is dead), the first row of its
    proposal (NOWHERE: it is in none), and its position after the prefix."""
    is_mask = row >= verify
    proposal = (row - verify) // MASK_ROWS
    branch_of_row = tl.load(branch + proposal, mask=is_mask & (row < rows), other=0)
    limit = tl.where(is_mask, branch_of_row, row + 1)
    live = (limit >= 1) & (limit <= draft_len + 1) & (row < rows)
    first = tl.where(is_mask & live, verify + proposal * MASK_ROWS, NOWHERE)
    return (
        tl.where(live, limit, 0),
        first,
        tl.where(is_mask, branch_of_row + (row - verify) % MASK_ROWS, row),
    )


@triton.jit
def _chunks(prefix, chunk_keys, MAX_CHUNKS: tl.constexpr):
    """How many chunks a prefix has, and their length."""
    units = tl.cdiv(prefix, chunk_keys)
    length = tl.maximum(tl.cdiv(units, MAX_CHUNKS), 1) * chunk_keys
    return tl.maximum(tl.cdiv(prefix, length), 1), length


@triton.jit
def _finite_or_zero(top):
    """What is subtracted from scores: their maximum, or 0 if that is -inf, because (-inf) - (-inf)
    is NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def _join(out, top, total, right_out, right_top, right_total, scale):
    """Two adjacent chunks as one. A chunk joined with nothing stays the same to the bit. Nothing
    here may become a fused product and sum in one kernel but not in another."""
    new_top = tl.maximum(top, right_top)
    base = _finite_or_zero(new_top)
    left = tl.exp2((top - base) * scale)
    right = tl.exp2((right_top - base) * scale)
    out = tl.fma(right_out, right[:, None], out * left[:, None])
    return out, new_top, tl.fma(right_total, right, total * left)


@triton.jit
def _absorb(
    q, k, v, bias, acc, top, total, scale, k_scale=None, v_scale=None, FNUZ: tl.constexpr = False
):
    """Adds a tile of keys to the running output, maximum (of unscaled scores) and sum. bias: -inf
    where a key is not seen; k_scale, v_scale: of the rows of a cache of fp8."""
    if k_scale is not None:
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * k_scale
        scores = tl.where(bias == 0, scores, float("-inf"))
    else:
        if bias is not None:
            bias = tl.broadcast_to(bias, [q.shape[0], k.shape[0]])
        scores = tl.dot(q, tl.trans(k), bias, input_precision="ieee")
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = _finite_or_zero(new_top)
    weights = tl.exp2(scores * scale - (base * scale)[:, None])
    correction = tl.exp2((top - base) * scale)
    total = total * correction + tl.sum(weights, 1)
    if v_scale is not None:
        weights *= v_scale
        v = fp8.decoded(v, q.dtype, FNUZ)
    acc = tl.dot(weights.to(v.dtype), v, acc * correction[:, None], input_precision="ieee")
    return acc, new_top, total


@triton.jit
def _cached(cache, page, slot, d, d_mask, PAGE_STRIDE: tl.constexpr, SLOT: tl.constexpr):
    """[keys, dim] of a paged cache. The page offset may exceed 2^31."""
    return tl.load(
        cache + (page.to(tl.int64) * PAGE_STRIDE + slot * SLOT)[:, None] + d[None, :],
        mask=d_mask[None, :],
        other=0,
    )


@triton.jit
def _scales(
    k_scale,
    v_scale,
    table,
    start,
    last,
    key_column,
    k_scale_page,
    v_scale_page,
    PAGE: tl.constexpr,
):
    """Of keys and values from a page's beginning on. With one scale for all of a large page
    gfx942's compiler would run out of registers."""
    KEYS: tl.constexpr = key_column.shape[0]
    STEP: tl.constexpr = min(PAGE, KEYS // 2)
    page = tl.load(table + tl.minimum(start, last) // PAGE).to(tl.int64)
    of_k = tl.load(k_scale + page * k_scale_page)
    of_v = tl.load(v_scale + page * v_scale_page)
    for i in tl.static_range(1, KEYS // STEP):
        page = tl.load(table + tl.minimum(start + i * STEP, last) // PAGE).to(tl.int64)
        before = key_column < i * STEP
        of_k = tl.where(before, of_k, tl.load(k_scale + page * k_scale_page))
        of_v = tl.where(before, of_v, tl.load(v_scale + page * v_scale_page))
    return tl.broadcast_to(of_k, [KEYS])[None, :], tl.broadcast_to(of_v, [KEYS])[None, :]


@triton.jit
def _finish(acc, top, total, live, used, at_out, at_lse, d, d_mask, out, lse, scale):
    """Normalises and stores. A row that sees nothing gets 0."""
    live &= total != 0
    result = tl.where(live[:, None], acc * (1 / tl.where(live, total, 1))[:, None], 0)
    tl.store(
        out + (at_out[:, None] + d[None, :]),
        result.to(out.dtype.element_ty),
        mask=used[:, None] & d_mask[None, :],
    )
    if lse is not None:
        natural = (top * scale + tl.log2(total)) * 0.6931471805599453
        tl.store(lse + at_lse, tl.where(live, natural, float("-inf")), mask=used)


def launch_metadata(grid, kernel, args):
    """For profilers: operations and bytes if every request had max_prefix cached tokens."""
    rows, prefix, dim, heads = (
        args["total_rows"],
        args["max_prefix"],
        args["DIM"],
        args["GROUP"] * args["KV_HEADS"],
    )
    width = args["q"].dtype.itemsize
    cached = 2 * args["batch"] * prefix * args["KV_HEADS"]
    return {
        "name": f"block_attention rows={rows} prefix={prefix}",
        f"flops{8 * width}": 4 * rows * heads * dim * (prefix + args["max_rows"] // 2),
        "bytes": (cached + 2 * rows * (heads + args["KV_HEADS"])) * dim * width,
    }


_RUNTIME = [
    "batch",
    "total_rows",
    "max_rows",
    "max_prefix",
    "chunk_keys",
    "table_row",
    "branch_row",
    "proposals",
    "window",
    "k_scale_page",
    "k_scale_head",
    "v_scale_page",
    "v_scale_head",
]


@triton.jit(launch_metadata=launch_metadata, do_not_specialize=_RUNTIME)
def attend(
    q,
    k,
    v,
    k_cache,
    v_cache,
    k_scale,
    v_scale,
    block_table,
    cu_rows,
    prefix_lens,
    draft_len,
    branch,
    out,
    lse,
    workspace,
    batch,
    total_rows,
    max_rows,
    max_prefix,
    chunk_keys,
    table_row,
    branch_row,
    proposals,
    window,
    k_scale_page,
    k_scale_head,
    v_scale_page,
    v_scale_head,
    scale,
    # Strides are constants, because they are the same for all calls of a model and addresses can
    # then be folded.
    Q_ROW: tl.constexpr,
    Q_HEAD: tl.constexpr,
    K_ROW: tl.constexpr,
    K_HEAD: tl.constexpr,
    V_ROW: tl.constexpr,
    V_HEAD: tl.constexpr,
    K_PAGE: tl.constexpr,
    K_SLOT: tl.constexpr,
    K_CACHE_HEAD: tl.constexpr,
    V_PAGE: tl.constexpr,
    V_SLOT: tl.constexpr,
    V_CACHE_HEAD: tl.constexpr,
    OUT_ROW: tl.constexpr,
    OUT_HEAD: tl.constexpr,
    LSE_ROW: tl.constexpr,
    LSE_HEAD: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    BIDIRECTIONAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    FNUZ: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    SPLIT_CHUNKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    PADDED: tl.constexpr,
    XCDS: tl.constexpr,
):
    # The row tiles that read the same keys run on one die; such groups of tiles go to the dies in
    # turn.
    TILE_ROWS: tl.constexpr = COLUMNS // GROUP
    program = tl.program_id(0)
    tiles = tl.cdiv(max_rows, TILE_ROWS)
    most = tl.maximum(tl.minimum(tl.cdiv(max_prefix, chunk_keys), MAX_CHUNKS), 1)
    most = tl.cdiv(most, SPLIT_CHUNKS)
    place = program // XCDS
    part = place // tiles * XCDS + program % XCDS
    tile = place % tiles
    split = part % most
    kv_head = part // most % KV_HEADS
    request = part // most // KV_HEADS
    if request >= batch:
        return
    base = tl.load(cu_rows + request)
    rows = tl.load(cu_rows + request + 1) - base
    prefix = tl.load(prefix_lens + request)
    drafts = tl.load(draft_len + request)
    chunks, length = _chunks(prefix, chunk_keys, MAX_CHUNKS)
    own_tiles = tl.cdiv(rows, TILE_ROWS)
    if (split * SPLIT_CHUNKS >= chunks) | (tile >= own_tiles):
        return
    verify = rows - proposals * MASK_ROWS
    branch += request * branch_row

    # rows first .. first + count - 1: the rows of the request are divided evenly
    share = rows // own_tiles
    extra = rows % own_tiles
    first = tile * share + tl.minimum(tile, extra)
    count = share + (tile < extra).to(tl.int32)
    column = tl.arange(0, COLUMNS)
    row = first + column // GROUP
    head = kv_head * GROUP + column % GROUP
    used = column < count * GROUP
    limit, proposal_first, position = _row(row, first + count, verify, drafts, branch, MASK_ROWS)
    live = limit > 0
    most_limit = tl.max(limit)
    floor = position - window  # a key is seen iff its position after the prefix exceeds this
    lowest = tl.min(tl.where(live, floor, NOWHERE))

    d = tl.arange(0, PADDED)
    d_mask = d < DIM
    base64 = base.to(tl.int64)
    # unused columns repeat the last row
    at_q = tl.minimum(column // GROUP, count - 1) * Q_ROW + head * Q_HEAD
    queries = tl.load(
        q + (base64 + first) * Q_ROW + (at_q[:, None] + d[None, :]), mask=d_mask[None, :], other=0
    )
    key_column = tl.arange(0, KEYS)
    if k_cache is not None:
        table = block_table + request.to(tl.int64) * table_row
        k_cache += kv_head * K_CACHE_HEAD
        v_cache += kv_head * V_CACHE_HEAD
    if k_scale is not None:
        k_scale += kv_head * k_scale_head
        v_scale += kv_head * v_scale_head
    for i in tl.static_range(SPLIT_CHUNKS):
        chunk = split * SPLIT_CHUNKS + i
        acc = tl.zeros([COLUMNS, PADDED], tl.float32)
        top = tl.full([COLUMNS], float("-inf"), tl.float32)
        total = tl.zeros([COLUMNS], tl.float32)

        if k_cache is not None:
            begin = chunk * length
            stop = tl.where(most_limit > 0, tl.minimum(begin + length, prefix), begin)
            if WINDOWED:
                begin += tl.maximum(lowest + 1 + prefix - begin, 0) // KEYS * KEYS
            whole = begin
            if not WINDOWED and k_scale is None:
                whole += (stop - begin) // KEYS * KEYS
                page = tl.load(
                    table + (begin + key_column) // PAGE, mask=begin + key_column < whole, other=0
                )
                for start in range(begin, whole, KEYS):
                    key = start + key_column
                    keys = _cached(k_cache, page, key % PAGE, d, d_mask, K_PAGE, K_SLOT)
                    values = _cached(v_cache, page, key % PAGE, d, d_mask, V_PAGE, V_SLOT)
                    page = tl.load(
                        table + tl.minimum(key + KEYS, stop - 1) // PAGE
                    )  # for the next key tile
                    acc, top, total = _absorb(queries, keys, values, None, acc, top, total, scale)
            if whole < stop:
                # A tile is loaded while the one before is absorbed. Beyond `stop`, slots may hold
                # anything and table entries may be no pages.
                key = tl.minimum(whole + key_column, stop - 1)
                page = tl.load(table + key // PAGE)
                next_keys = _cached(k_cache, page, key % PAGE, d, d_mask, K_PAGE, K_SLOT)
                next_values = _cached(v_cache, page, key % PAGE, d, d_mask, V_PAGE, V_SLOT)
                if k_scale is not None:
                    next_k_scale, next_v_scale = _scales(
                        k_scale,
                        v_scale,
                        table,
                        whole,
                        stop - 1,
                        key_column,
                        k_scale_page,
                        v_scale_page,
                        PAGE,
                    )
                for start in tl.range(whole, stop, KEYS, num_stages=1):
                    keys = next_keys
                    values = next_values
                    key = tl.minimum(start + KEYS + key_column, stop - 1)
                    page = tl.load(table + key // PAGE)
                    next_keys = _cached(k_cache, page, key % PAGE, d, d_mask, K_PAGE, K_SLOT)
                    next_values = _cached(v_cache, page, key % PAGE, d, d_mask, V_PAGE, V_SLOT)
                    key_scale = None
                    value_scale = None
                    if k_scale is not None:
                        keys = fp8.decoded(keys, q.dtype.element_ty, FNUZ)
                        key_scale = next_k_scale
                        value_scale = next_v_scale
                        next_k_scale, next_v_scale = _scales(
                            k_scale,
                            v_scale,
                            table,
                            start + KEYS,
                            stop - 1,
                            key_column,
                            k_scale_page,
                            v_scale_page,
                            PAGE,
                        )
                    # A key is seen if its margin is not negative.
                    key = start + key_column
                    margin = (stop - 1 - key)[None, :]
                    if WINDOWED:
                        margin = tl.minimum(margin, key[None, :] - (prefix + floor + 1)[:, None])
                    bias = tl.where(margin >= 0, 0.0, float("-inf"))
                    acc, top, total = _absorb(
                        queries,
                        keys,
                        values,
                        bias,
                        acc,
                        top,
                        total,
                        scale,
                        key_scale,
                        value_scale,
                        FNUZ,
                    )

        # The last chunk also has the keys of this pass: the key tiles of verify rows below the
        # highest limit, and those of the proposals that this row tile touches. Key tiles are
        # counted from the request's first row, independently of the row tile.
        proposal_stop = tl.where(
            proposal_first == NOWHERE, 0, proposal_first + MASK_ROWS if BIDIRECTIONAL else row + 1
        )
        masks_first = tl.min(proposal_first) // KEYS
        masks_stop = tl.cdiv(tl.max(proposal_stop), KEYS)
        verify_stop = tl.cdiv(most_limit, KEYS)
        verify_first = verify_stop * 0
        if WINDOWED:
            verify_first = tl.minimum(tl.maximum(lowest + 1, 0) // KEYS, verify_stop)
        verify_tiles = verify_stop - verify_first
        masks_first = tl.where(verify_tiles > 0, tl.maximum(masks_first, verify_stop), masks_first)
        visits = tl.where(
            chunk == chunks - 1, verify_tiles + tl.maximum(masks_stop - masks_first, 0), 0
        )
        for visit in tl.range(0, visits, num_stages=1):
            start = (
                tl.where(
                    visit < verify_tiles, verify_first + visit, masks_first + visit - verify_tiles
                )
                * KEYS
            )
            key = start + key_column
            verify_margin = (limit - 1)[:, None] - key[None, :]
            if WINDOWED:
                verify_margin = tl.minimum(verify_margin, key[None, :] - (floor + 1)[:, None])
            proposal_margin = tl.minimum(
                key[None, :] - proposal_first[:, None], (proposal_stop - 1)[:, None] - key[None, :]
            )
            bias = tl.where(tl.maximum(verify_margin, proposal_margin) >= 0, 0.0, float("-inf"))
            key_limit, _, _ = _row(key, rows, verify, drafts, branch, MASK_ROWS)
            readable = (key_limit > 0)[:, None] & d_mask[None, :]  # dead rows may hold anything
            offset = key_column[:, None]
            keys = tl.load(
                k + (base64 + start) * K_ROW + kv_head * K_HEAD + (offset * K_ROW + d[None, :]),
                mask=readable,
                other=0,
            )
            values = tl.load(
                v + (base64 + start) * V_ROW + kv_head * V_HEAD + (offset * V_ROW + d[None, :]),
                mask=readable,
                other=0,
            )
            acc, top, total = _absorb(queries, keys, values, bias, acc, top, total, scale)
        if i == 0:
            node, node_top, node_total = acc, top, total
        else:
            node, node_top, node_total = _join(node, node_top, node_total, acc, top, total, scale)

    if workspace is None:
        out += (base64 + first) * OUT_ROW
        if lse is not None:
            lse += (base64 + first) * LSE_ROW
        local = column // GROUP
        _finish(
            node,
            node_top,
            node_total,
            live,
            used,
            local * OUT_ROW + head * OUT_HEAD,
            local * LSE_ROW + head * LSE_HEAD,
            d,
            d_mask,
            out,
            lse,
            scale,
        )
    else:
        partial = workspace + (split * total_rows + base64 + first) * (KV_HEADS * GROUP * (DIM + 2))
        partial += (column // GROUP * (KV_HEADS * GROUP) + head) * (DIM + 2)
        tl.store(partial[:, None] + d[None, :], node, mask=used[:, None] & d_mask[None, :])
        tl.store(partial + DIM, node_top, mask=used)
        tl.store(partial + DIM + 1, node_total, mask=used)


@triton.jit
def _node(partial, apart, split, splits, d, DIM: tl.constexpr):
    """The output, maximum and sum of splits, of which some may not be there."""
    there = split < splits
    at = partial + split * apart
    out = tl.load(at[:, None] + d[None, :], mask=there[:, None] & (d < DIM)[None, :], other=0)
    top = tl.load(at + DIM, mask=there, other=float("-inf"))
    return out, top, tl.load(at + DIM + 1, mask=there, other=0)


@triton.jit(do_not_specialize=["total_rows", "max_rows", "chunk_keys", "branch_row", "proposals"])
def merge(
    cu_rows,
    prefix_lens,
    draft_len,
    branch,
    out,
    lse,
    workspace,
    total_rows,
    max_rows,
    chunk_keys,
    branch_row,
    proposals,
    scale,
    OUT_ROW: tl.constexpr,
    OUT_HEAD: tl.constexpr,
    LSE_ROW: tl.constexpr,
    LSE_HEAD: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    MASK_ROWS: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    SPLIT_CHUNKS: tl.constexpr,
    PAIRS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Merges the splits of a row and head, all of which are read at once. Pairs of chunks are
    summed, as many for every prefix, so that the order does not depend on the batch."""
    entries = max_rows * HEADS
    request = tl.program_id(0) // entries
    entry = tl.program_id(0) % entries
    base = tl.load(cu_rows + request)
    rows = tl.load(cu_rows + request + 1) - base
    chunks, _ = _chunks(tl.load(prefix_lens + request), chunk_keys, MAX_CHUNKS)
    splits = tl.cdiv(chunks, SPLIT_CHUNKS)
    row = entry // HEADS
    head = entry % HEADS
    if row >= rows:
        return
    limit, _, _ = _row(
        row,
        rows,
        rows - proposals * MASK_ROWS,
        tl.load(draft_len + request),
        branch + request * branch_row,
        MASK_ROWS,
    )
    d = tl.arange(0, PADDED)
    row64 = base.to(tl.int64) + row
    partial = workspace + (row64 * HEADS + head) * (DIM + 2)
    apart = total_rows.to(tl.int64) * HEADS * (DIM + 2)
    pair = tl.arange(0, PAIRS)
    if SPLIT_CHUNKS == 1:
        outputs, tops, sums = _node(partial, apart, 2 * pair, splits, d, DIM)
        right, right_tops, right_sums = _node(partial, apart, 2 * pair + 1, splits, d, DIM)
        outputs, tops, sums = _join(outputs, tops, sums, right, right_tops, right_sums, scale)
    else:
        outputs, tops, sums = _node(partial, apart, pair, splits, d, DIM)
    top = tl.max(tops, 0)
    weights = tl.exp2((tops - _finite_or_zero(top)) * scale)
    total = tl.sum(sums * weights, 0)
    result = tl.sum(outputs * weights[:, None], 0)
    live = (limit > 0) & (total != 0)
    result = tl.where(live, result * (1 / tl.where(live, total, 1)), 0)
    at = row64 * OUT_ROW + head * OUT_HEAD
    tl.store(out + at + d, result.to(out.dtype.element_ty), mask=d < DIM)
    if lse is not None:
        natural = (top * scale + tl.log2(total)) * 0.6931471805599453
        tl.store(lse + row64 * LSE_ROW + head * LSE_HEAD, tl.where(live, natural, float("-inf")))


def _constants(
    settings: Config, q, k, v, caches, out, lse, mask_rows, bidirectional, window, max_chunks
) -> dict:
    """The kernel's constexpr arguments; tensors only for their shapes and strides."""
    (k_cache, v_cache), kv_heads = caches, k.shape[1]
    k_strides, v_strides = (
        c.stride()[:3] if c is not None else (0, 0, 0) for c in (k_cache, v_cache)
    )
    names = (
        "Q_ROW Q_HEAD K_ROW K_HEAD V_ROW V_HEAD "
        "K_PAGE K_SLOT K_CACHE_HEAD V_PAGE V_SLOT V_CACHE_HEAD"
    ).split()
    strides = dict(
        zip(names, (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *k_strides, *v_strides))
    )
    return strides | dict(
        _output_constants(q, out, lse, mask_rows, max_chunks),
        KV_HEADS=kv_heads,
        GROUP=q.shape[1] // kv_heads,
        PAGE=k_cache.shape[1] if k_cache is not None else 1,
        BIDIRECTIONAL=bidirectional,
        WINDOWED=window > 0,
        FNUZ=fp8.is_fnuz(k_cache),
        COLUMNS=settings.columns,
        KEYS=settings.keys,
        XCDS=settings.xcds,
    )


def _output_constants(q, out, lse, mask_rows, max_chunks) -> dict:
    """The constexpr arguments that both kernels have."""
    lse_row, lse_head = lse.stride() if lse is not None else (0, 0)
    return dict(
        OUT_ROW=out.stride(0),
        OUT_HEAD=out.stride(1),
        LSE_ROW=lse_row,
        LSE_HEAD=lse_head,
        DIM=q.shape[2],
        PADDED=max(16, triton.next_power_of_2(q.shape[2])),
        MASK_ROWS=mask_rows,
        MAX_CHUNKS=max_chunks,
    )


def launch(args) -> None:
    """Runs the kernels on `ops.block_attention.Args`."""
    q, k, v, k_cache, v_cache, k_scale, v_scale = args[:7]
    block_table, rows, scale, window, *chunking, out, lse, workspace = args[7:]
    chunk_keys, max_chunks, split_chunks = chunking
    cu_rows, prefix_lens, draft_len, branch = (
        rows.cu_rows,
        rows.prefix_lens,
        rows.draft_len,
        rows.branch,
    )
    mask_rows, max_rows, max_prefix = rows.mask_rows, rows.max_rows, rows.max_prefix
    if q.numel() == 0:
        return
    batch, proposals, heads, kv_heads = len(prefix_lens), branch.shape[1], q.shape[1], k.shape[1]
    settings = config(arch(), q.shape[2], q.element_size(), max_rows, heads // kv_heads)
    constants = _constants(
        settings,
        q,
        k,
        v,
        (k_cache, v_cache),
        out,
        lse,
        mask_rows,
        rows.bidirectional,
        window,
        max_chunks,
    )
    if settings.columns > FEW_COLUMNS:  # two results would take too many registers
        split_chunks = 1
    tiles = triton.cdiv(max_rows, settings.columns // constants["GROUP"])
    most_chunks = max(1, min(triton.cdiv(max_prefix, chunk_keys), max_chunks))
    splits = triton.cdiv(most_chunks, split_chunks)
    parts = triton.cdiv(batch * kv_heads * splits, settings.xcds) * settings.xcds
    table_row = block_table.stride(0) if block_table is not None else 0
    attend[(parts * tiles,)](
        q,
        k,
        v,
        fp8.codes(k_cache),
        fp8.codes(v_cache),
        k_scale,
        v_scale,
        block_table,
        cu_rows,
        prefix_lens,
        draft_len,
        branch,
        out,
        lse,
        workspace if splits > 1 else None,
        batch,
        len(q),
        max_rows,
        max_prefix,
        chunk_keys,
        table_row,
        branch.stride(0),
        proposals,
        window,
        *((0, 0) if k_scale is None else k_scale.stride()),
        *((0, 0) if v_scale is None else v_scale.stride()),
        scale * LOG2_E,
        SPLIT_CHUNKS=split_chunks,
        **constants,
        **settings.options,
    )
    if splits > 1:
        merge[(batch * max_rows * heads,)](
            cu_rows,
            prefix_lens,
            draft_len,
            branch,
            out,
            lse,
            workspace,
            len(q),
            max_rows,
            chunk_keys,
            branch.stride(0),
            proposals,
            scale * LOG2_E,
            **_output_constants(q, out, lse, mask_rows, max_chunks),
            HEADS=heads,
            SPLIT_CHUNKS=split_chunks,
            PAIRS=max(1, triton.next_power_of_2(max_chunks) // 2),
            num_warps=4,
        )


def compilations(target: str):
    """(name, kernel, types, constants, options) of decode steps of ZAYA1-8B, as `launch` compiles
    them; see `offline`."""
    kv_heads, group, page = 2, 4, 16
    for dtype, itemsize, cached in (
        ("bf16", 2, "bf16"),
        ("bf16", 2, "u8"),
        ("fp16", 2, "fp16"),
        ("fp32", 4, "fp32"),
    ):
        scaled = cached == "u8"
        types = dict.fromkeys("q k v out".split(), f"*{dtype}") | {
            "k_cache": f"*{cached}",
            "v_cache": f"*{cached}",
            "k_scale": "*fp32",
            "v_scale": "*fp32",
            "lse": "*fp32",
            "workspace": "*fp32",
            "scale": "fp32",
        }
        types |= dict.fromkeys("block_table cu_rows prefix_lens draft_len branch".split(), "*i32")
        for dim in (128, 64):
            row, slot = kv_heads * group * dim, kv_heads * dim
            output = dict(
                OUT_ROW=row,
                OUT_HEAD=dim,
                LSE_ROW=kv_heads * group,
                LSE_HEAD=1,
                DIM=dim,
                PADDED=dim,
                MASK_ROWS=16,
                MAX_CHUNKS=64,
            )
            fixed = output | dict(
                Q_ROW=row,
                Q_HEAD=dim,
                K_ROW=slot,
                K_HEAD=dim,
                V_ROW=slot,
                V_HEAD=dim,
                K_PAGE=page * slot,
                K_SLOT=slot,
                K_CACHE_HEAD=dim,
                V_PAGE=page * slot,
                V_SLOT=slot,
                V_CACHE_HEAD=dim,
                KV_HEADS=kv_heads,
                GROUP=group,
                PAGE=page,
            )
            for rows, window, splits, together in (
                (64, False, True, 1),
                (64, False, False, 1),
                (64, True, True, 1),
                (1, False, True, 1),
                (1, False, True, 2),
            ):
                settings = config(target, dim, itemsize, rows, group)
                constants = fixed | dict(
                    BIDIRECTIONAL=not window,
                    WINDOWED=window,
                    FNUZ=target == "gfx942",
                    COLUMNS=settings.columns,
                    KEYS=settings.keys,
                    XCDS=settings.xcds,
                    SPLIT_CHUNKS=together,
                )
                if not splits:
                    constants["workspace"] = None
                if not scaled:
                    constants |= dict(k_scale=None, v_scale=None)
                name = (
                    f"attend {dtype} dim={dim} rows={rows}"
                    + " fp8" * scaled
                    + " window causal" * window
                    + " unsplit" * (not splits)
                    + " pairs" * (together > 1)
                )
                yield name, attend, types, constants, settings.options
            for together in (1, 2) if not scaled else ():
                constants = output | dict(HEADS=kv_heads * group, SPLIT_CHUNKS=together, PAIRS=32)
                name = f"merge {dtype} dim={dim}" + " pairs" * (together > 1)
                yield name, merge, types, constants, dict(num_warps=4)
