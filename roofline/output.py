"""Flat rows as a table for people, as JSON or as CSV; the options that commands share."""

import csv
import functools
import io
import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

# Blanks between columns
_GAP = 2
# A column wider than this is text, which may be broken into lines
_TEXT = 40


def output_options(function: Callable[..., tuple]) -> Callable[..., None]:
    """--json and --csv. The command returns (rows, show) or (rows, show, exit status): flat dicts,
    and a function that prints them for people."""

    @click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
    @click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
    @functools.wraps(function)
    def command(as_json: bool, as_csv: bool, **options: object) -> None:
        if as_json and as_csv:
            raise click.UsageError("--json, --csv: expected one of them, got both")
        try:
            rows, show, *status = function(**options)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        if as_json:
            click.echo(json.dumps(rows, indent=1))
        elif as_csv:
            click.echo(to_csv(rows), nl=False)
        else:
            show()
        sys.exit(*status)

    return command


def to_csv(rows: Sequence[dict]) -> str:
    fields = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _csv_cell(value) for key, value in row.items()})
    return text.getvalue()


def _csv_cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def table(
    title: str,
    columns: Iterable[str],
    lines: Iterable[Iterable],
    notes: Iterable[str] = (),
    keys: int = 1,
) -> None:
    """Print a title, a table and notes.

    Columns after the first are right-aligned unless they end with a space. What is too wide for the
    terminal is printed in parts, each with the first `keys` columns.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180)  # a file or a pipe has no width to fit
    names = list(columns)
    cells = [["" if cell is None else str(cell) for cell in line] for line in lines]
    text_widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    headings = _headings(names, text_widths, console.width)
    widths = [
        max(width, *map(len, heading.split("\n")))
        for heading, width in zip(headings, text_widths, strict=True)
    ]
    console.print(f"[bold]{title}[/bold]", soft_wrap=not console.is_terminal)
    for n, part in enumerate(_parts([min(width, _TEXT) for width in widths], console.width, keys)):
        if n:
            console.print()
        console.print(_grid(names, headings, widths, cells, part))
    for note in notes:
        console.print(note, markup=False, soft_wrap=not console.is_terminal)


def _headings(names: list[str], widths: list[int], room: int) -> list[str]:
    """The columns' names, broken into lines where the table would otherwise be too wide."""
    headings = [name.rstrip() for name in names]
    total = sum(map(max, widths, map(len, headings))) + _GAP * (len(names) - 1)
    if total <= room:
        return headings
    return [
        "\n".join(textwrap.wrap(heading, max([width, 1, *map(len, heading.split())])))
        for heading, width in zip(headings, widths, strict=True)
    ]


def _grid(
    names: list[str],
    headings: list[str],
    widths: list[int],
    cells: list[list[str]],
    part: list[int],
) -> "Table":
    """The columns in `part`."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="dim")
    for i in part:
        left = i == 0 or names[i].endswith(" ")
        grid.add_column(
            headings[i],
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=widths[i] <= _TEXT,
        )
    for line in cells:
        grid.add_row(*(line[i] for i in part))
    return grid


def _parts(widths: list[int], room: int, keys: int) -> list[list[int]]:
    """Columns of each part, as many as fit."""
    key = list(range(keys))
    parts = [key[:]]
    for i in range(keys, len(widths)):
        used = sum(widths[j] + _GAP for j in parts[-1])
        if len(parts[-1]) > keys and used + widths[i] > room:
            parts.append(key[:])
        parts[-1].append(i)
    return parts


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr, where that is a terminal. Call what is given with the name of each of
    `total` steps as it begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total)
        begun = 0

        def begin(label: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{label[:32]:<32}")
            begun += 1

        yield begin


def number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def short(value: float) -> str:
    """Whole numbers from 100 on, three digits below."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def pairs(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[tuple[float, float], ...] | None:
    """click callback: A:B pairs of numbers, separated by commas."""
    if value is None:
        return None
    try:
        found = [tuple(map(float, pair.split(":"))) for pair in value.split(",")]
        if not all(len(pair) == 2 and all(map(math.isfinite, pair)) for pair in found):
            raise ValueError("not two finite numbers")
        return tuple(found)
    except ValueError as error:
        raise click.BadParameter(
            f"expected pairs such as 0.3:0.5,0.7:0.9, got {value!r} ({error})"
        ) from error


def numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """click callback: numbers separated by commas or blanks, or @FILE that holds them."""
    if value is None:
        return None
    try:
        if value.startswith("@"):
            with open(value[1:]) as file:
                value = file.read()
        found = tuple(float(word) for word in value.replace(",", " ").split())
        if not all(map(math.isfinite, found)):
            raise ValueError("not finite")
        return found
    except (OSError, ValueError) as error:
        raise click.BadParameter(
            f"expected numbers separated by commas, or @FILE with them, got {value!r} ({error})"
        ) from error
