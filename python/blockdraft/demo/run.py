"""The course of the demo."""

import statistics
import sysconfig
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .. import BlockDecoder, BlockLayout, Request
from ..choose import Choice, choose_layout
from ..data import HELD_OUT, TINY
from ..models.zaya import ZayaModel
from . import formats, mix, tables
from .completions import Completions, in_turn, speed
from .predict import predicted
from .race import race
from .teacher import teacher_forced

FILE = "textwrap.py"
CONTEXT = 192  # bytes of each prompt


def decode(tokens: int, prompts: int, threads: int, plots: Path | None = None) -> None:
    """Complete the file by `tokens` bytes from each of `prompts` places, and print how it went;
    pictures of it go to the folder `plots`."""
    console = Console(highlight=False)
    model, source, texts = _start(console, tokens, prompts, threads)
    choices = _choose(console, model, texts, tokens)
    block = next(choice for choice in choices if choice.layout.P > 0)
    console.print(_chosen(choices, block), soft_wrap=True)

    plain_decoder = BlockDecoder(model, BlockLayout.autoregressive())
    decoder = BlockDecoder(model, block.layout, branches=block.branches)
    first = texts[:1]
    race(
        console,
        [
            Completions("autoregressive", plain_decoder, first, tokens, 0.0),
            Completions("block diffusion", decoder, first, tokens, 0.0),
        ],
    )
    plain = Completions("autoregressive, greedy", plain_decoder, texts, tokens, 0.0)
    greedy = Completions("block diffusion, greedy", decoder, texts, tokens, 0.0)
    sampled = Completions("block diffusion, T = 1", decoder, texts, tokens, 1.0)
    with _progress(console) as progress:
        in_turn([plain, greedy], progress)
        sampled.extend(1.0, progress)
        progress.add_task("true text", total=None)
        forced = teacher_forced(model, source, block.layout.M)
        task = progress.add_task("roofline", total=None)
        requests = [Request(text, tokens, temperature=0.0) for text in texts]
        expected = predicted(
            model,
            requests,
            block.layout,
            lambda done, of: progress.update(task, completed=done, total=of),
        )

    for run in (greedy, sampled):
        tables.histogram(console, f"tokens committed by a forward, {run.name}", run.committed)
    ratio, warning = speed(plain, greedy)
    console.print(tables.by_op([plain, greedy], expected))
    console.print()
    console.print(tables.rates(plain, greedy, sampled, ratio))
    console.print(
        f"wall clock: of the passes, median of {len(plain.pieces)} interleaved runs ± their median "
        f"absolute deviation. True text (teacher): {statistics.mean(forced):.2f} tokens a forward, "
        "drafts taken while they equal the file",
        soft_wrap=True,
    )
    if warning:
        console.print(warning, soft_wrap=True)
    if plots:
        from . import plots as pictures

        for path in (
            pictures.acceptance([greedy, sampled], plots),
            pictures.by_op([plain, greedy], plots),
        ):
            console.print(path, soft_wrap=True)


def sweep_mix(tokens: int, prompts: int, threads: int, plots: Path | None = None) -> None:
    """What mixing the drafter's logits into the target's wins and costs: in the layout that pays
    here, and with all branches of 16 masks."""
    console = Console(highlight=False)
    model, _, texts = _start(console, tokens, prompts, threads)
    choices = _choose(console, model, texts, tokens)
    block = next(choice for choice in choices if choice.layout.P > 0)
    dense = BlockLayout.tidar(16)
    for layout, branches in ((block.layout, block.branches), (dense, None)):
        with _progress(console) as progress:
            points = mix.sweep(model, texts, tokens, layout, branches, progress)
        console.print(mix.table(points, layout))
        best = max(points[1:], key=lambda point: point.rate)
        gain = best.rate / points[0].rate
        console.print(
            f"at most {gain:.2f}x the tokens of a lossless forward (a weight of {best.weight:g}); "
            "Zyphra reports 4.6 and 7.7, 1.67x, for its mix\n",
            soft_wrap=True,
        )
    if plots:
        from . import plots as pictures

        console.print(pictures.mix(points, dense, plots), soft_wrap=True)


def compare_formats(tokens: int, prompts: int, threads: int) -> None:
    """What fp8 and MXFP4 cost in likelihood and in tokens of a forward."""
    console = Console(highlight=False)
    _, source, texts = _start(console, tokens, prompts, threads, "bf16")
    dense = BlockLayout.tidar(16)
    with _progress(console) as progress:
        points = formats.compare(source, texts, tokens, dense, progress)
    console.print(formats.table(points, dense))


def _start(
    console: Console, tokens: int, prompts: int, threads: int, dtype: str = "fp32"
) -> tuple[ZayaModel, bytes, list[list[int]]]:
    """The model, the file, and the prompts from it."""
    if threads:
        torch.set_num_threads(threads)
    assert FILE in HELD_OUT
    source = (Path(sysconfig.get_paths()["stdlib"]) / FILE).read_bytes()
    starts = [i * (len(source) - CONTEXT) // prompts for i in range(prompts)]
    console.print(
        f"{FILE} (held out), {prompts} prompts of {CONTEXT} bytes, {tokens} bytes each; "
        f"{dtype}, CPU threads: {torch.get_num_threads()}",
        soft_wrap=True,
    )
    texts = [list(source[start : start + CONTEXT]) for start in starts]
    return ZayaModel.load(TINY, torch.float32), source, texts


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
