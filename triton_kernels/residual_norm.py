"""The residual stream after a block's output was added to it, and its RMSNorm."""

import triton
import triton.language as tl


def launch_metadata(grid, kernel, args):
    rows, hidden = args["rows"], args["HIDDEN"]
    width = args["x"].element_size()
    streams = (args["residual"] is not None) + (args["stream"] is not None)
    return {
        "name": f"residual_norm rows={rows} hidden={hidden}",
        "bytes": rows * hidden * (2 * width + 4 * streams),
    }


@triton.jit
def _scaled(y, scale, bias, column, used):
    if bias is not None:
        y += tl.load(bias + column, mask=used, other=0).to(tl.float32)
    if scale is not None:
        y *= tl.load(scale + column, mask=used, other=0).to(tl.float32)
    return y


@triton.jit(launch_metadata=launch_metadata, do_not_specialize=["rows"])
def norm(
    x,
    weight,
    scale,
    bias,
    residual,
    residual_scale,
    residual_bias,
    index,
    out,
    stream,
    eps,
    rows,
    x_row,
    residual_row,
    out_row,
    stream_row,
    HIDDEN: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Programs: rows."""
    row = tl.program_id(0).to(tl.int64)
    source = row if index is None else tl.load(index + row).to(tl.int64)
    column = tl.arange(0, PADDED)
    used = column < HIDDEN
    y = tl.load(x + source * x_row + column, mask=used, other=0).to(tl.float32)
    y = _scaled(y, scale, bias, column, used)
    if residual is not None:
        before = tl.load(residual + source * residual_row + column, mask=used, other=0)
        y += _scaled(before, residual_scale, residual_bias, column, used)
    if stream is not None:
        tl.store(stream + row * stream_row + column, y, mask=used)
    y = tl.where(used, y, 0).to(out.dtype.element_ty).to(tl.float32)
    factor = 1 / tl.sqrt(tl.sum(y * y) / HIDDEN + eps)
    y *= factor * tl.load(weight + column, mask=used, other=0).to(tl.float32)
    tl.store(out + row * out_row + column, y.to(out.dtype.element_ty), mask=used)


def warps(padded: int) -> int:
    """Enough for 16 bytes in each thread at a time."""
    return max(1, min(8, padded // 512))


def launch(args) -> None:
    rows, hidden = args.norm.shape
    if rows == 0:
        return
    padded = triton.next_power_of_2(hidden)
    norm[(rows,)](
        args.x,
        args.weight,
        args.scale,
        args.bias,
        args.residual,
        args.residual_scale,
        args.residual_bias,
        args.index,
        args.norm,
        args.stream,
        args.eps,
        rows,
        args.x.stride(0),
        0 if args.residual is None else args.residual.stride(0),
        args.norm.stride(0),
        0 if args.stream is None else args.stream.stride(0),
        HIDDEN=hidden,
        PADDED=padded,
        num_warps=warps(padded),
    )


def compilations(arch: str):
    """(name, kernel, types, constants, options) for ZAYA1-8B; see `offline`."""
    for dtype in ("bf16", "fp32"):
        names = "x weight scale bias residual_scale residual_bias out"
        types = dict.fromkeys(names.split(), f"*{dtype}")
        types |= dict(residual="*fp32", stream="*fp32", index="*i32", eps="fp32", rows="i32")
        types |= dict.fromkeys("x_row residual_row out_row stream_row".split(), "i32:D")
        yield f"norm {dtype}", norm, types, dict(HIDDEN=2048, PADDED=2048), dict(num_warps=4)
