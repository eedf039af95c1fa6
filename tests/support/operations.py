"""Instructions that the emulator lacks, or has for some widths only, by numpy."""

import ctypes

import numpy as np
import torch

from blockdraft.reference.dequantize import E2M1

REGISTERS, LANES = 256, 64
M0 = 124
OFF = 124  # scalar registers from here on are no address
ONE = 242  # the operand 1.0
SCALARS, VECTORS = 128, 256  # operands below and from here on are registers
DECODING = (
    "V_CVT_PK_F32_FP8_E32",
    "V_CVT_SCALEF32_PK_F32_FP8",
    "V_CVT_SCALEF32_PK_BF16_FP8",
    "V_CVT_SCALEF32_PK_BF16_FP4",
)
E2M1 = np.array([*E2M1, *(-x for x in E2M1)], np.float32)
# By EF_AMDGPU_MACH in a code object's header: gfx942, gfx950.
FP8 = {0x4C: torch.float8_e4m3fnuz, 0x4F: torch.float8_e4m3fn}
# What each code is. NaN is quiet.
NUMBERS = {
    machine: torch.arange(256).to(torch.uint8).view(dtype).float().nan_to_num(torch.nan).numpy()
    for machine, dtype in FP8.items()
}


def of(inst):
    """What executes an instruction here: a function of it and the emulator's buffers; else None."""
    name = inst.op.name
    if name == "DS_READ_B64_TR_B16":
        return read_transposed
    if name in DECODING:
        return decode_pair
    if name == "V_CVT_PK_FP8_F32":
        return encode_pair
    if "_SWAP_B32" in name and "PERMLANE" in name:
        return swap_rows
    if name == "GLOBAL_ATOMIC_ADD":
        return add_to_memory
    if name in ("BUFFER_INV", "BUFFER_WBL2"):
        return lambda *_: None  # there is one memory
    if name == "S_SETREG_IMM32_B32":
        return lambda *_: None  # of the mode: whether subnormal numbers count, which they never do
    if type(inst).__name__ == "MUBUF" and not inst.lds:
        return buffer
    return (lambda *_: None) if "LOAD_LDS" in name else None  # it arrives later: to_lds


machine = 0  # that the emulator is at present


def words(address: int, count: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint32 * count).from_address(address))


def scalars(sgpr) -> np.ndarray:
    return words(sgpr.value, 260)


def pair(sgpr, first: int) -> int:
    low, high = scalars(sgpr)[first : first + 2]
    return int(low) | int(high) << 32


def vectors(buf) -> np.ndarray:
    return words(buf.value, REGISTERS * LANES).reshape(REGISTERS, LANES)


def advance(inst, sgpr) -> None:
    pc = pair(sgpr, 256) + inst.size()
    scalars(sgpr)[256:258] = pc & 0xFFFFFFFF, pc >> 32


def active(sgpr) -> np.ndarray:
    """The lanes that are on."""
    return np.flatnonzero([pair(sgpr, 126) >> lane & 1 for lane in range(LANES)])


def read_transposed(inst, sgpr, vgpr, _vmem, lds, _scratch, acc) -> None:
    """Sixteen lanes read four rows of sixteen 16-bit elements, four of a row each; each gets a
    column."""
    places = vectors(vgpr)[inst.addr.offset - 256] + inst.offset0 + (inst.offset1 << 8)
    assert len(active(sgpr)) == LANES, "ds_read_b64_tr_b16: expected all lanes on"
    read = np.stack([words(lds.value + int(place), 2) for place in places]).view(np.uint16)
    # group of lanes, row, element of the row
    columns = read.reshape(4, 4, 16).transpose(0, 2, 1).reshape(LANES, 4)
    first = inst.vdst.offset - 256
    found = np.ascontiguousarray(columns).view(np.uint32).T
    vectors(acc if inst.acc else vgpr)[first : first + 2] = found


def operand(at: int, sgpr, vgpr) -> np.ndarray:
    """Of each lane."""
    if at >= VECTORS:
        return vectors(vgpr)[at - VECTORS]
    assert at < SCALARS or at == ONE, "expected a register, or 1.0"
    return np.full(LANES, 0x3F800000 if at == ONE else scalars(sgpr)[at], np.uint32)


def decode_pair(inst, sgpr, vgpr, *_) -> None:
    """Two codes of fp8 or fp4 as fp32 or bf16; times a power of two."""
    name, sdwa = inst.op.name, type(inst).__name__ == "VOP1_SDWA"
    at = inst.vsrc0.offset - VECTORS * bool(inst.s0) if sdwa else inst.src0.offset
    given = operand(at, sgpr, vgpr)
    part = int(inst.src0_sel == 5) if sdwa else getattr(inst, "opsel", 0) & 3
    if "FP4" in name:
        byte = given >> 8 * part
        pair = [E2M1[code & 15] for code in (byte, byte >> 4)]
    else:
        both = given >> 16 * part
        pair = [NUMBERS[machine][code & 255] for code in (both, both >> 8)]
    if "SCALE" in name:
        scale = operand(inst.src1.offset, sgpr, vgpr) & 0x7F800000  # its power of two
        pair = [x * scale.view(np.float32) for x in pair]
    if "BF16" in name:
        low, high = (x.view(np.uint32) for x in pair)
        pair = [low >> 16 | high & 0xFFFF0000]
    first, lanes = inst.vdst.offset - VECTORS, active(sgpr)
    for i, numbers in enumerate(pair):
        vectors(vgpr)[first + i, lanes] = numbers.view(np.uint32)[lanes]


