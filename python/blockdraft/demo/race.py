"""Two decoders complete one prompt side by side: each step goes to the one that has used less time,
as if each had a machine of its own."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .completions import Completions

STYLES = ("black on cyan", "black on yellow")  # of passes, in turn
SHOWN = 160  # bytes of the prompt
REFRESH = 0.08  # seconds between pictures


class Lane:
    """A decoder on its way; `blocks` are the tokens of each pass."""

    def __init__(self, run: Completions) -> None:
        self.run = run
        self.blocks: list[list[int]] = []

    def step(self) -> None:
        before = self.run.emitted
        self.run.step()
        self.blocks.append(self.run.tokens(0)[before:])

    def panel(self) -> Panel:
        """The text so far, the tokens of a pass in one colour."""
        run = self.run
        body = Text(text_of(run.prompts[0][-SHOWN:]), style="dim")
        for i, block in enumerate(self.blocks):
            body.append(text_of(block), style=STYLES[i % 2])
        title = f"{run.name}: {run.emitted} bytes, {run.passes} passes, {run.seconds:.2f} s"
        return Panel(body, title=title)


def race(console: Console, runs: list[Completions]) -> None:
    """Run them to their ends, live on a terminal, and leave the final picture."""
    lanes = [Lane(run) for run in runs]

    def picture() -> Table:
        grid = Table.grid(expand=True)
        for _ in lanes:
            grid.add_column(ratio=1)
        grid.add_row(*(lane.panel() for lane in lanes))
        return grid

    if not console.is_terminal:
        take_turns(lanes)
        console.print(picture())
        return
    with Live(picture(), console=console, auto_refresh=False) as live:
        shown = 0.0

        def show() -> None:
            nonlocal shown
            if time.perf_counter() - shown > REFRESH:
                live.update(picture(), refresh=True)
                shown = time.perf_counter()

        take_turns(lanes, show)
        live.update(picture(), refresh=True)


def take_turns(lanes: list[Lane], on_step: Callable[[], None] = lambda: None) -> None:
    while running := [lane for lane in lanes if lane.run.active]:
        min(running, key=lambda lane: lane.run.seconds).step()
        on_step()


def text_of(tokens: list[int]) -> str:
    return bytes(t for t in tokens if t < 256).decode("utf-8", "replace")
