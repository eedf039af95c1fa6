"""What the timing model says of the project's kernels: never a measurement."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil

from . import assembly, isa
from .assumptions import Machine, machine
from .devices import Device, ceilings
from .pipeline import LANES, SIMDS, Memory, Run, simulate
from .route import Router, Stretch, loaded_bytes, source_lines
from .verdicts import Verdicts, fingerprint
from .work import Shape, Work

# Turns of a loop that are simulated; of the others each takes as long as the last of these
TURNS = 10
# Workgroups one after the other that are simulated
ROUNDS = 3
DEVICES = {"gfx942": "MI300X", "gfx950": "MI355X"}
# What streams reach of HBM, in TB/s: MI300X as measured; MI355X as read off AITER's figures
SUSTAINED = {"gfx942": 4.2e12, "gfx950": 5.9e12}


@dataclass(frozen=True)
class Code:
    """A compiled kernel: what its metadata say, and the way through it."""

    report: assembly.KernelReport
    router: Router
    fingerprint: str


@dataclass(frozen=True)
class Launch:
    """A launch on a device, as predicted.

    seconds         without the launch itself
    bytes_in_flight of a compute unit, on average; waits: of a wave, clocks by cause
    per_turn        instructions of a turn of the loop with most of them
    """

    work: Work
    code: Code
    waves: int
    seconds: float
    run: Run
    per_turn: int
    units: int


class Compiled:
    """The kernels of an architecture, compiled when they are asked for."""

    def __init__(self, arch: str):
        self.arch = arch
        self.listing = cache(self.listing)
        self.triton = cache(self.triton)
        self.code = cache(self.code)

    def listing(self, op: str) -> str:
        return isa.hip_assembly(isa.OPS / op / "hip.hip", self.arch, ["-gline-tables-only"])

    def triton(self) -> dict[str, tuple]:
        return {case[0]: case[1:] for case in isa.triton_compilations(self.arch)}

    def code(self, op: str, backend: str, name: str) -> Code:
        if backend == "triton":
            text, lds = isa.triton_assembly(self.arch, *self.triton()[name])
            (report,) = assembly.parse(text, self.arch, lds)
        else:
            source = "moe_dispatch" if name.startswith("moe_dispatch") else op
            text = self.listing(source)
            found = [r for r in assembly.parse(text, self.arch) if re.search(name, r.symbol)]
            if len(found) != 1:
                raise ValueError(
                    f"isa: expected one kernel of {source} that has {name!r} in its symbol, "
                    f"found {len(found)}"
                )
            (report,) = found
        lines = assembly.instructions(report.symbol, text)
        return Code(report, Router(lines), fingerprint(lines))


def launch(code: Code, work: Work, arch: str, device: Device, m: Machine) -> Launch:
    report = code.report
    units = int(device.figure("compute_units", "quoted").value)
    clock = 1e9 * device.figure("clock_ghz", "quoted").value
    waves = ceil(report.threads / LANES)  # of a workgroup
    resident = max(1, report.waves_per_simd * SIMDS // waves)
    busy_units = min(units, work.groups)
    # a compute unit's workgroups: the busiest one's, while that matters
    here = ceil(work.groups / units)
    together = min(here, resident)
    # its part of the bandwidth, of which each workgroup that runs has as much
    part = together / min(work.groups, units * together)
    rounds = max(1.0, work.groups / units / resident)
    routes = ways(code, work)
    busy = waves if work.busy is None else work.busy
    of_simd = _waves(waves, together, busy)

    @cache
    def far(op: str) -> bool:
        if not isinstance(work.streams, str):
            return work.streams
        return any(work.streams in line for line in source_lines(op.position))

    loaded = busy * _loaded(routes[False], far) + (waves - busy) * _loaded(routes[True], far)
    share = min(1.0, work.bytes / (work.groups * loaded)) if loaded else 0.0
    memory = Memory(SUSTAINED[arch] * part / clock, share)

    def run(turns: int, copies: int = 1) -> Run:
        code = {idle: copies * list(route.instructions(turns)) for idle, route in routes.items()}
        return simulate([(code[idle], g) for idle, g in of_simd], arch, m, memory, far)

    result = once = run(TURNS)
    clocks = once.clocks
    more = max((s.times for s in _loops(routes[False])), default=0) - TURNS
    if more > 0:
        result = run(2 * TURNS)
        clocks += more * (result.clocks - once.clocks) / min(TURNS, more)
        clocks *= ceil(rounds)
    elif rounds > 1:  # a workgroup begins where another one ends
        result = run(TURNS, ROUNDS)
        clocks += (rounds - 1) * (result.clocks - once.clocks) / (ROUNDS - 1)
    seconds = m.start_us * 1e-6 + clocks / clock
    least = work.bytes / SUSTAINED[arch]  # the device's whole bandwidth
    per_turn = max((s.count() // s.times for s in _loops(routes[False])), default=0)
    return Launch(
        work, code, waves * work.groups, max(seconds, least), result, per_turn, busy_units
    )


def ways(code: Code, work: Work) -> dict[bool, Stretch]:
    """The way of a busy wave (False), and that of another one."""
    busy = code.router.route(work.trips)
    if work.others is not None:
        return {False: busy, True: code.router.route(work.others)}
    return {False: busy, True: code.router.route(work.trips, idle=True)}


def _waves(waves: int, groups: int, busy: int) -> list[tuple[bool, int]]:
    """(whether it only helps, workgroup) of each wave of the SIMD that has most busy ones: a
    workgroup's waves go to the SIMDs in turn, and the next one's go on from there."""
    simds: list[list] = [[] for _ in range(SIMDS)]
    for i in range(waves * groups):
        group, wave = divmod(i, waves)
        simds[i % SIMDS].append((wave >= busy, group))
    return max(simds, key=lambda s: (sum(not idle for idle, _ in s), len(s)))


def _loaded(route: Stretch, far: Callable[[str], bool]) -> int:
    """Bytes that a wave loads from HBM."""
    bytes_ = 0
    for part in route.parts:
        if isinstance(part, Stretch):
            bytes_ += _loaded(part, far)
        elif (own := loaded_bytes(part)) >= 8 and far(part):
            bytes_ += LANES * own
    return route.times * bytes_


def _loops(route: Stretch) -> Iterator[Stretch]:
    """Those that no other loop contains."""
    return (part for part in route.parts if isinstance(part, Stretch) and part.times)


def predicted(
    shape: Shape, backend: str, compiled: Compiled, device: Device, known: Verdicts
) -> list[dict]:
    """A row for each launch of an op, and one for all of it."""
    rows = []
    works = list(shape.launches[backend](compiled.arch))
    for work in works:
        code = compiled.code(shape.op, backend, work.code)
        ends = {kind: launch(code, work, compiled.arch, device, machine(kind)) for kind in KINDS}
        rows.append(row(shape, backend, device, ends))
        rows[-1]["emulator"] = known.text(compiled.arch, code.report.symbol, code.fingerprint)
    return [*rows, whole(rows, sum(work.bytes for work in works), shape)]


KINDS = ("value", "fast", "slow")


def row(shape: Shape, backend: str, device: Device, ends: dict[str, Launch]) -> dict:
    nominal, report = ends["value"], ends["value"].code.report
    run, work = nominal.run, nominal.work
    arch = report.arch
    share = {
        kind: work.bytes / SUSTAINED[arch] / end.seconds if work.bytes else None
        for kind, end in ends.items()
    }
    return {
        "op": shape.op,
        "kernel": work.kernel,
        "backend": backend,
        "shape": shape.label,
        "device": device.name,
        "arch": arch,
        "vgpr": report.vgpr,
        "agpr": report.agpr,
        "sgpr": report.sgpr,
        "lds": report.lds,
        "vgpr_spill": report.vgpr_spill,
        "sgpr_spill": report.sgpr_spill,
        "misexecuted": report.misexecuted,
        "waves_per_simd": report.waves_per_simd,
        "workgroups": work.groups,
        "waves": nominal.waves,
        "instructions": nominal.per_turn,
        "bytes_in_flight": round(run.bytes_in_flight),
        "matrix": run.busy["mfma"] / run.clocks,
        "vector": run.busy["valu"] / run.clocks,
        "lds_busy": run.busy["lds"] / run.clocks,
        "waits": max(run.waits, key=run.waits.get) if any(run.waits.values()) else "",
        "us": 1e6 * nominal.seconds,
        "us_fast": 1e6 * ends["fast"].seconds,
        "us_slow": 1e6 * ends["slow"].seconds,
        "share": share["value"],
        "share_fast": share["fast"],
        "share_slow": share["slow"],
    }


def whole(rows: Sequence[dict], moved: float, shape: Shape) -> dict:
    """An op: its launches, one after the other."""
    first, end = rows[0], ("", "_fast", "_slow")
    us = {
        f"us{e}": sum(r[f"us{e}"] for r in rows) + machine(kind).launch_us * len(rows)
        for kind, e in zip(KINDS, end, strict=True)
    }
    least = 1e6 * moved / SUSTAINED[first["arch"]]
    return {
        **{key: first[key] for key in ("op", "backend", "shape", "device", "arch")},
        "kernel": f"whole op, {len(rows)} launch{'es' * (len(rows) > 1)}",
        **us,
        **{f"share{e}": least / us[f"us{e}"] for e in end},
        "bytes": moved,
        "flops": shape.flops,
        "exps": shape.exps,
    }


def results(rows: Sequence[dict], device: Device) -> dict:
    """The whole ops as a file of `bench` results, schema 2."""
    rates = ceilings(device, "bf16", "sustained")
    limits = {
        "threads": 0,
        "read_bytes_per_s": SUSTAINED[device.arch],
        "bf16_flops_per_s": rates.matrix_flops_per_s,
        "flops_per_s": rates.vector_flops_per_s,
        "exps_per_s": rates.exps_per_s,
    }

    def result(r: dict) -> dict:
        of_limit = max(
            r["bytes"] / limits["read_bytes_per_s"], r["flops"] / limits["bf16_flops_per_s"]
        )
        return {
            "op": r["op"],
            "case": " ".join(f"{part}" for part in r["shape"].split()),
            "impl": r["backend"],
            "is_peer": False,
            "dtype": "bfloat16",
            "threads": 0,
            "ms": r["us"] / 1e3,
            "mad": 0.0,
            **{key: r[key] for key in ("flops", "bytes", "exps")},
            "of_limit": 1e6 * of_limit / r["us"],
            "vs_best_peer": None,
            "checked": True,
        }

    return {
        "schema": 2,
        "machine": {"device": device.name, "predicted": True},
        "limits": limits,
        # a device's rates are those of bf16
        "results": [
            result(r)
            for r in rows
            if "workgroups" not in r and not re.search("=(mx)?fp", r["shape"])
        ],
    }