def encode_pair(inst, sgpr, vgpr, *_) -> None:
    """Two numbers of fp32 as fp8, to nearest, in one half of a register. What is beyond the largest
    becomes NaN, as it may unless MODE.FP16_OVFL is set."""
    assert not (inst.neg or inst.abs), inst
    codes = []
    for source in (inst.src0, inst.src1):
        x = torch.from_numpy(operand(source.offset, sgpr, vgpr).view(np.float32).copy())
        x[x.abs() > torch.finfo(FP8[machine]).max] = torch.nan
        codes.append(x.to(FP8[machine]).view(torch.uint8).numpy())
    halves = vectors(vgpr)[inst.vdst.offset - VECTORS].view(np.uint16).reshape(LANES, 2)
    lanes = active(sgpr)
    halves[lanes, inst.opsel >> 3] = (codes[0] | codes[1].astype(np.uint16) << 8)[lanes]


def swap_rows(inst, sgpr, vgpr, *_) -> None:
    """Odd rows of 16 or 32 lanes of the first register change places with even ones of the
    second."""
    assert len(active(sgpr)) == LANES, "v_permlane_swap: expected all lanes on"
    row = 16 if "16" in inst.op.name else 32
    first, second = (vectors(vgpr)[r.offset - 256] for r in (inst.vdst, inst.src0))
    odd, even = first.reshape(-1, 2, row)[:, 1], second.reshape(-1, 2, row)[:, 0]
    odd[:], even[:] = even.copy(), odd.copy()


WIDTHS = {"BYTE": 1, "SHORT": 2, "DWORD": 4, "DWORDX2": 8, "DWORDX3": 12, "DWORDX4": 16}


def buffer(inst, sgpr, vgpr, _vmem, _lds, _scratch, acc) -> None:
    """A load beyond the buffer's end gives 0, a store is dropped."""
    _, kind, item, *more = inst.op.name.split("_")
    assert not more and not inst.idxen and kind in ("LOAD", "STORE"), inst
    width = WIDTHS[item.removeprefix("U")]
    first = inst.srsrc.offset
    base = pair(sgpr, first) & (1 << 48) - 1
    records = int(scalars(sgpr)[first + 2])
    offsets = inst.offset + (vectors(vgpr)[inst.vaddr.offset - 256] if inst.offen else 0)
    offsets = np.broadcast_to(offsets, LANES).astype(np.int64) & 0xFFFFFFFF
    scalar = int(scalars(sgpr)[inst.soffset.offset])
    data = vectors(acc if inst.acc else vgpr)[inst.vdata.offset - 256 :][: -(-width // 4)]
    for lane in active(sgpr):
        address = base + scalar + int(offsets[lane])
        inside = offsets[lane] + width <= records
        if kind == "LOAD":
            read = ctypes.string_at(address, width) if inside else bytes(width)
            data[:, lane] = np.frombuffer(read.ljust(-(-width // 4) * 4, b"\0"), np.uint32)
        elif inside:
            ctypes.memmove(address, data[:, lane].tobytes(), width)


def to_lds(inst, bufs):
    """A load whose data goes to LDS: addresses are read now, memory and LDS when it arrives."""
    sgpr, vgpr, _vmem, lds, *_ = bufs
    count = {"X4": 4, "X3": 3}.get(inst.op.name[-2:], 1)
    sources, offset = addresses(inst, sgpr, vgpr)
    place = lds.value + (int(scalars(sgpr)[M0]) & 0xFFFF) + offset
    lanes = active(sgpr)

    def finish():
        for lane in lanes:
            words(place + 4 * count * int(lane), count)[:] = words(sources[lane], count)

    return finish


def addresses(inst, sgpr, vgpr) -> tuple[list[int], int]:
    """Of each lane, and the offset that they include."""
    offset = (inst.offset ^ 0x1000) - 0x1000
    low, high = vectors(vgpr)[inst.addr.offset - 256 : inst.addr.offset - 254].astype(np.uint64)
    based = inst.saddr.offset < OFF
    found = low + pair(sgpr, inst.saddr.offset) if based else low | high << np.uint64(32)
    return [int(address) + offset for address in found], offset


def add_to_memory(inst, sgpr, vgpr, *_) -> None:
    """Returns what was there, which the emulator does on RDNA only."""
    places, _ = addresses(inst, sgpr, vgpr)
    for lane in active(sgpr):
        word = words(places[lane], 1)
        before = int(word[0])
        word[0] = (before + int(vectors(vgpr)[inst.data.offset - 256, lane])) & 0xFFFFFFFF
        if inst.sc0:
            vectors(vgpr)[inst.vdst.offset - 256, lane] = before
