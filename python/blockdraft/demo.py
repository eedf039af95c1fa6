"""`blockdraft demo`: the shipped byte-level ZAYA completes a file that it was never trained on."""

import statistics
import sysconfig
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from . import BlockDecoder, BlockLayout, Request
from .bench.timing import UNSTEADY, disagree, median_and_mad
from .choose import Choice, choose_layout
from .data import HELD_OUT, TINY
from .models.zaya import ZayaModel

FILE = "textwrap.py"
CONTEXT = 192  # bytes of each prompt
ROUNDS = 5  # pieces of the completions, in which the two ways of decoding take turns


@dataclass
class Completions:
    """Of all prompts, by one decoder, a piece at a time."""

    name: str
    decoder: BlockDecoder
    prompts: list[list[int]]
    temperature: float
    tokens: list[list[int]] = field(init=False)
    committed: list[int] = field(init=False, default_factory=list)  # by each forward
    seconds: list[float] = field(init=False, default_factory=list)  # of each piece

    def __post_init__(self):
        self.tokens = [[] for _ in self.prompts]

    def extend(self, count: int, progress: Progress) -> None:
        """Complete each prompt by `count` more tokens."""
        work = [
            Request(prompt + done, count, seed=i, temperature=self.temperature)
            for i, (prompt, done) in enumerate(zip(self.prompts, self.tokens))
        ]
        task = progress.add_task(self.name, total=count * len(work))
        began = time.perf_counter()
        pieces = self.decoder.generate(work, lambda n: progress.update(task, completed=n))
        self.seconds.append(time.perf_counter() - began)
        progress.remove_task(task)
        for done, piece in zip(self.tokens, pieces):
            done += piece.tokens
            self.committed += piece.committed

    @property
    def rate(self) -> float:
        """Tokens committed by a forward."""
        return sum(self.committed) / len(self.committed)


