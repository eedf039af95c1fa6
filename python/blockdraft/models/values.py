"""Values that come from files: whether they are what they should be, and how messages show them."""

import json
import reprlib
from pathlib import Path
from typing import Any


def brief(value: Any) -> str:
    """The repr of a value for an error message, cut to about a line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to print integers of several thousand digits
        return f"a very large {type(value).__name__}"


def is_whole(value: Any, least: float, most: float) -> bool:
    """Whether a value is an integer in least..most. True and False are not integers here."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float, most: float) -> bool:
    """Whether a value is a number in least..most. NaN is in no range."""
    return is_whole(value, least, most) or isinstance(value, float) and least <= value <= most


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a ValueError that names the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON file, got {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: expected a JSON file, got one nested too deeply") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    return raw
