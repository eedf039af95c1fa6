"""`python -m blockdraft.train`: make the tiny model, and see what it is worth."""

import dataclasses
import json
import re
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

from ..models.config import ZayaConfig
from .recipe import ABLATIONS, Recipe, refining
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


@click.group(help=__doc__)
def main() -> None:
    pass


STEPS = click.option("--steps", default=Recipe.steps, show_default=True)
SEED = click.option("--seed", default=Recipe.seed, show_default=True)
SAVE_EVERY = click.option(
    "--save-every", default=200, show_default=True, help="Steps between checkpoints."
)
THREADS = click.option("--threads", default=0, help="Of the CPU; 0: torch's own choice.")
OUT = click.argument("out", type=click.Path(file_okay=False, path_type=Path))
JSON = click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path))


def train_into(
    out: Path, recipe: Recipe, start: Path | None, save_every: int, console: Console
) -> None:
    """The run in the folder OUT goes on; where there is none, one by the recipe begins."""
    began = time.perf_counter()
    if (out / "run.json").exists():
        training = Run.resume(out)
        console.print(f"going on at step {training.done} of {training.recipe.steps}")
    else:
        training = Run(recipe, start)
    count = sum(tensor.numel() for tensor in training.tensors.values())
    console.print(f"{len(training.data) / 1e6:.1f} MB of text, {count:,} parameters")
    with_progress(training, out, save_every, console)
    size = training.export(out)
    minutes = (time.perf_counter() - began) / 60
    console.print(f"{out}: {size:.2f} MB after {minutes:.1f} min", soft_wrap=True)


@main.command()
@OUT
@STEPS
@click.option(
    "--without",
    type=click.Choice(list(ABLATIONS)),
    default="full",
    show_default=True,
    help="The recipe, or the recipe with one ingredient changed.",
)
@click.option(
    "--start",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Begin with the weights of the model in this folder.",
)
@SEED
@SAVE_EVERY
@THREADS
def run(
    out: Path,
    steps: int,
    without: str,
    start: Path | None,
    seed: int,
    save_every: int,
    threads: int,
) -> None:
    """Train into the folder OUT, or go on where it stopped."""
    if threads:
        torch.set_num_threads(threads)
    recipe = dataclasses.replace(Recipe(steps=steps, seed=seed), **ABLATIONS[without])
    if start:
        recipe = refining(recipe, ZayaConfig.load(start).num_experts)
    train_into(out, recipe, start, save_every, Console(stderr=True))


@main.command()
@OUT
@STEPS
@SEED
@SAVE_EVERY
@THREADS
@JSON
def ablate(
    out: Path, steps: int, seed: int, save_every: int, threads: int, path: Path | None
) -> None:
    """Train the recipe, and the recipe with each ingredient left out, into folders under OUT;
    compare them on the held-out files. Goes on where it stopped."""
    from .evaluate import comparison, evaluate

    if threads:
        torch.set_num_threads(threads)
    console, found = Console(stderr=True), {}
    for name, change in ABLATIONS.items():
        console.print(name)
        recipe = dataclasses.replace(Recipe(steps=steps, seed=seed), **change)
        folder = out / "-".join(re.findall(r"\w+", name))
        train_into(folder, recipe, None, save_every, console)
        found[name] = evaluate(folder)
    Console(highlight=False).print(comparison(found))
    if path:
        path.write_text(
            json.dumps({n: each.asdict() for n, each in found.items()}, indent=1) + "\n"
        )


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@JSON
def evaluate(folder: Path, path: Path | None) -> None:
    """Losses and acceptance of the model in FOLDER on the held-out files, by mask offset."""
    from .evaluate import evaluate, tables

    console = Console(highlight=False)
    with console.status("evaluating"):
        found = evaluate(folder)
    console.print(f"autoregressive head: {found.plain:.3f} nats a token")
    for table in tables(found):
        console.print(table)
    if path:
        path.write_text(json.dumps(found.asdict(), indent=1) + "\n")
