"""Block-diffusion decoding of a batch of requests: one forward pass verifies the last drafts and
draws the next ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from .batch import Batch, check_batch
from .contract import Check
from .layout import BlockLayout
from .types import Completion, PassInputs, Request, is_integer


class Pass(Protocol):
    """A model's pass over a `PassInputs`, run again and again. logits [B,V,vocab] are those of the
    verify rows, draft_logits [B,K,vocab] those of `draft_rows`."""

    logits: torch.Tensor
    draft_logits: torch.Tensor

    def run(self) -> None:
        """Write `logits`."""

    def commit(self) -> None:
        """Keep verify rows 0..accepted[b]; the cache's prefix_lens grow in place."""

    def draft(self) -> None:
        """Write `draft_logits`."""


class Model(Protocol):
    """What BlockDecoder needs of a model; ZayaModel has it.

    `config` has vocab_size, num_valid_vocab, mask_token_id and, where there is such a limit,
    max_position_embeddings. A cache has prefix_lens int32 [B], open(request, tokens) and
    close(request), which give a request room and take it back.
    """

    config: Any
    dtype: torch.dtype
    device: torch.device

    def new_cache(self, requests: int, max_tokens: int, page: int, pages: int | None) -> Any:
        """An empty cache for up to `requests`, each of at most `max_tokens`."""

    def prefill(self, prompts: list[list[int]], cache: Any, chunk: int) -> Any:
        """Cache the prompts, `chunk` tokens of each at a time; the others idle."""

    def plan(self, inputs: PassInputs, cache: Any) -> Pass:
        """The pass over `inputs`."""


