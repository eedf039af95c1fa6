"""The timing model: ways through listings, a SIMD's clocks, and how it ranks variants of which
somebody has measured which is faster."""

import importlib.util
import json
import re

import pytest
from click.testing import CliRunner

from blockdraft.bench import results
from blockdraft.cli import main
from blockdraft.roofline import assumptions, calibration, isa, kernel_work, predict, verdicts
from blockdraft.roofline.assembly import Instruction
from blockdraft.roofline.devices import find, load
from blockdraft.roofline.pipeline import Memory, simulate
from blockdraft.roofline.route import Router, Stretch, Trip

needs_ziglang = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs ziglang (a clang for amdgcn)"
)
RATE = predict.SUSTAINED["gfx950"] / 256 / 2.4e9  # B/clk of a CU
NOMINAL = assumptions.machine()


def place(path: str, text: str) -> str:
    """path:line of the first line of a file below csrc that has the text."""
    numbered = enumerate((isa.CSRC / path).read_text().splitlines(), 1)
    return f"csrc/{path}:{next(number for number, line in numbered if text in line)}"


# Two loops, of which one has a way with products and a way without, and an exit
SCAN = place("tile/cdna/scan.h", "base < span.stop")
TOTAL = place("ops/sampling/draw.h", "int rank = 0")
LISTING = f"""
	s_load_dwordx2 s[0:1], s[4:5], 0x0
	s_cbranch_scc1 .LBB0_9
.LBB0_1: @ {SCAN}:5
	global_load_dwordx4 v[4:7], v[0:1], off
	s_cbranch_vccz .LBB0_3
	v_mfma_f32_32x32x8_bf16_1k v[8:23], v[4:5], v[6:7], v[8:23]
	v_mfma_f32_32x32x8_bf16_1k v[8:23], v[4:5], v[6:7], v[8:23]
.LBB0_3: @ {SCAN}:5
	s_add_i32 s6, s6, 1
	s_cbranch_scc1 .LBB0_1
.LBB0_4: @ {TOTAL}:5
	v_add_f32_e32 v1, v1, v2
	s_cbranch_scc1 .LBB0_4
.LBB0_9:
	s_endpgm
"""


def lines(text: str) -> list[Instruction]:
    found, position = [], ""
    for line in text.strip().splitlines():
        code, at, comment = line.strip().partition(" @ ")
        position = comment if at else position
        found.append(Instruction(code))
        found[-1].position = position
    return found


def loops(route: Stretch) -> list[Stretch]:
    return [part for part in route.parts if isinstance(part, Stretch)]


def test_the_way_through_a_kernel():
    router = Router(lines(LISTING))
    scan, total = Trip("base < span.stop", 8), Trip("int rank = 0", 65)
    route = router.route((scan, total))
    assert [(loop.times, len(loop.parts)) for loop in loops(route)] == [(8, 6), (65, 2)]
    assert route.count() == 2 + 8 * 6 + 65 * 2 + 1
    # a wave that multiplies nothing, and one whose turn needs no products
    assert [len(loop.parts) for loop in loops(router.route((scan, total), idle=True))] == [4, 2]
    bare = router.route((scan._replace(products=0), total))
    assert [len(loop.parts) for loop in loops(bare)] == [4, 2]
    # of a loop with many turns only some are listed
    assert sum(1 for _ in route.instructions(3)) == 2 + 3 * 6 + 3 * 2 + 1


def test_a_loop_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="expected loops with 'no such loop' .*found"):
        Router(lines(LISTING)).route((Trip("no such loop", 3),))
    with pytest.raises(ValueError, match="in this order"):
        Router(lines(LISTING)).route((Trip("int rank = 0", 65), Trip("base < span.stop", 8)))


def clocks(code: list[str], waves: int = 1, **options) -> float:
    memory = Memory(options.pop("rate", 1e9))
    return simulate([(code, w) for w in range(waves)], "gfx942", NOMINAL, memory, **options).clocks


