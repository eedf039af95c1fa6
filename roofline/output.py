"""Flat rows as a table for people, as JSON or as CSV; the options that commands share."""

import csv
import functools
import io
import json
import math
import sys
from collections.abc import Iterable

import click


def output_options(function):
    """--json and --csv. The command returns (rows, show) or (rows, show, exit status): flat dicts, and a function that prints
    them for people."""
    @click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
    @click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
    @functools.wraps(function)
    def command(as_json, as_csv, **options):
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


def to_csv(rows: list[dict]) -> str:
    fields = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value for key, value in row.items()})
    return text.getvalue()


def table(title: str, columns: Iterable[str], lines: Iterable[Iterable], notes: Iterable[str] = ()) -> None:
    """Print a title, a table and notes; columns after the first are right-aligned unless they end with a space."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal and console.width < 140:
        console = Console(highlight=False, width=140)
    console.print(f"[bold]{title}[/bold]", soft_wrap=True)
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(columns):
        grid.add_column(name.rstrip(), justify="right" if i and not name.endswith(" ") else "left", overflow="fold")
    for line in lines:
        grid.add_row(*("" if cell is None else str(cell) for cell in line))
    console.print(grid)
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)


def number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def numbers(context, parameter, value: str | None) -> tuple[float, ...] | None:
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
        raise click.BadParameter(f"expected numbers separated by commas, or @FILE with them, got {value!r} ({error})") from error
