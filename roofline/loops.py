"""Finds the hot loop of a kernel in its instructions."""

from .instructions import classify


def hot_loop(lines: list[str]) -> list[str]:
    """Instructions of the innermost loop with most MFMAs; of the innermost with most instructions
    where there is no MFMA. lines: instructions, and labels that end with a colon."""
    blocks, edges = basic_blocks(lines)
    loops = natural_loops(edges).values()

    def instructions(loop: set[int]) -> list[str]:
        return [op for i in sorted(loop) for op in blocks[i]]

    def weight(loop: set[int]) -> tuple[int, int]:
        ops = instructions(loop)
        return sum(classify(op) == "mfma" for op in ops), len(ops)

    useful = [loop for loop in loops if weight(loop)[0]] or list(loops)
    innermost = [loop for loop in useful if not any(other < loop for other in useful)]
    return instructions(max(innermost, key=weight)) if innermost else []


def basic_blocks(lines: list[str]) -> tuple[list[list[str]], list[set[int]]]:
    """Basic blocks, and the successors of each."""
    blocks = [[]]
    block_of_label = {}
    for line in lines:
        if line.endswith(":"):
            if blocks[-1]:
                blocks.append([])
            block_of_label[line[:-1]] = len(blocks) - 1
            continue
        blocks[-1].append(line)
        if classify(line) == "branch":
            blocks.append([])
    return blocks, [_successors(i, blocks, block_of_label) for i in range(len(blocks))]


def _successors(i: int, blocks: list[list[str]], block_of_label: dict[str, int]) -> set[int]:
    last = blocks[i][-1] if blocks[i] else ""
    found = set()
    if last.startswith(("s_branch", "s_cbranch")):
        label = last.split()[-1]
        if label in block_of_label:
            found.add(block_of_label[label])
    goes_on = not last.startswith(("s_branch", "s_endpgm", "s_setpc"))
    if goes_on and i + 1 < len(blocks):
        found.add(i + 1)
    return found


def natural_loops(edges: list[set[int]]) -> dict[int, set[int]]:
    """For each header, the basic blocks that reach a back edge to it."""
    before = [{i for i, after in enumerate(edges) if j in after} for j in range(len(edges))]
    dominators = _dominators(before)
    loops = {}
    for i, after in enumerate(edges):
        for header in after & dominators[i]:
            body = loops.setdefault(header, {header})
            pending = [i]
            while pending:
                block = pending.pop()
                if block not in body:
                    body.add(block)
                    pending += before[block]
    return loops


def _dominators(before: list[set[int]]) -> list[set[int]]:
    """The basic blocks that every path from the first one to a block goes through, given the
    predecessors of each."""
    everything = set(range(len(before)))
    dominators = [{0}] + [set(everything) for _ in before[1:]]
    changed = True
    while changed:
        changed = False
        for j in range(1, len(before)):
            shared = set.intersection(*(dominators[i] for i in before[j])) if before[j] else set()
            new = {j} | shared
            changed |= new != dominators[j]
            dominators[j] = new
    return dominators
