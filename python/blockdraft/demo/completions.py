"""What a decoder makes of the demo's prompts, and how long it takes."""

import time
from collections import Counter
from dataclasses import dataclass, field

from rich.progress import Progress

from .. import BlockDecoder, Request
from ..batch import Batch
from ..bench.timing import UNSTEADY, disagree, median_and_mad
from ..plan import profiling
from ..types import Completion

ROUNDS = 5  # pieces of the completions, in which the ways of decoding take turns


@dataclass
class Completions:
    """Of all prompts at once, by one decoder, `count` tokens each. Prompts are cached at once;
    `seconds`, by op in `ops` too, are those of the passes. `pieces` are seconds a token."""

    name: str
    decoder: BlockDecoder
    prompts: list[list[int]]
    count: int
    temperature: float
    mix: float = 1.0
    seconds: float = 0.0
    passes: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    pieces: list[float] = field(default_factory=list)

    def __post_init__(self):
        self._batch: Batch = self.decoder.batch(
            len(self.prompts), max(map(len, self.prompts)) + self.count
        )
        self._tickets = self._batch.add(
            *(
                Request(prompt, self.count, seed=i, temperature=self.temperature, mix=self.mix)
                for i, prompt in enumerate(self.prompts)
            )
        )
        self._done: dict[int, Completion] = {}

    @property
    def active(self) -> int:
        return self._batch.active

    @property
    def emitted(self) -> int:
        return self._batch.emitted

    def step(self) -> None:
        with profiling() as ops:
            began = time.perf_counter()
            done = self._batch.step()
            self.seconds += time.perf_counter() - began
        self.passes += 1
        self.ops.update(ops)
        self._done |= done

    def extend(self, share: float, progress: Progress) -> None:
        """Go on until that share of all tokens has been emitted: a piece."""
        total = self.count * len(self.prompts)
        task = progress.add_task(self.name, total=total)
        seconds, before = self.seconds, self.emitted
        while self.active and self.emitted < share * total:
            self.step()
            progress.update(task, completed=self.emitted)
        progress.remove_task(task)
        if self.emitted > before:
            self.pieces.append((self.seconds - seconds) / (self.emitted - before))

    def tokens(self, prompt: int) -> list[int]:
        """What a prompt's request has emitted so far."""
        done = self._done.get(self._tickets[prompt])
        return done.tokens if done else self._batch.tokens(self._tickets[prompt])

    @property
    def completions(self) -> list[Completion]:
        """Of the requests that have ended, in the order of their prompts."""
        return [self._done[ticket] for ticket in self._tickets if ticket in self._done]

    @property
    def committed(self) -> list[int]:
        """Tokens that each forward of each request committed."""
        return [count for done in self.completions for count in done.committed]

    @property
    def rate(self) -> float:
        """Tokens committed by a forward."""
        return sum(self.committed) / len(self.committed)

    @property
    def bytes_per_s(self) -> float:
        return self.emitted / self.seconds

    @property
    def nats(self) -> float:
        """Negative log-likelihood of a token under the autoregressive model."""
        logprobs = [value for done in self.completions for value in done.logprobs]
        return -sum(logprobs) / len(logprobs)

    @property
    def repetition(self) -> float:
        return repetition([done.tokens for done in self.completions])


def in_turn(runs: list[Completions], progress: Progress) -> None:
    """Run all to their ends, a piece of each after the other, so that other work on the machine
    meets all alike."""
    for i in range(1, ROUNDS + 1):
        for run in runs:
            run.extend(i / ROUNDS, progress)


def repetition(completions: list[list[int]], width: int = 24) -> float:
    """Share of windows of `width` tokens that stand earlier in the same completion: a looping model
    drafts well, too."""
    seen = total = 0
    for tokens in completions:
        windows = [tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1)]
        seen += len(windows) - len(set(windows))
        total += len(windows)
    return seen / max(total, 1)


def speed(plain: Completions, block: Completions) -> tuple[str, str]:
    """How much faster `block` was, the median of the pieces' ratios with their deviation, and a
    warning where they disagree. A part of it is the text's own: some pieces are easier to draft
    than others."""
    ratio, mad = median_and_mad([a / b for a, b in zip(plain.pieces, block.pieces)])
    shown = f"{ratio:.2f}x ± {mad / ratio:.0%}"
    if not disagree(ratio, mad):
        return shown, ""
    return shown, (
        f"The runs DISAGREE by more than {UNSTEADY:.0%}: do not trust the ratio. Another program "
        "may be running; try OMP_WAIT_POLICY=passive, or longer completions."
    )
