"""Stores the state after the last accepted verify row: convolution state, delayed value and prefix
length."""

import triton
import triton.language as tl

CHANNELS = 512  # of a program of `keep`, which is one wave
REQUESTS = 128  # of a program of `advance`


def launch_metadata(grid, kernel, args):
    layers, batch = args["conv_state"].shape[0], args["accepted"].shape[0]
    width = args["conv_state"].element_size()
    return {
        "name": f"commit layers={layers} requests={batch}",
        "bytes": 2 * layers * batch * (args["DEPTH"] * args["C"] + args["HALF"]) * width,
    }


@triton.jit(launch_metadata=launch_metadata)
def keep(
    qk,
    v_late,
    accepted,
    cu_rows,
    prefix_lens,
    conv_state,
    late_state,
    slots,
    qk_layer,
    qk_row,
    late_layer,
    late_row,
    conv_layer,
    conv_slot,
    conv_step,
    state_layer,
    state_slot,
    C: tl.constexpr,
    HALF: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Programs: (request, layer, channels of the convolution state, then of the delayed value)."""
    request = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64)
    a = tl.load(accepted + request)
    slot = tl.load(slots + request).to(tl.int64)
    if (a < 0) | (slot < 0):
        return
    last = tl.load(cu_rows + request).to(tl.int64) + a
    block = tl.program_id(2) - tl.cdiv(C, CHANNELS)
    if block >= 0:
        channel = block * CHANNELS + tl.arange(0, CHANNELS)
        value = tl.load(
            v_late + layer * late_layer + last * late_row + channel, mask=channel < HALF
        )
        tl.store(
            late_state + layer * state_layer + slot * state_slot + channel,
            value.to(late_state.dtype.element_ty),
            mask=channel < HALF,
        )
        return
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    used = channel < C
    state = conv_state + layer * conv_layer + slot * conv_slot + channel
    empty = tl.load(prefix_lens + request) == 0  # then the slot may hold anything and counts as 0
    # Step i of the new state is row a - (DEPTH-1-i) or, if that is negative, step i + a + 1 of the
    # old state. That step is not overwritten yet, because one thread updates all steps of a channel
    # in ascending order.
    for i in tl.static_range(DEPTH):
        row = a - (DEPTH - 1 - i)
        old = tl.load(state + (i + a + 1) * conv_step, mask=used & (row < 0), other=0)
        new = tl.load(
            qk + layer * qk_layer + (last - (DEPTH - 1 - i)) * qk_row + channel,
            mask=used & (row >= 0),
            other=0,
        )
        kept = tl.where(row >= 0, new.to(old.dtype), tl.where(empty, 0, old))
        tl.store(state + i * conv_step, kept, mask=used)


@triton.jit(do_not_specialize=["batch"])
def advance(accepted, prefix_lens, batch, REQUESTS: tl.constexpr):
    request = tl.program_id(0) * REQUESTS + tl.arange(0, REQUESTS)
    used = request < batch
    tl.store(
        prefix_lens + request,
        tl.load(prefix_lens + request, mask=used) + tl.load(accepted + request, mask=used) + 1,
        mask=used,
    )


def launch(args) -> None:
    """One launch for all layers; a second one for the prefix lengths, since every program of the
    first reads them."""
    qk, v_late, accepted, cu_rows, prefix_lens, conv_state, late_state, slots = args
    layers, _, channels = qk.shape
    depth, half, batch = conv_state.shape[2], v_late.shape[2], len(accepted)
    blocks = triton.cdiv(channels, CHANNELS) + triton.cdiv(half, CHANNELS)
    if layers:
        keep[(batch, layers, blocks)](
            qk,
            v_late,
            accepted,
            cu_rows,
            prefix_lens,
            conv_state,
            late_state,
            slots,
            *qk.stride()[:2],
            *v_late.stride()[:2],
            *conv_state.stride()[:3],
            *late_state.stride()[:2],
            C=channels,
            HALF=half,
            DEPTH=depth,
            CHANNELS=CHANNELS,
            num_warps=1,
        )
    advance[(triton.cdiv(batch, REQUESTS),)](
        accepted, prefix_lens, batch, REQUESTS=REQUESTS, num_warps=1
    )


def compilations(target: str):
    """(name, kernel, types, constants, options) for ZAYA1-8B, as `launch` compiles them; see
    `offline`."""
    for dtype in ("bf16", "fp32"):
        types = dict.fromkeys("qk v_late conv_state late_state".split(), f"*{dtype}")
        types |= dict.fromkeys("accepted cu_rows prefix_lens slots".split(), "*i32")
        yield (
            f"keep {dtype}",
            keep,
            types,
            dict(C=1280, HALF=128, DEPTH=2, CHANNELS=CHANNELS),
            dict(num_warps=1),
        )
