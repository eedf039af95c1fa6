"""The launches of the samplers for ZAYA1-8B's vocabulary in bf16, as their schedules make them."""

from collections.abc import Iterator

from .route import Trip
from .work import BYTES, Shape, Work, ceil

VOCABULARY, VOCAB_BLOCK = 262272, 4096
DRAFTS = 15
ACCEPTED = 5
CREWS_AT_ONCE = 512  # kCrewsAtOnce of accept_drafts

# The samplers' ways: rounds of a uniform's generator; a whole vocab_block of logits, all loaded
# before one is used; 2^x in double, of a draft's logit; what a vocab_block of two plain rows
# weighs, and of two that are cut; the search for the token in one, of plain rows and of any; any
# other scan of one
PHILOX = Trip("round", 10)
HELD = Trip("out.raw[i] = At::raw(row + least(")
CHANCE = Trip("p = p * (r * (1.0 / n)) + 1.0")
WEIGHED = Trip("held_residual_mass<false>", 1, (HELD, HELD), whole=True)
# the compiler has lost the lines of its loads
WEIGHED_CUT = Trip("held_residual_mass<true>", 1, whole=True)
SEARCHED = Trip("return scan.crossing(span, plain, r)", 1, whole=True)
SEARCHED_ANY = Trip("return scan.crossing(span, any, r)", 1, whole=True)
SCANNED = Trip("kWaves * kStep", 1, whole=True)


def folded(blocks: int) -> Trip:
    """A wave's terms of vocab_blocks, of which it keeps those of two turns."""
    return Trip("first < least(n_, kHeld)", min(ceil(blocks, 64), 2))


def drawn(batch: int, blocks: int, groups: int, weighed: Trip) -> tuple[Trip, ...]:
    """From the verdict to the vocab_block of the token."""
    some = Trip("block < least(first + some", ceil(blocks * batch, groups), (weighed,))
    return some, PHILOX, folded(blocks), folded(blocks)


