"""The way that a wave takes through a kernel's code: which of its loops run, how often, and the
path through everything else that a wave with usual work takes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .instructions import classify
from .loops import basic_blocks, natural_loops

SOURCES = [Path(__file__).resolve().parents[1] / name for name in ("csrc", "triton_kernels")]
SOURCES += [Path(__file__).resolve().parents[1] / "tests/support"]


class Trip(NamedTuple):
    """A loop of the source that runs `times`, found by a part of its text, and the loops in it, in
    the order in which a wave comes to them. products: the matrix instructions of a turn, where its
    code has ways with more of them than the shape needs. whole: narrow loads are those of ways that
    it does not take, of a span's ragged end or of penalties. Code that runs once, and is in no loop
    of its own, is found in the same way if `times` is 0."""

    text: str
    times: int = 0
    inner: tuple["Trip", ...] = ()
    products: int | None = None
    whole: bool = False


@dataclass(frozen=True)
class Stretch:
    """Instructions and stretches in it, as one turn executes them."""

    times: int
    parts: tuple

    def count(self) -> int:
        """Instructions that are executed."""
        own = (p.count() if isinstance(p, Stretch) else 1 for p in self.parts)
        return self.times * sum(own)

    def instructions(self, most: int | None = None) -> Iterator[str]:
        """As they are executed, of each loop at most so many turns."""
        for _ in range(self.times if most is None else min(self.times, most)):
            for part in self.parts:
                if isinstance(part, Stretch):
                    yield from part.instructions(most)
                else:
                    yield part


class Cost(NamedTuple):
    """Of a path; the least is taken. missed: trips that it does not come to; strange: loops that
    are not among the trips; matrix, bytes: what it leaves out, in a loop; instructions."""

    missed: int = 0
    strange: int = 0
    matrix: int = 0
    bytes: int = 0
    instructions: int = 0

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


# A branch around what no lane does is not taken: as if that took so many instructions
DETOUR = 64
# Bytes of a lane's load from which it cannot be one of a span's ragged end
WIDE = 8
_BYTES = re.compile(r"(?:global|buffer|flat)_load_(?:lds_)?(\w+)")
_WIDTHS = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


def loaded_bytes(instruction: str) -> int:
    """From memory, of each lane."""
    found = _BYTES.match(instruction)
    return _WIDTHS.get(found[1], 1 if "byte" in found[1] else 2) if found else 0


def _products(part: "str | Stretch") -> int:
    return 0 if isinstance(part, Stretch) else classify(part) == "mfma"


@cache
def _source(name: str) -> list[str]:
    """The lines of a source of the project; none of any other file."""
    name = name.rsplit("csrc/", 1)[-1]
    paths = [folder / name for folder in SOURCES] + [SOURCES[1] / Path(name).name]
    path = next((path for path in paths if path.is_file()), None)
    return path.read_text().splitlines() if path else []


def source_lines(position: str) -> Iterator[str]:
    """The source lines of an instruction's position: its own, and where that was inlined."""
    for name, line in re.findall(r"([\w./-]+):(\d+):\d+", position):
        lines = _source(name)
        if 0 < int(line) <= len(lines):
            yield lines[int(line) - 1]


