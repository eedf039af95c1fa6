"""An in-order model of a SIMD of CDNA: the clocks in which its waves execute their instructions,
while the other three SIMDs of the compute unit do the same."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush, heapreplace

from .assumptions import Machine
from .instructions import classify, mfma_cycles
from .route import loaded_bytes

LANES = 64
SIMDS = 4
# Cycles of v_exp and its like
TRANSCENDENTAL = {"gfx942": 16, "gfx950": 8}
# Those of a matrix instruction whose shape is not in the table
LONG_MFMA = 64
_PACKED = re.compile(r"v_pk_(add|fma|mul|mov)_[fb]32")
_MULTIPLY = re.compile(r"v_(mul_lo_u32|mul_hi|mad_u64|mad_i64)")
_REGISTER = re.compile(r"\b([va])(?:\[(\d+):(\d+)\]|(\d+))")
_LDS_WIDTHS = (("b128", 16), ("b96", 12), ("b64", 8), ("2_b32", 8), ("2st64_b32", 8))


@dataclass(frozen=True)
class Memory:
    """What loads from memory meet.

    hbm_bytes    a clock and compute unit, of HBM
    share        of what is loaded that comes from HBM, and not from a cache
    """

    hbm_bytes: float
    share: float = 1


@dataclass
class Run:
    """clocks; those in which a unit works, by unit; those in which wave 0 waits, by cause; the
    most bytes that waves of the compute unit have asked for and not got, and their mean."""

    clocks: float = 0
    busy: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    bytes_in_flight: float = 0
    issued: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class Decoded:
    kind: str
    text: str
    targets: tuple = ()
    sources: tuple = ()
    cycles: float = 0
    held: float = 0
    sums: tuple = ()
    bytes: int = 0
    far: bool = False
    vmcnt: int | None = None
    lgkmcnt: int | None = None


def decoded(text: str, arch: str, machine: Machine) -> Decoded:
    kind = classify(text)
    name, _, rest = text.partition(" ")
    operands = [_registers(part) for part in rest.split(", ")]
    targets = operands[0]
    sources = tuple(r for part in operands[1:] for r in part)
    if kind == "mfma":  # vector arithmetic is held off by a slot, and by one for 16 bytes of A
        held = machine.issue * (1 + len(operands[1]) * 4 // 16)
        cycles = mfma_cycles(text, arch) or LONG_MFMA
        sources, sums = (*operands[1], *operands[2]), operands[3]
        return Decoded(kind, text, targets, sources, cycles, held=held, sums=sums)
    if kind == "trans":
        return Decoded(kind, text, targets, sources, TRANSCENDENTAL[arch])
    if kind == "valu":
        cycles = machine.multiply if _MULTIPLY.match(text) else machine.issue
        return Decoded(kind, text, targets, (*targets, *sources), cycles)
    if kind == "lds":
        width = next((w for end, w in _LDS_WIDTHS if end in name), 4)
        width *= 2 if "2_b64" in name or "2st64_b64" in name else 1
        cycles = LANES * width / machine.lds_bytes * machine.lds_conflicts
        return Decoded(kind, text, targets, (*targets, *sources), cycles)
    if kind == "vmem":
        sources = (*targets, *sources)
        return Decoded(kind, text, targets, sources, bytes=LANES * loaded_bytes(text))
    if name == "s_waitcnt":
        counts = dict(re.findall(r"(vmcnt|lgkmcnt)\((\d+)\)", rest))
        counts = {key: int(value) for key, value in counts.items()}
        return Decoded("wait", text, vmcnt=counts.get("vmcnt"), lgkmcnt=counts.get("lgkmcnt"))
    if name == "s_nop":
        return Decoded("nop", text, cycles=machine.issue * (int(rest or 0) + 1))
    if name == "s_barrier":
        return Decoded("barrier", text)
    return Decoded("smem" if name.startswith("s_load") else kind, text)


def _registers(operand: str) -> tuple:
    found = []
    for file, first, last, single in _REGISTER.findall(operand):
        numbers = range(int(first), int(last) + 1) if first else (int(single),)
        found += [(file, n) for n in numbers]
    return tuple(found)


class _Wave:
    def __init__(self, code: Sequence[Decoded], group: int, start: float):
        self.code, self.group, self.time, self.at = code, group, start, 0
        self.ready: dict = {}
        self.memory: list[float] = []
        self.local: list[float] = []
        self.waiting = False


def simulate(
    waves: Sequence[tuple[Sequence[str], int]],
    arch: str,
    machine: Machine,
    memory: Memory,
    far: Callable[[str], bool] = lambda _: True,
) -> Run:
    """waves: the instructions of each wave of a SIMD, as executed, and its workgroup. Loads of at
    least 8 bytes a lane come from HBM if they are `far`, others from a cache."""
    known: dict[tuple[str, bool], Decoded] = {}
    run = Run()
    state = []
    for i, (code, group) in enumerate(waves):
        keys = [(str(text), bool(far(text))) for text in code if not text.endswith(":")]
        for text, is_far in set(keys) - known.keys():
            op = decoded(text, arch, machine)
            known[text, is_far] = replace(op, far=is_far and op.bytes >= 8 * LANES)
        state.append(_Wave([known[key] for key in keys], group, 13.0 * i))
    model = _Simd(arch, machine, memory, run, state)
    model.run()
    return run


class _Simd:
    def __init__(self, arch, machine, memory, run, waves):
        self.arch, self.machine, self.memory = arch, machine, memory
        self.result, self.waves = run, waves
        self.port = dict.fromkeys(("valu", "packed", "mfma", "salu", "lds", "vmem"), 0.0)
        self.hbm = self.cache = 0.0
        self.area = 0.0

    def run(self) -> None:
        """Always the wave goes on that can first. Times only rise, so that the one on top of the
        queue is asked again, and the others are not."""
        queue = [(w.time, i) for i, w in enumerate(self.waves) if w.code]
        while queue:
            _, i = queue[0]
            wave = self.waves[i]
            at, cause = self.earliest(wave)
            if at > queue[0][0]:
                heapreplace(queue, (at, i))
                continue
            heappop(queue)
            self.issue(wave, at, cause)
            if wave.at == len(wave.code):
                self.release(wave.group, wave.time, queue)
            elif wave.code[wave.at - 1].kind == "barrier":
                wave.waiting = True
                self.release(wave.group, wave.time, queue)
            else:
                heappush(queue, (wave.time, i))
        self.result.clocks = max(w.time for w in self.waves)
        self.result.bytes_in_flight = self.area / self.result.clocks

    def earliest(self, w: _Wave) -> tuple[float, str]:
        """When its next instruction may issue, and what it waits for."""
        op, port = w.code[w.at], self.port
        free, ready, cause = 0.0, 0.0, "operand"
        if op.kind == "mfma":
            free = max(port["mfma"], port["valu"])
        elif op.kind in ("valu", "trans"):
            free = max(port["valu"], port["packed"] * bool(_PACKED.match(op.text)))
        elif op.kind == "lds":
            free = port["lds"] - LANES  # a queue of about one instruction
        elif op.kind == "vmem":
            free = port["vmem"]
        elif op.kind in ("salu", "branch", "smem"):
            free = port["salu"]
        if op.kind == "wait":
            if op.vmcnt is not None and len(w.memory) > op.vmcnt:
                ready, cause = w.memory[len(w.memory) - op.vmcnt - 1], "memory"
            if op.lgkmcnt is not None and len(w.local) > op.lgkmcnt:
                until = sorted(w.local)[len(w.local) - op.lgkmcnt - 1]
                ready, cause = (until, "lds") if until > ready else (ready, cause)
        elif w.ready:
            ready = max((w.ready[r] for r in op.sources if r in w.ready), default=0.0)
            # a product that goes on with a sum takes it early
            sums = max((w.ready[r] for r in op.sums if r in w.ready), default=0.0)
            ready = max(ready, sums - self.machine.mfma_result)
        at = max(w.time, ready, free)
        blame = "unit" if free > max(w.time, ready) else cause if ready > w.time else ""
        return at, blame

    def issue(self, w: _Wave, at: float, cause: str) -> None:
        m, op, port, result = self.machine, w.code[w.at], self.port, self.result
        if w is self.waves[0]:
            result.waits[cause] += at - w.time if cause else 0
            result.issued[op.kind] += 1
        w.at += 1
        w.time = at + m.issue
        if op.kind == "mfma":
            port["mfma"], port["valu"] = at + op.cycles, at + op.held
            port["packed"] = at + op.cycles + m.mfma_packed
            result.busy["mfma"] += op.cycles
            w.ready.update(dict.fromkeys(op.targets, at + op.cycles + m.mfma_result))
        elif op.kind in ("valu", "trans"):
            port["valu"] = at + op.cycles
            result.busy["valu"] += op.cycles
            w.time = at + op.cycles
            for register in op.targets:
                w.ready.pop(register, None)
        elif op.kind == "lds":
            clocks = SIMDS * op.cycles
            port["lds"] = max(port["lds"], at) + clocks
            result.busy["lds"] += clocks
            w.local.append(port["lds"] + m.lds_latency)
        elif op.kind == "vmem":
            self.load(w, op, at)
        elif op.kind == "smem":
            port["salu"] = at + m.issue
            w.local.append(at + m.scalar_latency)
        elif op.kind == "wait":
            w.memory = [x for x in w.memory if x > at]
            w.local = [x for x in w.local if x > at]
        elif op.kind == "nop":
            w.time = at + op.cycles
        elif op.kind == "branch":
            port["salu"] = at + m.issue
            w.time = at + m.issue + (m.taken_branch if op.text.startswith("s_branch") else 0)
        else:
            port["salu"] = at + m.issue
            result.busy["salu"] += m.issue

    def load(self, w: _Wave, op: Decoded, at: float) -> None:
        m, memory = self.machine, self.memory
        self.port["vmem"] = at + m.vmem_issue
        moved = SIMDS * op.bytes  # by the four SIMDs
        self.cache = max(self.cache, at) + moved / m.cache_bytes
        done = max(self.cache, at) + (m.hbm_latency if op.far else m.cache_latency)
        if op.far:
            self.hbm = max(self.hbm, at) + moved * memory.share / memory.hbm_bytes
            done = max(done, self.hbm + m.hbm_latency)
            self.area += moved * (done - at)
        w.memory.append(max(done, w.memory[-1] if w.memory else 0.0))

    def release(self, group: int, at: float, queue: list) -> None:
        """Lets the waves of a workgroup go on, once all that have not ended wait."""
        mates = [(i, w) for i, w in enumerate(self.waves) if w.group == group]
        mates = [(i, w) for i, w in mates if w.at < len(w.code)]
        if mates and all(w.waiting for _, w in mates):
            last = max(at, *(w.time for _, w in mates)) + self.machine.barrier
            for i, w in mates:
                w.waiting = False
                w.time = last
                heappush(queue, (last, i))
