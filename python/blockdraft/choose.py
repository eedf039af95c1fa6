"""Which layout pays on this machine, for this model and these requests: passes are timed,
acceptance is counted, and the steady state of each layout says what it yields."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from .batch import Batch
from .contract import Check
from .decode import BlockDecoder, Model
from .layout import BlockLayout
from .planner import Planner
from .roofline.acceptance import Acceptance, counted
from .roofline.plan import best_branches
from .types import Request

# Drafts under test, and proposals, of the layouts that are tried. V stands for one of each branch
DRAFTS = (1, 2, 3, 4, 6, 8, 11, 15)
PROPOSALS = (1, 2, 3, 4, 6)
# A layout must promise so much more than plain decoding, since its figures are measured
MARGIN = 1.02


class Choice(NamedTuple):
    """A layout with its best branches, and what it yields for a batch."""

    layout: BlockLayout
    branches: tuple[int, ...]
    pass_s: float
    tokens_per_pass: float  # of a request
    tokens_per_s: float  # of the batch


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
    report     called with (done, all) after each layout
    """
    check = Check("choose_layout")
    check.need(len(requests) > 0, "requests", "at least one", "an empty batch")
    check.need(passes >= 1, "passes", "1 or more", passes)
    acceptance = measure_acceptance(model, requests)
    layouts = [BlockLayout.autoregressive()]
    layouts += [BlockLayout(K, K + 1, P) for K in DRAFTS for P in (*PROPOSALS, K + 1) if P <= K + 1]
    layouts = list(dict.fromkeys(layouts))
    choices = []
    for done, layout in enumerate(layouts, 1):
        choices.append(_evaluate(model, requests, layout, acceptance, passes))
        if report is not None:
            report(done, len(layouts))
    plain, *others = choices
    others.sort(key=lambda choice: -choice.tokens_per_s)
    better = [c for c in others if c.tokens_per_s >= MARGIN * plain.tokens_per_s]
    return [*better, plain, *others[len(better) :]]


def measure_acceptance(model: Model, requests: Sequence[Request], block: int = 16) -> Acceptance:
    """How often a draft is accepted, given that those before it are, by its place in the pass and
    the mask that it came from; counted in two decodes, one of which has a single proposal, so that
    far masks supply first drafts too."""
    counts = None
    for P, branches in ((3, "planned"), (1, (1,))):
        decoder = BlockDecoder(model, BlockLayout.tidar(block, P), branches=branches)
        batch = _start(decoder, requests)
        planner = batch.planner = Planner(batch.state, counts)
        counts = planner.counts
        while batch.active:
            batch.step(4)
    return counted(planner.by_mask().tolist())


def measure_pass(
    model: Model, requests: Sequence[Request], layout: BlockLayout, passes: int
) -> float:
    """Seconds of a pass over these requests with this layout, the median of `passes`."""
    count = (passes + 3) * layout.V
    longest = getattr(model.config, "max_position_embeddings", None)
    longer = []
    for r in requests:
        # a prompt that leaves no room is cut; its last tokens are about as much work
        prompt = r.prompt if longest is None else r.prompt[-max(longest - count, 1) :]
        new = count if longest is None else min(count, longest - len(prompt))
        longer.append(replace(r, prompt=prompt, max_new_tokens=new, stop=()))
    batch = _start(BlockDecoder(model, layout), longer)
    batch.step(2)  # the second pass is the first with drafts
    times = []
    for _ in range(passes):
        began = time.perf_counter()
        batch.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


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
