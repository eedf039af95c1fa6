"""The kernel of block_attention that reads keys and values."""

import triton
import triton.language as tl

from . import fp8
from .attention_parts import NOWHERE, chunks_of, finite_or_zero, join, row_of


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
    base = finite_or_zero(new_top)
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
    chunks, length = chunks_of(prefix, chunk_keys, MAX_CHUNKS)
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
    limit, proposal_first, position = row_of(row, first + count, verify, drafts, branch, MASK_ROWS)
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
            key_limit, _, _ = row_of(key, rows, verify, drafts, branch, MASK_ROWS)
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
            node, node_top, node_total = join(node, node_top, node_total, acc, top, total, scale)

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