class Router:
    """lines: a kernel's instructions and labels, as `assembly.instructions` gives them."""

    def __init__(self, lines: Sequence[str]):
        self.blocks, self.edges = basic_blocks(lines)
        self.loops = natural_loops(self.edges)
        self._lines = cache(self._lines)

    def route(self, trips: Sequence[Trip] | None, idle: bool = False) -> Stretch:
        """The way with these loops; without `trips`, that with most work, each loop once. Of a wave
        that has no part in the matrix products, if `idle`."""
        everything = frozenset(range(len(self.blocks)))
        sign = 1 if idle else -1
        route, cost = self._through(everything, 0, trips, sign, int(trips is None), None)
        if cost.missed:
            missed = ", ".join(repr(trip.text) for trip in trips)
            raise ValueError(
                f"route: expected loops with {missed} in their source lines, in this order; found "
                f"{len(self.loops)} loops, of which `texts` has these lines"
            )
        return Stretch(1, route)

    def texts(self) -> list[str]:
        """The source lines of the loops, outermost first."""
        return [" | ".join(sorted(self._names(b))) for b in sorted(self.loops.values(), key=min)]

    def _names(self, body: frozenset[int]) -> set[str]:
        """Of a loop: the source lines of its ends, where another one is in it, else all."""
        inner = any(other < body for other in self.loops.values())
        ends = (b for b in body if self.edges[b] - body or min(body) in self.edges[b])
        return {text for b in (ends if inner else body) for text in self._lines(b)}

    def _lines(self, block: int) -> set[str]:
        """The source lines of a basic block."""
        positions = {op.position for op in self.blocks[block]}
        return {text.strip() for position in positions for text in source_lines(position)}

    def _through(
        self, region, entry, trips, matrix, working, products, once=False
    ) -> tuple[tuple, Cost]:
        """The parts and the cost of the cheapest way from `entry` to the end of the kernel or, in a
        loop, back to it or, if `once`, out of it. working: what work it does comes before how long
        it takes; loads of at least so many bytes are work. Without `trips` no loop is strange."""
        inside = {h: b for h, b in self.loops.items() if b < region and h != entry}
        outermost = {h: b for h, b in inside.items() if not any(b < o for o in inside.values())}
        node_of = {block: h for h, body in outermost.items() for block in body}
        looping = len(region) < len(self.blocks)
        after = {}
        for block in region:
            node = node_of.get(block, block)
            goes = {node_of.get(s, s) for s in self.edges[block] if s in region} - {node, entry}
            after.setdefault(node, set()).update(goes)
        ends = {
            node_of.get(block, block)
            for block in region
            if (
                not self.edges[block]
                if not looping
                else self.edges[block] - region
                if once
                else entry in self.edges[block]
            )
        }
        named = len(trips or ())
        # (cost, parts, the way on) by node, trips done before it, and products made from it on
        best: dict[tuple, dict[int, tuple]] = {}
        for node in _postorder(entry, after):
            for done in range(named, -1, -1):
                ways: dict[int, tuple] = {}
                own = self._node(node, outermost.get(node), trips, done, matrix, working)
                for parts, cost, reached in own:
                    made = sum(_products(part) for part in parts) if products is not None else 0
                    follow = [(Cost(missed=named - reached), 0, None)] * (node in ends)
                    for s in after[node]:
                        detour = self._detour(node, s, outermost)
                        for count, way in best.get((s, reached), {}).items():
                            follow.append((way[0].plus(detour), count, way))
                    for rest, count, way in follow:
                        total = cost.plus(rest)
                        count += made
                        if count not in ways or total < ways[count][0]:
                            ways[count] = (total, parts, way)
                best[node, done] = ways
        ways = best[entry, 0]
        way = ways[min(ways, key=lambda count: abs(count - (products or 0)))]
        cost, parts = way[0], []
        while way:
            parts += way[1]
            way = way[2]
        return tuple(parts), cost

    def _node(self, node, body, trips, done, matrix, working):
        """(parts, cost, trips done) of a block or of a loop in it."""
        trip = trips[done] if trips and done < len(trips) else None
        if body is None:
            block = self.blocks[node]
            cost = Cost(instructions=len(block))
            if working:
                cost = cost._replace(
                    matrix=matrix * sum(map(_products, block)),
                    bytes=-sum(b for b in map(loaded_bytes, block) if b >= working),
                )
            if trip and not trip.times and any(trip.text in line for line in self._lines(node)):
                done += 1
            yield tuple(block), cost, done
            return
        if trip and trip.times and any(trip.text in name for name in self._names(body)):
            least = WIDE if trip.whole else 1
            once = trip.times == 1 and bool(trip.inner)
            turn, cost = self._through(body, node, trip.inner, matrix, least, trip.products, once)
            if not working or trip.products is not None:
                cost = cost._replace(matrix=0)
            cost = cost if working else cost._replace(bytes=0)
            yield (Stretch(trip.times, turn),), Cost().plus(cost, trip.times), done + 1
        turn, cost = self._through(body, node, None, matrix, 1, None)
        if trips is not None:
            cost = cost._replace(matrix=0, bytes=0, strange=cost.strange + 1)
        yield (Stretch(1, turn),), cost, done

    def _detour(self, node, follower, outermost) -> Cost:
        block = self.blocks[node] if node not in outermost else ()
        last = block[-1] if block else ""
        around = last.startswith("s_cbranch_execz") and follower != node + 1
        back = last.startswith("s_cbranch_execnz") and follower == node + 1
        return Cost(instructions=DETOUR * (around or back))


def _postorder(entry: int, after: dict[int, set[int]]) -> list[int]:
    seen, order, pending = {entry}, [], [(entry, iter(after[entry]))]
    while pending:
        node, rest = pending[-1]
        for follower in rest:
            if follower not in seen:
                seen.add(follower)
                pending.append((follower, iter(after[follower])))
                break
        else:
            pending.pop()
            order.append(node)
    return order
