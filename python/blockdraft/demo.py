"""`blockdraft demo`: the shipped byte-level ZAYA completes a file that it was never trained on."""

import sysconfig
import time
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from . import BlockDecoder, BlockLayout, Request
from .data import HELD_OUT, TINY
from .models.zaya import ZayaModel

FILE = "textwrap.py"
CONTEXT = 192  # bytes of each prompt


def run(tokens: int, prompts: int, threads: int) -> None:
    console = Console(highlight=False)
    if threads:
        torch.set_num_threads(threads)
    assert FILE in HELD_OUT
    source = (Path(sysconfig.get_paths()["stdlib"]) / FILE).read_bytes()
    model = ZayaModel.load(TINY, torch.float32)
    layout = BlockLayout.tidar(16)
    starts = [i * (len(source) - CONTEXT) // prompts for i in range(prompts)]
    console.print(
        f"{FILE} (held out), {prompts} prompts of {CONTEXT} bytes, {tokens} bytes each; "
        f"K = {layout.K}, {layout.P} proposals of {layout.M}; fp32, {torch.get_num_threads()} CPU threads",
        soft_wrap=True,
    )

    def complete(name, layout, temperature):
        decoder = BlockDecoder(model, layout)
        work = [
            Request(list(source[s : s + CONTEXT]), tokens, seed=i, temperature=temperature)
            for i, s in enumerate(starts)
        ]
        columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            task = progress.add_task(name, total=tokens * prompts)
            began = time.perf_counter()
            done = decoder.generate(work, lambda emitted: progress.update(task, completed=emitted))
            return done, time.perf_counter() - began

    plain, plain_time = complete("autoregressive, greedy", BlockLayout.autoregressive(), 0.0)
    greedy, greedy_time = complete("block diffusion, greedy", layout, 0.0)
    sampled, _ = complete("block diffusion, T = 1", layout, 1.0)
    forced = teacher_forced(model, source, layout.M)

    head = Text(
        bytes(source[starts[0] : starts[0] + CONTEXT]).decode("utf-8", "replace"), style="dim"
    )
    console.print(
        Panel(
            head + Text(text_of(greedy[0]), style="bold"),
            title="prompt 0, then the greedy completion",
        )
    )
    console.print()
    console.print(
        "committed tokens per forward   repetition (share of 24-byte windows seen before)"
    )
    for name, done in (("greedy", greedy), ("T = 1", sampled)):
        console.print(f"  {name:<22} {rate(done):5.2f}   {repetition(done):6.1%}")
    console.print(
        f"  {'true text (teacher)':<22} {sum(forced) / len(forced):5.2f}   drafts taken while they equal the file"
    )
    console.print()
    histogram(
        console, "tokens committed by a forward, greedy", [n for c in greedy for n in c.committed]
    )
    histogram(
        console, "tokens committed by a forward, T = 1", [n for c in sampled for n in c.committed]
    )
    bytes_out = tokens * prompts
    console.print(
        f"wall time for {bytes_out} bytes: autoregressive {plain_time:.2f} s ({bytes_out / plain_time:.0f}/s), block "
        f"diffusion {greedy_time:.2f} s ({bytes_out / greedy_time:.0f}/s): {plain_time / greedy_time:.2f}x",
        soft_wrap=True,
    )
    same = all(a.tokens == b.tokens for a, b in zip(plain, greedy))
    console.print(
        f"greedy block-diffusion output {'equals' if same else 'DIFFERS FROM'} the autoregressive output"
    )


def text_of(completion) -> str:
    return bytes(t for t in completion.tokens if t < 256).decode("utf-8", "replace")


def rate(done) -> float:
    committed = [n for c in done for n in c.committed]
    return sum(committed) / len(committed)


def repetition(done, width: int = 24) -> float:
    """Share of windows of `width` tokens that stand earlier in the same completion: a looping model
    drafts well, too."""
    seen = total = 0
    for c in done:
        windows = [tuple(c.tokens[i : i + width]) for i in range(len(c.tokens) - width + 1)]
        seen, total = seen + len(windows) - len(set(windows)), total + len(windows)
    return seen / max(total, 1)


def histogram(console: Console, title: str, values: list[int]) -> None:
    counts = Counter(values)
    console.print(f"{title} ({len(values)} forwards)")
    for n in range(1, max(counts) + 1):
        console.print(
            f"  {n:>3} {counts[n] / len(values):6.1%} {'#' * round(60 * counts[n] / len(values))}"
        )
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
    mask = model.config.mask_token_id
    i32 = dict(dtype=torch.int32)
    for start in range(0, len(source) - length + 1, length):
        text = torch.tensor(list(source[start : start + length]))
        branches = list(range(length // 2, length - mask_rows + 1))
        matches = {}
        for first in range(0, len(branches), group):
            own = branches[first : first + group]
            layout = BlockLayout(length - 1, mask_rows, len(own))
            rows = layout.pack(
                torch.zeros(1, **i32),
                torch.full((1,), layout.K, **i32),
                torch.tensor([own], **i32),
                0,
            )
            tokens = torch.cat([text, torch.full((len(own) * mask_rows,), mask)])
            logits = model.logits(model.forward(tokens, rows)[length:]).unflatten(
                0, (len(own), mask_rows)
            )
            logits[..., model.config.num_valid_vocab :] = -torch.inf
            truth = text[torch.tensor(own)[:, None] + torch.arange(mask_rows)]
            # mask 0 stands on the next anchor, masks 1.. are the drafts after it
            runs = (logits.argmax(-1) == truth)[:, 1:].int().cumprod(1).sum(1).tolist()
            matches.update(zip(own, runs))
        at = branches[0]
        while at in matches:
            committed.append(matches[at] + 1)
            at += matches[at] + 1
    return committed
