"""Reads devices from TOML files. Every fault of a file is named with the place where it stands."""

import math
from pathlib import Path

from .figures import CONFIDENCE, FIGURES, KINDS, RANGES, RATES, Device, Figure

_TEXTS = ("source", "confidence", "note")


def read(path: Path) -> dict:
    """The tables of a file, as TOML gives them."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"devices: {path}: expected a TOML file, got {error}") from error


def sources(table: object, path: Path) -> dict[str, dict[str, str]]:
    """The table [sources], checked."""
    if not isinstance(table, dict) or not all(map(_is_source, table.values())):
        raise ValueError(
            f"devices: {path}: sources: expected NAME = {{ title, date }}, and a url where there "
            f"is one, for each, got {table!r}"
        )
    return table


def _is_source(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and {"title", "date"} <= set(entry) <= {"title", "date", "url"}
        and all(isinstance(text, str) for text in entry.values())
    )


def device(
    name: str,
    table: object,
    before: Device | None,
    known_sources: dict[str, dict[str, str]],
    path: Path,
) -> Device:
    """The device that a table describes, with the figures that it had `before` where the table has
    none."""
    reader = _Reader(f"devices: {path}: {name}", known_sources, str(path))
    reader.need(
        isinstance(table, dict) and set(table) <= {"arch", *KINDS},
        "",
        f"arch, {', '.join(KINDS)}",
        table,
    )
    arch = table.get("arch", before.arch if before else "unknown")
    reader.need(isinstance(arch, str), ".arch", "a name", arch)
    figures = {}
    for kind in KINDS:
        inherited = before.figures[kind] if before else {}
        figures[kind] = inherited | reader.section(kind, table.get(kind, {}))
    quoted = figures["quoted"]
    either = quoted | figures["achieved"]
    reader.need("memory_tb_per_s" in either, "", "a memory_tb_per_s", sorted(quoted))
    reader.need(
        any(rate in either for rate in RATES), "", f"one of {', '.join(RATES)}", sorted(quoted)
    )
    for figure, found in figures["achieved"].items():
        most = quoted[figure][0].value if figure in quoted else math.inf
        for value in (f.value for f in found):
            expected = f"at most the quoted {most:g}"
            reader.need(value <= most, f".achieved.{figure}", expected, value)
    return Device(name, arch, figures)


class _Reader:
    """Reads the figures of one device of one file."""

    def __init__(self, owner: str, sources: dict[str, dict[str, str]], path: str) -> None:
        self.owner = owner
        self.sources = sources
        self.path = path

    def need(self, ok: object, where: str, expected: str, got: object) -> None:
        if not ok:
            raise ValueError(f"{self.owner}{where}: expected {expected}, got {got!r}")

    def section(self, kind: str, table: object) -> dict[str, tuple[Figure, ...]]:
        """[NAME.KIND], whose source and confidence are those of every figure without its own."""
        self.need(isinstance(table, dict), f".{kind}", "a table of figures", table)
        default = {
            "source": table.get("source", self.path),
            "confidence": table.get("confidence", "read"),
        }
        return {
            name: self._figures(kind, name, value, default)
            for name, value in table.items()
            if name not in default
        }

    def _figures(
        self, kind: str, name: str, value: object, default: dict[str, object]
    ) -> tuple[Figure, ...]:
        """A number, a table or a list of tables."""
        where = f".{kind}.{name}"
        self.need(name in FIGURES, where, f"one of {', '.join(FIGURES)}", name)
        values = value if isinstance(value, list) else [value]
        entries = [entry if isinstance(entry, dict) else {"value": entry} for entry in values]
        self.need(entries, where, "at least one figure", entries)
        return tuple(self._figure(kind, where, entry, default) for entry in entries)

    def _figure(self, kind: str, where: str, entry: dict, default: dict[str, object]) -> Figure:
        self.need(
            set(entry) <= {"value", *_TEXTS},
            where,
            "value, source, confidence, note",
            sorted(entry),
        )
        value = entry.get("value")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        self.need(is_number and value > 0, where, "a positive number", value)
        least, most = RANGES[where.rsplit(".", 1)[-1]]
        self.need(least <= value <= most, where, f"a number in {least:g} .. {most:g}", value)
        full = {"note": "", **default, **entry}
        self.need(
            all(isinstance(full[name], str) for name in _TEXTS),
            where,
            "source, confidence and note as text",
            full,
        )
        confidence = full["confidence"]
        self.need(
            confidence in CONFIDENCE, where, f"a confidence of {', '.join(CONFIDENCE)}", confidence
        )
        source = full["source"]
        self.need(
            source in self.sources or source == self.path,
            where,
            f"a source of {', '.join(self.sources)}",
            source,
        )
        named = self.sources.get(source, {"title": source, "date": "undated"})
        return Figure(
            float(value),
            kind,
            named["title"],
            named["date"],
            confidence,
            full["note"],
            named.get("url", ""),
        )