def accept(batch: int, vocabulary: int = VOCABULARY, drafts: int = DRAFTS) -> Shape:
    """Token rule at temperature 1, no truncation, drafts of sample_drafts with their normalisers,
    of which ACCEPTED are kept; log-probabilities not asked."""
    rows = drafts + 1  # that are measured; those of the drafter end at once
    of_row = vocabulary * BYTES
    blocks = ceil(vocabulary, VOCAB_BLOCK)

    def cpp(arch: str) -> Iterator[Work]:
        def code(step: int) -> str:
            return f"accept_drafts_kernelINS_4bf16ELNS_10AcceptStepE{step}E"

        measure = (HELD, Trip("at.exp2((x - at.all(top)) * at.all(factor))"))
        yield Work("measure", code(0), batch * rows * blocks, measure, batch * rows * of_row)
        groups = batch * ceil(blocks, max(1, batch * blocks // CREWS_AT_ONCE))
        fold = folded(blocks)
        normalised = Trip("crew_.share(rows, ", ceil(rows, 4), (fold, fold), whole=True)
        draw = (
            Trip("scan.each(live_, ", 1, (Trip("row <= row_of_draft(i)", 2), PHILOX)),
            Trip("Group<kThreadsOfCrew>().barrier()", 1, (normalised,), whole=True),
            Trip("decide_token(*this)", 1, (CHANCE, CHANCE), whole=True),
            *drawn(batch, blocks, groups, WEIGHED),
            SEARCHED,
        )
        moved = 2 * batch * of_row
        yield Work("draw", code(4), groups, draw, moved, streams=HELD.text)

    def triton(arch: str) -> Iterator[Work]:
        def code(step: int) -> str:
            return f"accept token step={step} bf16"

        scan = Trip("for start in range(first, stop, TILE)", 1)
        yield Work("measure", code(0), batch * rows * blocks, (scan,), batch * rows * of_row)
        normalise = (Trip("tl.where(sums > 0, sums * tl.exp2("),)
        yield Work("normalise", code(1), batch * rows, normalise, streams=False)
        yield Work(
            "decide",
            code(5),
            batch,
            (Trip("own, memory, seed, position, uniforms, uniforms_row"),),
            streams=False,
        )
        yield Work("weigh", code(6), batch * blocks, (scan,), 2 * batch * of_row)
        draw = (
            Trip("own, memory, kept, u, vocab_block"),
            Trip("while (start < stop) & (found < 0)", 1),
        )
        yield Work("finish", code(7), batch, draw, streams=False)

    exps = batch * rows * vocabulary
    label = f"B={batch} K={drafts}"
    return Shape("accept_drafts", label, {"cpp": cpp, "triton": triton}, exps=exps)


def sample(batch: int, vocabulary: int = VOCABULARY) -> Shape:
    """At temperature 1, no truncation."""
    rows, of_row = batch * DRAFTS, vocabulary * BYTES
    blocks = ceil(vocabulary, VOCAB_BLOCK)

    def cpp(arch: str) -> Iterator[Work]:
        def code(step: int) -> str:
            return f"sample_drafts_kernelINS_4bf16ELNS_10SampleStepE{step}E"

        measure = (HELD, Trip("auto exact = [top, scale]"))
        yield Work("measure", code(0), rows * blocks, measure, rows * of_row)
        fold = folded(blocks)
        draw = (fold, fold, PHILOX, fold, SEARCHED)
        yield Work("finish", code(2), rows, draw, streams=False)

    def triton(arch: str) -> Iterator[Work]:
        scan = Trip("for start in range(first, stop, TILE)", 1)
        code = "sample plain {} bf16"
        yield Work("measure", code.format("measure"), rows * blocks, (scan,), rows * of_row)
        draw = (
            Trip("tl.where(sums > 0, sums * tl.exp2("),
            Trip("kept, row, None, None, total, vocabulary, first, stop", 1),
        )
        yield Work("finish", code.format("finish"), rows, draw, streams=False)

    exps = rows * vocabulary
    label = f"B={batch} K={DRAFTS}"
    return Shape("sample_drafts", label, {"cpp": cpp, "triton": triton}, exps=exps)


# What of a step of 512 ids a wave lists; the steps of a vocab_block
LISTED = Trip("at.append", 1)
STEPS = VOCAB_BLOCK // 512

# What the Triton kernels do beside the others for top-p: a sample's bracket; a list that is
# searched for the cut, as bf16 has few numbers in a bracket, then for the vocab_block of the last
# of equal ids, which a walk by eighths finds
SURVEYED = (Trip("while tries < TRIES", 1, (Trip("beyond_b = _root", 16),)),)
ENLISTED = (Trip("mass_above += sum_eights", 1),)
CUT = (
    Trip("for step in range(3)", 1, (Trip("while tries_lowest", 4),)),
    Trip("tie_block, before = _block_of", 7),
    Trip("tie = walk", 8),
)


def cut_by_share(vocabulary: int) -> tuple[Trip, ...]:
    """What a workgroup of the C++ kernels does to find a row's distribution with top-p."""
    blocks = ceil(vocabulary, VOCAB_BLOCK)
    fold = folded(blocks)
    sampled = Trip("(found(grid_.number(middle))", 16)  # of 16 bits
    guess = Trip("if (!(expected * each > kExpected))", 3, (sampled,))
    # in each step some are listed
    listed = Trip("const double own = rows_sum", 1, STEPS * (LISTED,), whole=True)
    read = Trip("read(kind == Cut::kShare", ceil(blocks, 8), (listed,), whole=True)
    search = Trip("const double mass = above(grid()", 6)
    tries = Trip("if (kind == Cut::kShare) return", 1, (guess, read, search), whole=True)
    settled = Trip("sampler_.weigh([&]", ceil(blocks, 8), (folded(blocks)._replace(times=1),))
    chained = Trip("j < least(n - base, kWave)", ceil(blocks, ceil(blocks, 64)))
    return (
        fold,
        fold,
        Trip("for (int i = 0; i < 3; ++i)", 1, (tries,)),
        settled,
        Trip("Scan::chain(vocabulary_.blocks", ceil(blocks, 64), (chained,)),
        Trip("if (i < n_) out = join(out, of(own))", fold.times),
        fold,
        SCANNED,
    )


def truncated_accept(batch: int, vocabulary: int = VOCABULARY, drafts: int = DRAFTS) -> Shape:
    """As `accept`, with top-p."""
    rows = batch * (drafts + 1)
    blocks, of_row = ceil(vocabulary, VOCAB_BLOCK), vocabulary * BYTES

    def cpp(arch: str) -> Iterator[Work]:
        measure, draw = accept(batch, vocabulary, drafts).launches["cpp"](arch)
        yield measure
        code = "accept_drafts_kernelINS_4bf16ELNS_10AcceptStepE{}E"
        trips = cut_by_share(vocabulary)
        yield Work("cut", code.format(1), rows, trips, rows * of_row, streams=HELD.text)
        decided = Trip("decide_token(*this)", 1, (PHILOX,), whole=True)
        trips = decided, *drawn(batch, blocks, draw.groups, WEIGHED_CUT), SEARCHED_ANY
        yield draw._replace(code=code.format(2), trips=trips, streams=True)

    def triton(arch: str) -> Iterator[Work]:
        plain = accept(batch, vocabulary, drafts).launches["triton"](arch)
        for work in plain:
            work = work._replace(code=work.code.replace("token", "truncated"))
            if work.kernel == "normalise":
                work = work._replace(trips=(*work.trips, *SURVEYED))
            yield work
            if work.kernel == "normalise":
                code = "accept truncated step={} bf16"
                yield Work("enlist", code.format(2), rows * blocks, ENLISTED, rows * of_row)
                yield Work("truncate", code.format(3), rows, CUT, streams=False)

    label, exps = f"B={batch} K={drafts} top-p", rows * vocabulary
    return Shape("accept_drafts", label, {"cpp": cpp, "triton": triton}, exps=exps)


def truncated_sample(batch: int, vocabulary: int = VOCABULARY) -> Shape:
    """As `sample`, with top-p."""
    rows = batch * DRAFTS
    blocks, of_row = ceil(vocabulary, VOCAB_BLOCK), vocabulary * BYTES

    def cpp(arch: str) -> Iterator[Work]:
        measure, finish = sample(batch, vocabulary).launches["cpp"](arch)
        yield measure
        code = "sample_drafts_kernelINS_4bf16ELNS_10SampleStepE1E"
        trips = cut_by_share(vocabulary)
        yield Work("cut", code, rows, trips, rows * of_row, streams=HELD.text)
        yield finish._replace(trips=(PHILOX, folded(blocks), SEARCHED_ANY))

    def triton(arch: str) -> Iterator[Work]:
        measure, _ = sample(batch, vocabulary).launches["triton"](arch)
        code = "sample truncated {} bf16"
        yield measure._replace(code=code.format("measure"))
        yield Work("survey", code.format("survey"), rows, SURVEYED, streams=False)
        yield Work("enlist", code.format("enlist"), rows * blocks, ENLISTED, rows * of_row)
        draw = (
            Trip("chosen, before = _block_of", 7),
            Trip("kept, row, None, None, total, vocabulary, first, stop", 2),
        )
        yield Work("finish", code.format("finish"), rows, (*CUT, *draw), streams=False)

    label, exps = f"B={batch} K={DRAFTS} top-p", rows * vocabulary
    return Shape("sample_drafts", label, {"cpp": cpp, "triton": triton}, exps=exps)
