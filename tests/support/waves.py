"""How the emulator's waves advance: workgroups in turns and waves in any order, from barrier to
barrier; loads to LDS that arrive as late as the waits allow."""

import ctypes
import random
from collections import Counter, deque

import operations

RESIDENT = 16  # workgroups that advance in turns


class Schedule:
    """Lies in the emulator's module as `schedule`. executed: instructions of a launch, by workgroup
    and wave."""

    def __init__(self, decode, seed: int = 0):
        self.decode, self.random = decode, random.Random(seed)
        self.begin()

    def begin(self) -> None:
        self.pending: dict[tuple, deque] = {}
        self.executed: Counter[tuple] = Counter()

    def shuffled(self, items) -> list:
        items = list(items)
        self.random.shuffle(items)
        return items

    def interleave(self, workgroups) -> None:
        resident = []
        for workgroup in workgroups:
            resident.append(workgroup)
            if len(resident) == RESIDENT:
                resident = self.turn(resident)
        while resident:
            resident = self.turn(resident)

    def turn(self, resident: list) -> list:
        return [group for group in self.shuffled(resident) if next(group, self) is not self]

    def before(self, wave: tuple, inst) -> None:
        self.executed[wave] += 1
        name = inst.op.name
        if name == "S_WAITCNT":
            code = inst.simm16
            self.arrive(wave, (code & 15) | (code >> 14 & 3) << 4)
        elif name == "S_ENDPGM":
            self.arrive(wave, 0)

    def arrive(self, wave: tuple, left: int) -> None:
        """Vector memory operations finish in order, until `left` are under way."""
        queue = self.pending.get(wave, ())
        while len(queue) > left:
            finish = queue.popleft()
            if finish:
                finish()

    def after(self, wave: tuple, inst, bufs) -> None:
        if type(inst).__name__ in ("GLOBAL", "MUBUF", "FLAT", "SCRATCH"):
            load = operations.to_lds(inst, bufs) if "LOAD_LDS" in inst.op.name else None
            self.pending.setdefault(wave, deque()).append(load)

    def operation(self, pc: int):
        """What the emulator keeps of an instruction, for those that are executed here."""
        inst = self.decode(bytes((ctypes.c_char * 16).from_address(pc).raw), "cdna")
        run = operations.of(inst)
        if run is None:
            return None

        def execute(*bufs):
            run(inst, *bufs)
            operations.advance(inst, bufs[0])

        return execute, range(6), False, inst
