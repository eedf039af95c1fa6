"""Attention of verify rows and proposals over a paged prefix and each other.

A program is one (request, KV head, split of the prefix, row tile). The query heads of the KV head
are adjacent columns, so that a key is read once for all of them. A prefix consists of chunks, each
of which has a result of its own. Two adjacent ones are joined: by the program, if its split has
both, or else by the merge. So the order in which a row is summed depends on its own request alone.
"""

from dataclasses import dataclass

import triton

from . import fp8
from .attend import attend
from .attention_merge import merge
from .target import arch, dies

LOG2_E = 1.4426950408889634
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