def test_a_simd_s_clocks():
    add, load = "v_add_f32_e32 v1, v1, v2", "global_load_dwordx4 v[4:7], v[0:1], off"
    assert clocks([add] * 100) == 100 * NOMINAL.issue
    # another wave's vector instructions take turns; its scalar ones do not
    assert clocks([add] * 100, waves=2) == pytest.approx(200 * NOMINAL.issue, rel=0.05)
    # products of one wave, each taking its sum early from the last, and its result late
    product = "v_mfma_f32_32x32x8_bf16_1k v[8:23], v[4:5], v[6:7], v[8:23]"
    chain = clocks([product] * 10)
    assert chain == pytest.approx(10 * 32, rel=0.1)
    assert clocks([product] * 10 + ["v_add_f32_e32 v1, v1, v8"]) > chain + NOMINAL.mfma_result
    # a load is waited for; independent ones overlap; the device's bandwidth ends that
    one = clocks([load, "s_waitcnt vmcnt(0)", add])
    assert NOMINAL.hbm_latency < one < NOMINAL.hbm_latency + 200
    eight = clocks([load] * 8 + ["s_waitcnt vmcnt(0)", add])
    assert eight < 2 * one
    slow = clocks([load] * 8 + ["s_waitcnt vmcnt(0)", add], rate=1.0)
    assert slow > 8 * 4 * 1024  # four SIMDs load as much
    assert clocks([load, "s_waitcnt vmcnt(0)", add], far=lambda _: False) < one


def test_a_barrier_waits_for_the_workgroup():
    add = "v_add_f32_e32 v1, v1, v2"
    waves = [([add] * 50 + ["s_barrier", add], 0), (["s_barrier", add], 0)]
    together = simulate(waves, "gfx942", NOMINAL, Memory(1)).clocks
    assert together == pytest.approx(52 * NOMINAL.issue + NOMINAL.barrier, abs=20)


def tiles(ahead: int, count: int = 24) -> list[str]:
    """A wave's share of a workgroup that stages tiles of 16 KB: its loads of `ahead` tiles are
    under way while it multiplies."""
    load = ["global_load_dwordx4 v[4:7], v[0:1], off"] * 2
    store = ["ds_write_b128 v3, v[4:7]"] * 2
    work = ["ds_read_b128 v[24:27], v3"] * 4 + ["s_waitcnt lgkmcnt(0)"]
    work += ["v_mfma_f32_32x32x8_bf16_1k v[8:23], v[24:25], v[26:27], v[8:23]"] * 8
    code = load * ahead
    for _ in range(count):
        code += [f"s_waitcnt vmcnt({2 * (ahead - 1)})", *store, *load, "s_barrier", *work]
    return code


def test_a_ring_of_three_tiles_beats_one_tile_ahead():
    """ROCm/aiter pull request 4758: one block in flight made a long loop bound by latency; more of
    them in flight were 10 % faster at large batches on gfx950."""
    one, three = (
        simulate([(tiles(ahead), 0)] * 2, "gfx950", NOMINAL, Memory(RATE)) for ahead in (1, 3)
    )
    assert one.clocks > 1.1 * three.clocks
    assert one.waits["memory"] > three.waits["memory"]
    assert one.bytes_in_flight < three.bytes_in_flight
    # where memory is slow enough, one tile is all that it can bring
    one, three = (
        simulate([(tiles(ahead), 0)] * 2, "gfx950", NOMINAL, Memory(RATE / 20)) for ahead in (1, 3)
    )
    assert one.clocks < 1.05 * three.clocks


