"""Which layout pays on this machine, for this model and these requests: passes are timed,
acceptance is counted, and the steady state of each layout says what it yields."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import NamedTuple

from .batch import Batch
from .contract import Check
from .decode import BlockDecoder, Model
from .layout import BlockLayout
from .plan import profiling
from .planner import Planner
from .roofline.acceptance import Acceptance, counted
from .roofline.plan import best_branches
from .types import Request

# Drafts under test, and proposals, of the layouts that are tried. V stands for one of each branch
DRAFTS = (1, 2, 3, 4, 6, 8, 11, 15)
PROPOSALS = (1, 2, 3, 4, 6)
# Behind this share of plain decoding's rate, a layout is not tried with more requests
HOPELESS = 0.8
# A layout must promise so much more than plain decoding, since its figures are measured
MARGIN = 1.02
# So many that promise most, and plain decoding, are timed again, in turn, because one median of a
# busy machine errs by more than they differ
FINALISTS, ROUNDS = 4, 2


class Choice(NamedTuple):
    """A layout with its best branches, and what it yields for a batch."""

    layout: BlockLayout
    branches: tuple[int, ...]
    pass_s: float
    tokens_per_pass: float  # of a request
    tokens_per_s: float  # of the batch

    def timed(self, pass_s: float) -> "Choice":
        """With another time of a pass."""
        return self._replace(pass_s=pass_s, tokens_per_s=self.tokens_per_s * self.pass_s / pass_s)


def choose_layout(
    model: Model,
    requests: Sequence[Request],
    *,
    passes: int = 12,
    report: Callable[[int, int], None] | None = None,
) -> list[Choice]:
    """Layouts for batches like `requests`, the best first; plain decoding is one of them, and comes
    first unless another one promises MARGIN more.

    model      as BlockDecoder takes it, trained with blocks of up to 16
    requests   a batch as it will be served: as many, with such prompts, temperatures and lengths
    passes     how many of each layout are timed; the median counts
    report     called with (done, all) after each layout, and when the best are timed again
    """
    _check("choose_layout", requests, passes)
    acceptance = measure_acceptance(model, requests)
    return _rank(model, requests, all_layouts(), acceptance, passes, report)


def choose_layouts(
    model: Model,
    requests: Sequence[Request],
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    passes: int = 12,
    report: Callable[[int, int], None] | None = None,
) -> dict[int, Choice]:
    """The best layout for each number of active requests, as a BlockDecoder takes it:

        chosen = choose_layouts(model, requests)
        layouts = {size: choice.layout for size, choice in chosen.items()}
        branches = {size: choice.branches for size, choice in chosen.items()}
        decoder = BlockDecoder(model, layouts, branches=branches)

    requests     as they will be served; repeated where a size is larger than their number
    sizes        1 among them. A layout that is far behind plain decoding at one size is not tried
                 at larger ones, where drafts pay less
    passes, report  as in choose_layout; `report` counts anew for each size
    """
    check = _check("choose_layouts", requests, passes)
    check.need(bool(sizes) and min(sizes) == 1, "sizes", "numbers of requests from 1 on", sizes)
    acceptance = measure_acceptance(model, requests)
    layouts, chosen = all_layouts(), {}
    for size in sorted(sizes):
        batch = [requests[i % len(requests)] for i in range(size)]
        ranked = _rank(model, batch, layouts, acceptance, passes, report)
        chosen[size] = ranked[0]
        (plain,) = (choice for choice in ranked if choice.layout.P == 0)
        least = HOPELESS * plain.tokens_per_s
        hopeful = {choice.layout for choice in ranked if choice.tokens_per_s >= least}
        layouts = [layout for layout in layouts if layout in hopeful]
    return chosen


def _check(name: str, requests: Sequence[Request], passes: int) -> Check:
    check = Check(name)
    check.need(len(requests) > 0, "requests", "at least one", "an empty batch")
    check.need(passes >= 1, "passes", "1 or more", passes)
    return check


def all_layouts() -> list[BlockLayout]:
    """What is tried; plain decoding comes first."""
    layouts = [BlockLayout.autoregressive()]
    layouts += [BlockLayout(K, K + 1, P) for K in DRAFTS for P in (*PROPOSALS, K + 1) if P <= K + 1]
    return list(dict.fromkeys(layouts))


def _rank(
    model: Model,
    requests: Sequence[Request],
    layouts: list[BlockLayout],
    acceptance: Acceptance,
    passes: int,
    report: Callable[[int, int], None] | None,
) -> list[Choice]:
    finalists = min(FINALISTS + 1, len(layouts))
    count, done = len(layouts) + ROUNDS * finalists, 0

    def step() -> None:
        nonlocal done
        done += 1
        if report is not None:
            report(done, count)

    choices = []
    for layout in layouts:
        choices.append(_evaluate(model, requests, layout, acceptance, passes))
        step()
    plain, *others = choices
    others.sort(key=_rate, reverse=True)
    close = [plain, *others[:FINALISTS]]
    seconds = [[choice.pass_s] for choice in close]
    for _ in range(ROUNDS):
        for choice, own in zip(close, seconds):
            own.append(measure_pass(model, requests, choice.layout, passes))
            step()
    plain, *first = (choice.timed(statistics.median(own)) for choice, own in zip(close, seconds))
    others = [*sorted(first, key=_rate, reverse=True), *others[FINALISTS:]]
    better = [c for c in others if c.tokens_per_s >= MARGIN * plain.tokens_per_s]
    if better and better[0] != others[0]:  # no finalist is: others were timed once
        better = []
    return [*better, plain, *(c for c in others if c not in better)]


def _rate(choice: Choice) -> float:
    return choice.tokens_per_s


def measure_acceptance(model: Model, requests: Sequence[Request], block: int = 16) -> Acceptance:
    """How often a draft is accepted, given that those before it are, by its place in the pass and
    the mask that it came from; counted in two decodes, one of which has a single proposal, so that
    far masks supply first drafts too."""
    counts = None
    for P, branches in ((3, "planned"), (1, (1,))):
        decoder = BlockDecoder(model, BlockLayout.tidar(block, P), branches=branches)
        batch = _start(decoder, requests)
        planner = batch.stage.planner = Planner(batch.stage.state, counts)
        counts = planner.counts
        while batch.active:
            batch.step(4)
    return counted(planner.by_mask().tolist())


def measure_pass(
    model: Model, requests: Sequence[Request], layout: BlockLayout, passes: int
) -> float:
    """Seconds of a pass over these requests with this layout, the median of `passes`."""
    return statistics.median(seconds for seconds, _ in profile(model, requests, layout, passes))


def profile(
    model: Model, requests: Sequence[Request], layout: BlockLayout, passes: int
) -> list[tuple[float, Counter[str]]]:
    """Seconds of each of `passes` passes, and those of its ops, with as long prefixes as requests
    that run to max_new_tokens have on average."""
    count = (passes + 3) * layout.V
    longest = getattr(model.config, "max_position_embeddings", None)
    longer = []
    for r in requests:
        prompt = list(islice(cycle(r.prompt), len(r.prompt) + r.max_new_tokens // 2))
        # one that leaves no room is cut; its last tokens are about as much work
        prompt = prompt if longest is None else prompt[-max(longest - count, 1) :]
        new = count if longest is None else min(count, longest - len(prompt))
        longer.append(replace(r, prompt=prompt, max_new_tokens=new, stop=()))
    batch = _start(BlockDecoder(model, layout), longer)
    batch.step(2)  # the second pass is the first with drafts
    found = []
    for _ in range(passes):
        with profiling() as by_op:
            began = time.perf_counter()
            batch.step()
            found.append((time.perf_counter() - began, by_op))
    return found


def _start(decoder: BlockDecoder, requests: Sequence[Request]) -> Batch:
    longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
    batch = decoder.batch(len(requests), longest)
    batch.add(*requests)
    return batch


def _evaluate(
    model: Model,
    requests: Sequence[Request],
    layout: BlockLayout,
    acceptance: Acceptance,
    passes: int,
) -> Choice:
    seconds = measure_pass(model, requests, layout, passes)
    tokens, branches = 1.0, ()
    if layout.P > 0:
        steady, _ = best_branches(acceptance.resized(layout.K, layout.M), layout.P)
        tokens, branches = steady.tokens_per_pass, steady.branches
    return Choice(layout, branches, seconds, tokens, len(requests) * tokens / seconds)