class BlockDecoder:
    """Decodes with any `Model`. It holds nothing of a call, so that threads may share one, and
    `on_step` may call it again.

    layout    BlockLayout; `BlockLayout.autoregressive()` is plain decoding by the same code. Or
              several, by the least number of active requests that each is for: {1: A, 9: B} decodes
              with A up to 8 requests, and moves to B when a ninth comes; see `choose_layouts`
    rule      how drafts are accepted: "token", "block" or "greedy" (see ops.accept_drafts)
    drafter   how drafts are drawn: "sampled" or "greedy"
    branches  of the proposals, ascending. None: spread evenly over 1..V. "planned": chosen in each
              pass by the drafts' confidence and the acceptance that this batch has seen; a
              request's tokens then depend on the others in its batch, their distribution does not.
              Of several layouts: by the same numbers
    page      tokens of a page of the cache
    chunk     tokens of each prompt that one pass of the prefill takes
    graphs    whether passes are captured in CUDA (HIP) graphs and replayed; None: on a GPU. The
              model's pass then waits for nothing, and uses the same tensors each time
    """

    def __init__(
        self,
        model: Model,
        layout: BlockLayout | Mapping[int, BlockLayout],
        *,
        rule: str = "token",
        drafter: str = "sampled",
        branches: Sequence[int] | str | None | Mapping[int, Sequence[int] | str | None] = None,
        page: int = 16,
        chunk: int = 512,
        graphs: bool | None = None,
    ):
        check = Check("BlockDecoder")
        parts = ("config", "new_cache", "prefill", "plan")
        is_model = all(hasattr(model, part) for part in parts)
        is_page = is_integer(page, 8, 2**31 - 1) and page & (page - 1) == 0
        is_chunk = is_integer(chunk, 1, 2**31 - 1)
        check.need(is_model, "model", f"an object with {', '.join(parts)}", type(model).__name__)
        check.choice("rule", rule, ("token", "block", "greedy"))
        check.choice("drafter", drafter, ("sampled", "greedy"))
        check.need(is_page, "page", "a power of two of at least 8", repr(page))
        check.need(is_chunk, "chunk", "an integer of at least 1", repr(chunk))
        mask_token = model.config.mask_token_id
        self.layouts = _layouts(check, layout, branches)
        masked = mask_token is not None or all(each.P == 0 for each, _ in self.layouts.values())
        check.need(masked, "model", "a mask_token_id in its config, to draft with", mask_token)
        gpu = model.device.type == "cuda"
        check.need(graphs in (None, False, gpu), "graphs", "None or False on a CPU", repr(graphs))
        self.model = model
        self.graphs = gpu if graphs is None else graphs
        self.rule = rule
        self.drafter = drafter
        self.page = page
        self.chunk = chunk
        self.verify_rows = max(each.V for each, _ in self.layouts.values())

    def generate(
        self,
        requests: Sequence[Request],
        on_step: Callable[[int], None] | None = None,
        *,
        steps_per_sync: int = 1,
    ) -> list[Completion]:
        """Complete all requests together. `on_step(tokens)` is called after every `steps_per_sync`
        passes, between which nothing waits for the device, with the number of tokens emitted so
        far."""
        check = Check("BlockDecoder.generate")
        if not isinstance(requests, (list, tuple)):
            check.fail("requests", "a list of Request", repr(requests))
        check.need(len(requests) > 0, "requests", "at least one", "an empty batch")
        self.check_requests(check, requests)
        if on_step is not None and not callable(on_step):
            check.fail("on_step", "a function or None", repr(on_step))
        steps = is_integer(steps_per_sync, 1, 2**31 - 1)
        check.need(steps, "steps_per_sync", "an integer of at least 1", repr(steps_per_sync))
        lengths = [len(r.prompt) + r.max_new_tokens for r in requests]
        pages = sum(-(-(length + self.verify_rows) // self.page) for length in lengths)
        batch = Batch(self, len(requests), max(lengths), pages)
        tickets = batch.add(*requests)
        done: dict[int, Completion] = {}
        while batch.active:
            done |= batch.step(steps_per_sync)
            if on_step is not None:
                on_step(batch.emitted)
        return [done[ticket] for ticket in tickets]

    def batch(self, capacity: int, max_tokens: int, pages: int | None = None) -> Batch:
        """An empty batch for up to `capacity` requests at a time, each of at most `max_tokens` with
        its prompt, that share `pages` pages of the cache (None: enough for all)."""
        check_batch(Check("BlockDecoder.batch"), capacity, max_tokens, pages)
        return Batch(self, capacity, max_tokens, pages)

    @property
    def vocabulary(self) -> dict[str, int]:
        """How the ops read a row of logits: how many ids are real, and which one is the mask."""
        config = self.model.config
        mask_token = -1 if config.mask_token_id is None else config.mask_token_id
        return dict(num_valid_vocab=config.num_valid_vocab, mask_token=mask_token)

    def check_requests(self, check: Check, requests: Sequence[Any]) -> None:
        """Refuse what cannot be decoded, before anything is allocated."""
        config = self.model.config
        vocab, longest = config.vocab_size, getattr(config, "max_position_embeddings", None)
        for i, request in enumerate(requests):
            if not isinstance(request, Request):
                check.fail("requests", "a list of Request", f"{request!r} at {i}")
            allowed = () if callable(request.allowed) else request.allowed or ()
            named = dict(prompt=request.prompt, logit_bias=request.logit_bias, allowed=allowed)
            for name, ids in named.items():
                highest = max(ids, default=0)
                check.need(highest < vocab, name, f"ids in 0..{vocab - 1}", highest)
            total = len(request.prompt) + request.max_new_tokens
            if longest is not None and total > longest:
                together = f"of at most max_position_embeddings = {longest} together"
                check.fail("requests", f"prompt and max_new_tokens {together}", total)


def _layouts(
    check: Check, layout: Any, branches: Any
) -> dict[int, tuple[BlockLayout, list[int] | None]]:
    """Each layout with its branches (None: planned), by the least number of requests."""
    given = dict(layout) if isinstance(layout, Mapping) else {1: layout}
    for each in given.values():
        check.need(isinstance(each, BlockLayout), "layout", "a BlockLayout", repr(each))
    counts = all(is_integer(least, 1, 2**31 - 1) for least in given) and 1 in given
    check.need(counts, "layout", "numbers of requests, 1 among them", repr([*given]))
    if not isinstance(branches, Mapping):
        branches = dict.fromkeys(given, branches)
    check.need(set(branches) == set(given), "branches", f"keys {[*given]}", repr([*branches]))
    return {n: (each, _branches(check, each, branches[n])) for n, each in given.items()}


def _branches(check: Check, layout: BlockLayout, branches: Any) -> list[int] | None:
    """The proposals' branches, checked. "planned": None; None: spread evenly over 1..V."""
    V, P = layout.V, layout.P
    if isinstance(branches, str) and branches == "planned":
        return None
    if branches is None:
        return layout.spread()
    fits = isinstance(branches, (list, tuple)) and all(is_integer(c, 1, V) for c in branches)
    fits = fits and len(branches) == P and sorted(branches) == list(branches)
    check.need(fits, "branches", f"{P} ascending branches in 1..{V}", repr(branches))
    return list(branches)