def run(tokens: int, prompts: int, threads: int) -> None:
    """Complete the file by `tokens` bytes from each of `prompts` places, and print how it went."""
    console = Console(highlight=False)
    if threads:
        torch.set_num_threads(threads)
    assert FILE in HELD_OUT
    source = (Path(sysconfig.get_paths()["stdlib"]) / FILE).read_bytes()
    model = ZayaModel.load(TINY, torch.float32)
    starts = [i * (len(source) - CONTEXT) // prompts for i in range(prompts)]
    texts = [list(source[start : start + CONTEXT]) for start in starts]
    console.print(
        f"{FILE} (held out), {prompts} prompts of {CONTEXT} bytes, {tokens} bytes each; "
        f"fp32, CPU threads: {torch.get_num_threads()}",
        soft_wrap=True,
    )
    choices = _choose(console, model, texts, tokens)
    block = next(choice for choice in choices if choice.layout.P > 0)
    console.print(_chosen(choices, block), soft_wrap=True)

    plain_decoder = BlockDecoder(model, BlockLayout.autoregressive())
    decoder = BlockDecoder(model, block.layout, branches=block.branches)
    plain = Completions("autoregressive, greedy", plain_decoder, texts, 0.0)
    greedy = Completions("block diffusion, greedy", decoder, texts, 0.0)
    sampled = Completions("block diffusion, T = 1", decoder, texts, 1.0)
    with _progress(console) as progress:
        for count in pieces(tokens):
            plain.extend(count, progress)
            greedy.extend(count, progress)
        sampled.extend(tokens, progress)
        progress.add_task("true text", total=None)
        forced = teacher_forced(model, source, block.layout.M)

    _show_text(console, texts[0], greedy.tokens[0])
    _show_rates(console, greedy, sampled, forced)
    histogram(console, "tokens committed by a forward, greedy", greedy.committed)
    histogram(console, "tokens committed by a forward, T = 1", sampled.committed)
    console.print(speed(plain, greedy), soft_wrap=True)
    same = "equals" if plain.tokens == greedy.tokens else "DIFFERS FROM"
    console.print(f"greedy block-diffusion output {same} the autoregressive output")


def _choose(
    console: Console, model: ZayaModel, texts: list[list[int]], tokens: int
) -> list[Choice]:
    requests = [Request(text, min(tokens, 64), temperature=0.0) for text in texts]
    with _progress(console) as progress:
        task = progress.add_task("layouts", total=None)
        return choose_layout(
            model,
            requests,
            report=lambda done, of: progress.update(task, completed=done, total=of),
        )


def _chosen(choices: list[Choice], block: Choice) -> str:
    """The best layout with drafts, and whether plain decoding is faster."""
    plain = next(choice for choice in choices if choice.layout.P == 0)
    layout, ratio = block.layout, block.tokens_per_s / plain.tokens_per_s
    line = (
        f"of {len(choices)} layouts K = {layout.K} with {layout.P} proposals of {layout.M} drafts "
        f"best here: {block.tokens_per_pass:.2f} tokens a pass of {1e3 * block.pass_s:.2f} ms, "
        f"plain decoding 1 of {1e3 * plain.pass_s:.2f} ms: {ratio:.2f}x"
    )
    if choices[0] is plain:
        return f"{line}. On this machine choose_layout takes plain decoding for this model"
    return line


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def pieces(tokens: int, rounds: int = ROUNDS) -> list[int]:
    """`tokens` in that many pieces, none of them empty, as equal as can be."""
    bounds = [i * tokens // rounds for i in range(rounds + 1)]
    return [stop - start for start, stop in zip(bounds, bounds[1:]) if stop > start]


def speed(plain: Completions, greedy: Completions) -> str:
    """The wall-clock line. Each piece was decoded in both ways, one right after the other, so that
    other work on the machine meets both; the median of the ratios is what counts. A part of their
    deviation is the text's own: some pieces are easier to draft than others."""
    size = sum(map(len, plain.tokens))
    ratio, mad = median_and_mad([a / b for a, b in zip(plain.seconds, greedy.seconds)])
    times = [f"{sum(c.seconds):.2f} s ({size / sum(c.seconds):.0f}/s)" for c in (plain, greedy)]
    line = (
        f"wall time for {size} bytes: autoregressive {times[0]}, block diffusion {times[1]}: "
        f"{ratio:.2f}x, the median of {len(plain.seconds)} interleaved runs "
        f"(median absolute deviation {mad / ratio:.0%})"
    )
    if not disagree(ratio, mad):
        return line
    return (
        f"{line}\nThe runs DISAGREE by more than {UNSTEADY:.0%}: do not trust the ratio. Another "
        "program may be running; try OMP_WAIT_POLICY=passive, or longer completions."
    )


def text_of(tokens: list[int]) -> str:
    return bytes(t for t in tokens if t < 256).decode("utf-8", "replace")


def _show_text(console: Console, prompt: list[int], completion: list[int]) -> None:
    head = Text(text_of(prompt), style="dim")
    body = head + Text(text_of(completion), style="bold")
    console.print(Panel(body, title="prompt 0, then the greedy completion"))
    console.print()


def _show_rates(
    console: Console, greedy: Completions, sampled: Completions, forced: list[int]
) -> None:
    console.print(
        "committed tokens per forward   repetition (share of 24-byte windows seen before)"
    )
    for name, done in (("greedy", greedy), ("T = 1", sampled)):
        console.print(f"  {name:<22} {done.rate:5.2f}   {repetition(done.tokens):6.1%}")
    console.print(
        f"  {'true text (teacher)':<22} {statistics.mean(forced):5.2f}   "
        "drafts taken while they equal the file"
    )
    console.print()


def repetition(completions: list[list[int]], width: int = 24) -> float:
    """Share of windows of `width` tokens that stand earlier in the same completion: a looping model
    drafts well, too."""
    seen = total = 0
    for tokens in completions:
        windows = [tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1)]
        seen += len(windows) - len(set(windows))
        total += len(windows)
    return seen / max(total, 1)


def histogram(console: Console, title: str, values: list[int]) -> None:
    counts = Counter(values)
    console.print(f"{title} ({len(values)} forwards)")
    for n in range(1, max(counts) + 1):
        share = counts[n] / len(values)
        console.print(f"  {n:>3} {share:6.1%} {'#' * round(60 * share)}")
    console.print()


@torch.no_grad()
def teacher_forced(
    model: ZayaModel, source: bytes, mask_rows: int, length: int = 512, group: int = 32
) -> list[int]:
    """Tokens committed by each forward if the target were the file itself: greedy drafts, taken
    while they equal it.

    The file is cut into pieces of `length`; every branch of a piece is drafted from, `group`
    proposals a pass, then a walk takes what each forward would commit. The first half of a piece is
    context only.
    """
    committed = []
    for start in range(0, len(source) - length + 1, length):
        text = torch.tensor(list(source[start : start + length]))
        branches = list(range(length // 2, length - mask_rows + 1))
        matches: dict[int, int] = {}
        for first in range(0, len(branches), group):
            some = branches[first : first + group]
            matches.update(zip(some, _matches(model, text, some, mask_rows)))
        at = branches[0]
        while at in matches:
            committed.append(matches[at] + 1)
            at += matches[at] + 1
    return committed


def _matches(
    model: ZayaModel, text: torch.Tensor, branches: list[int], mask_rows: int
) -> list[int]:
    """For each branch, how many greedy drafts in a row equal the text."""
    length = len(text)
    i32 = dict(dtype=torch.int32)
    layout = BlockLayout(length - 1, mask_rows, len(branches))
    rows = layout.pack(
        torch.zeros(1, **i32),
        torch.full((1,), layout.K, **i32),
        torch.tensor([branches], **i32),
        0,
    )
    masks = torch.full((len(branches) * mask_rows,), model.config.mask_token_id)
    hidden = model.forward(torch.cat([text, masks]), rows)[length:]
    logits = model.logits(hidden).unflatten(0, (len(branches), mask_rows))
    logits[..., model.config.num_valid_vocab :] = -torch.inf
    truth = text[torch.tensor(branches)[:, None] + torch.arange(mask_rows)]
    # mask 0 stands on the next anchor, masks 1.. are the drafts after it
    return (logits.argmax(-1) == truth)[:, 1:].int().cumprod(1).sum(1).tolist()
