"""What tests change in tinygrad's CDNA emulator (of August 2026): faults, what it lacks, and how
its workgroups advance."""

# (wrong, right) in test/mockgpu/amd/emu.py
SOURCE = {
    "the row of a 32x32 MFMA result register": (
        "m_base = c_grp * UOp.const(16, dtypes.int) + "
        "UOp.const((out_reg // 4) * 4 + out_reg % 4, dtypes.int)",
        "m_base = c_grp * UOp.const(4, dtypes.int) + "
        "UOp.const((out_reg // 4) * 8 + out_reg % 4, dtypes.int)",
    ),
    "MFMA operands in AGPRs": (
        "is_vgpr.where(ctx.rvgpr_dyn(off - _c(256 - reg_idx), read_lane)",
        "is_vgpr.where((ctx.raccvgpr_dyn if _iattr(inst, 'acc') & (2 if base else 1) "
        "else ctx.rvgpr_dyn)(off - _c(256 - reg_idx), read_lane)",
    ),
    "data of LDS stores in AGPRs": (
        "ctx.rvgpr_dyn(vdata_reg",
        "(ctx.raccvgpr_dyn if use_acc else ctx.rvgpr_dyn)(vdata_reg",
    ),
    "second data of LDS stores in AGPRs": (
        "ctx.rvgpr_dyn(data1_reg",
        "(ctx.raccvgpr_dyn if use_acc else ctx.rvgpr_dyn)(data1_reg",
    ),
    "the source lanes of row_bcast:15 and :31": (
        "elif op == 'row_bcast': src_lane = row_base",
        "elif op == 'row_bcast': src_lane, valid = "
        "(row_base - _c(1, dtypes.int), row > _c(0, dtypes.int)) if arg == 15 "
        "else (_c(31, dtypes.int), row > _c(1, dtypes.int))",
    ),
    "loads from LDS by lanes that are off, whose addresses are anything": (
        "'_lds': mem, 'laneId': lane,",
        "'_lds': mem, 'laneId': lane, '_active': _lane_active(exec_mask, lane),",
    ),
    # A register of 128 and above is the high half of another one on RDNA only
    "16-bit results in v128 and above": (
        "write_hi_half = bits['d'] == 16 and (vdst_reg >= _c(128))",
        "write_hi_half = bits['d'] == 16 and ctx.wave_size != 64 and (vdst_reg >= _c(128))",
    ),
    "16-bit second operands in v128 and above": (
        "vsrc1_hi = bits['s0'] == 16 and (vsrc1_reg >= _c(128))",
        "vsrc1_hi = bits['s0'] == 16 and ctx.wave_size != 64 and (vsrc1_reg >= _c(128))",
    ),
    "16-bit first operands in v128 and above": (
        "if bits['s0'] == 16:  # src0 >= 384",
        "if bits['s0'] == 16 and ctx.wave_size != 64:  # src0 >= 384",
    ),
    "16-bit comparisons of v128 and above": (
        "    if bits['s0'] == 16:\n      vsrc1_hi = vsrc1_off",
        "    if bits['s0'] == 16 and ctx.wave_size != 64:\n      vsrc1_hi = vsrc1_off",
    ),
    "it lacks ds_swizzle_b32": (
        "if is_lds and 'PERMUTE' in op_name:",
        "if is_lds and ('PERMUTE' in op_name or 'SWIZZLE' in op_name):",
    ),
    "operations of waves.py": (
        "      (prg, runtime), inst = _decode_at(pc, arch)\n",
        "      own = schedule.operation(pc)\n"
        "      if own: program[pc] = own\n"
        "      if own: return own\n"
        "      (prg, runtime), inst = _decode_at(pc, arch)\n",
    ),
    "LDS of its own, poisoned, for each workgroup": (
        "    waves: list[tuple[WaveState, list]] = []\n",
        "    lds_buf = Buffer('CPU', max(lds_size // 4, 1), dtypes.uint32).ensure_allocated()\n"
        "    ctypes.memset(lds_buf._buf.va_addr, 0xFF, max(lds_size, 4))\n"
        "    waves: list[tuple[WaveState, list]] = []\n",
    ),
    "waves in any order": (
        "      for wi, (st, c_bufs) in enumerate(waves):\n",
        "      for wi, (st, c_bufs) in schedule.shuffled(enumerate(waves)):\n",
    ),
    "what a wave executes": (
        "          fxn(*[c_bufs[g] for g in globals_list])\n",
        "          schedule.before((gidx, wi), inst)\n"
        "          fxn(*[c_bufs[g] for g in globals_list])\n"
        "          schedule.after((gidx, wi), inst, c_bufs)\n",
    ),
    "workgroups advance from barrier to barrier": (
        "      # All waves have either hit barrier or endpgm",
        "      yield\n      # All waves have either hit barrier or endpgm",
    ),
    "workgroups in turns": (
        "    for gidz, gidy, gidx in itertools.product(range(gz), range(gy), range(gx)):\n"
        "      _run_workgroup(gidx, gidy, gidz, tracing)\n"
        "      tracing = False  # only trace the first workgroup\n"
        "      if lds_size > 0: ctypes.memset(lds_buf._buf.va_addr, 0, max(lds_size, 4))"
        "  # reset LDS for next workgroup\n",
        "    schedule.interleave(_run_workgroup(x, y, z, False) for z, y, x in "
        "itertools.product(range(gz), range(gy), range(gx)))\n",
    ),
}

# Triton's reductions use it only to exchange each lane with lane ^ 16
SWIZZLE = """declare tmp : 32'B[64];
declare DATA0 : 32'U;
declare ADDR : 32'U;
declare VDST : 32'U;
for i in 0 : 63 do
tmp[i] = VGPR[i ^ 16][ADDR]
endfor;
for i in 0 : 63 do
if EXEC[i].u1 then
VGPR[i][VDST] = tmp[i]
endif
endfor"""


def corrected(source: str) -> str:
    for name, (wrong, right) in SOURCE.items():
        assert wrong in source, f"{name}: the emulator is not the version corrected here"
        source = source.replace(wrong, right)
    return source


def correct_pseudo_code(table: dict) -> None:
    named = {op.name: op for op in table}
    table[named["DS_SWIZZLE_B32"]] = SWIZZLE
    permute = named["DS_BPERMUTE_B32"]
    assert "/ 4U % 64U" in table[permute]  # lanes beyond 63 wrap
    table[permute] = table[permute].replace("/ 4U % 64U", "/ 4U & 63U")
