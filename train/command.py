"""`python -m blockdraft.train OUT`: train the tiny model, or go on where OUT stopped."""

import dataclasses
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .recipe import ABLATIONS, Recipe
from .run import Run, train

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


def with_progress(run: Run, folder: Path, save_every: int, console: Console) -> None:
    with Progress(*COLUMNS, console=console) as progress:
        task = progress.add_task("training", total=run.recipe.steps, completed=run.done)

        def report(run: Run) -> None:
            text = " ".join(f"{name} {value:.3f}" for name, value in run.averages.items())
            progress.update(task, completed=run.done, description=text)
            if run.done % 100 == 0 and not console.is_terminal:
                console.print(f"step {run.done}: {text}", soft_wrap=True)

        train(run, folder, save_every, report)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=Recipe.steps, show_default=True)
@click.option(
    "--without",
    type=click.Choice(list(ABLATIONS)),
    default="full",
    show_default=True,
    help="The recipe, or the recipe with one ingredient changed.",
)
@click.option("--seed", default=Recipe.seed, show_default=True)
@click.option("--save-every", default=200, show_default=True, help="Steps between checkpoints.")
@click.option("--threads", default=0, help="Of the CPU; 0: torch's own choice.")
def main(out: Path, steps: int, without: str, seed: int, save_every: int, threads: int) -> None:
    console = Console(stderr=True)
    if threads:
        torch.set_num_threads(threads)
    began = time.perf_counter()
    if (out / "run.json").exists():
        run = Run.resume(out)
        console.print(f"going on at step {run.done} of {run.recipe.steps}")
    else:
        recipe = dataclasses.replace(Recipe(steps=steps, seed=seed), **ABLATIONS[without])
        run = Run(recipe)
    console.print(f"{len(run.data) / 1e6:.1f} MB of text, {parameters(run):,} parameters")
    with_progress(run, out, save_every, console)
    size = run.export(out)
    minutes = (time.perf_counter() - began) / 60
    console.print(f"{out}: {size:.2f} MB after {minutes:.1f} min", soft_wrap=True)


def parameters(run: Run) -> int:
    return sum(tensor.numel() for tensor in run.tensors.values())