@needs_ziglang
def test_more_splits_are_faster_at_batch_one():
    """lightseekorg/tokenspeed pull request 313, on gfx950: as many splits as fill the device made
    decoding 1.3 times (8k) and 1.7 times (16k) as fast at batch 1, and 1.05 to 1.1 at 16."""
    compiled = predict.Compiled("gfx950")
    device = find("MI355X", load())

    def us(batch: int, split_keys: int) -> float:
        shape = kernel_work.attention(batch, 8192, 16, split_keys)
        launches = [
            predict.launch(
                compiled.code(shape.op, "cpp", work.code), work, "gfx950", device, NOMINAL
            )
            for work in shape.launches["cpp"]("gfx950")
        ]
        return sum(1e6 * launch.seconds + NOMINAL.launch_us for launch in launches)

    assert us(1, 2048) > 1.3 * us(1, 256)
    assert us(32, 2048) < 1.2 * us(32, 256)


def test_assumptions_have_sources_and_ranges():
    for a in assumptions.ASSUMPTIONS:
        assert a.source and a.unit, a
        assert min(a.fast, a.slow) <= a.value <= max(a.fast, a.slow), a


@needs_ziglang
def test_the_command(tmp_path):
    """One op, with an emulator's verdict, and its times as a calibration."""
    compiled = predict.Compiled("gfx942")
    shape = kernel_work.cca(64)
    (work,) = shape.launches["cpp"]("gfx942")
    code = compiled.code(shape.op, "cpp", work.code)
    known = verdicts.Verdicts()
    known.add("gfx942", code.report.symbol, code.fingerprint, passed=True)
    known.save(tmp_path / "verdicts.json")
    saved = tmp_path / "predicted.json"
    command = ["roofline", "isa", "--predict", "--arch", "gfx942", "--kind", "hip"]
    command += ["--op", "cca_qkv", "--verdicts", str(tmp_path / "verdicts.json")]
    done = CliRunner().invoke(main, [*command, "--save", str(saved), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    count = sum(shape.op == "cca_qkv" for shape in kernel_work.shapes())
    assert [r["kernel"] for r in rows] == count * ["convolve", "whole op, 1 launch"]
    launch, whole = rows[:2]
    assert launch["emulator"] == "passed 1" and launch["workgroups"] == work.groups
    assert launch["us_fast"] < launch["us"] < launch["us_slow"] < whole["us_slow"]
    assert 0 < launch["share"] < 1 and launch["vgpr"] == code.report.vgpr
    results.load(saved)
    out = tmp_path / "calibration.json"
    done = CliRunner().invoke(main, ["roofline", "calibrate", str(saved), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert calibration.load(out).predicted


@pytest.mark.parametrize(
    "options, message",
    [
        (["--op", "cca_qkv"], "expected them with --predict"),
        (["--predict", "--op", "nothing"], "--op: expected one of block_attention, .*got nothing"),
        (["--predict", "--save", "x.json"], "--save: expected one --arch, got gfx942, gfx950"),
        (["--predict", "--flag", "-O1"], "expected no SOURCES and no --flag"),
        (["--predict", "--verdicts", "setup.py"], "expected a file of `pytest --verdicts`"),
    ],
)
def test_wrong_options_are_named(options, message):
    done = CliRunner().invoke(main, ["roofline", "isa", *options])
    assert done.exit_code == 2
    assert re.search(message, done.output.replace("\n", " ")), done.output


def test_verdicts():
    known = verdicts.Verdicts()
    assert known.text("gfx942", "attend", "a") == "not run"
    known.add("gfx942", "attend", "a", True)
    known.add("gfx942", "attend", "b", False)
    assert known.text("gfx942", "attend", "a") == "passed 1"
    assert known.text("gfx942", "attend", "b") == "1 of 1 failed"
    assert known.text("gfx942", "attend", "c") == "1 failed, other constants"
    assert known.text("gfx950", "attend", "a") == "not run"
    code = ["v_add_f32 v0, v1, v2", ".LBB0_1:", "s_endpgm"]
    assert verdicts.fingerprint(code) == verdicts.fingerprint([code[0], code[2]])
    assert verdicts.fingerprint(code) != verdicts.fingerprint(code[:2])
