"""The result file, JSON schema 2, and its validation.

{"schema": 2, "machine": {...}, "limits": {...}, "results": [{
    "op":     a stem of `names.OPS`, such as block_attention
    "case":   "B=8 L=8192 P=3": key=value, separated by spaces
    "impl":   a backend of blockdraft ("reference", "cpp", ...) or a peer; "is_peer" says which
    "dtype":  bfloat16 | float16 | float32
    "threads": of the CPU, 0 on a GPU
    "ms":     median, "mad": median absolute deviation; both null if nothing was timed
    "flops", "bytes", "exps" (exponentials): the least that the case needs
    "of_limit": limit time / ms
    "vs_best_peer": ms of the fastest peer / ms (above 1: faster than every peer), null without a
              timed peer
    "checked": whether the output agreed with the reference; otherwise nothing was timed
    optional: "prepare_ms", conversion of the inputs to the implementation's layout, not part of
              ms; "error", why nothing was timed; "vector_flops", the share of flops that are not
              products; "tiled", as in `roofline.costs.Cost`}]}

Files of schema 1, which had short op names and "rows" in place of "results", are read as well.
"""

import json
import math
import platform
import re
from pathlib import Path
from typing import Any

from .. import native
from .names import OPS, stem

SCHEMA = 2
_NUMBER, _NULL = (int, float), type(None)
_FIELDS = {
    "op": str,
    "case": str,
    "impl": str,
    "is_peer": bool,
    "dtype": str,
    "threads": int,
    "ms": (*_NUMBER, _NULL),
    "mad": (*_NUMBER, _NULL),
    "flops": _NUMBER,
    "bytes": _NUMBER,
    "exps": _NUMBER,
    "of_limit": (*_NUMBER, _NULL),
    "vs_best_peer": (*_NUMBER, _NULL),
    "checked": bool,
}
_OPTIONAL = {
    "prepare_ms": (*_NUMBER, _NULL),
    "error": (str, _NULL),
    "vector_flops": (*_NUMBER, _NULL),
    "tiled": (*_NUMBER, _NULL),
}
_DTYPES = ("bfloat16", "float16", "float32")
_LIMITS = ("threads", "read_bytes_per_s", "flops_per_s", "bf16_flops_per_s", "exps_per_s")


def machine(device: str) -> dict:
    import torch

    name = torch.cuda.get_device_name() if device != "cpu" else _cpu_name()
    return {
        "device": name,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    """With the instructions that are used, which decide what can be reached."""
    try:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        name = platform.processor() or platform.machine()
    try:
        return f"{name}, {native.load('_probe').instructions()}"
    except ImportError:
        return name


def _need(ok: Any, where: str, expected: str, got: Any) -> None:
    if not ok:
        raise ValueError(f"bench results: {where}: expected {expected}, got {got!r}")


def validate(data: Any) -> dict:
    """Returns the data, or raises a ValueError that says what is wrong."""
    _need(isinstance(data, dict), "file", "an object", data)
    _need(data.get("schema") == SCHEMA, "schema", str(SCHEMA), data.get("schema"))
    for key in ("machine", "limits"):
        _need(isinstance(data.get(key), dict), key, "an object", data.get(key))
    for key in _LIMITS:
        value = data["limits"].get(key)
        _need(isinstance(value, _NUMBER), f"limits.{key}", "a number", value)
    _need(isinstance(data.get("results"), list), "results", "a list", data.get("results"))
    for i, result in enumerate(data["results"]):
        _validate_result(result, f"results[{i}]")
    return data


def _validate_result(result: Any, where: str) -> None:
    _need(isinstance(result, dict), where, "an object", result)
    for field in _FIELDS:
        _need(field in result, where, f"a field {field!r}", sorted(result))
    for field, kind in (_FIELDS | _OPTIONAL).items():
        value = result.get(field)
        plain = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        _need(plain or field not in result, f"{where}.{field}", "another type", value)
        finite = not isinstance(value, float) or math.isfinite(value)
        _need(finite, f"{where}.{field}", "a finite number", value)
    op, dtype, case = result["op"], result["dtype"], result["case"]
    _need(op in OPS, f"{where}.op", f"one of {', '.join(OPS)}", op)
    _need(dtype in _DTYPES, f"{where}.dtype", " or ".join(_DTYPES), dtype)
    pairs = re.fullmatch(r"\w+=\S+( \w+=\S+)*", case)
    _need(pairs, f"{where}.case", "space-separated key=value", case)
    ms, mad = result["ms"], result["mad"]
    timed = (ms is None) == (mad is None) and (ms is None or result["checked"])
    _need(timed, f"{where}.ms", "a time exactly for a checked, timed implementation", ms)
    _need(ms is None or ms > 0, f"{where}.ms", "more than 0", ms)


def _upgraded(data: Any) -> Any:
    """Converts data of schema 1 to schema 2; returns other data unchanged."""
    if not isinstance(data, dict) or data.get("schema") != 1:
        return data
    rows = data.get("rows")
    if isinstance(rows, list):
        rows = [{**row, "op": stem(row.get("op"))} for row in rows if isinstance(row, dict)]
    rest = {name: value for name, value in data.items() if name != "rows"}
    return {**rest, "schema": SCHEMA, "results": rows}


def load(path: str | Path) -> dict:
    try:
        return validate(_upgraded(json.loads(Path(path).read_text())))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"bench results: {path}: expected a JSON file, got {error}") from error


def save(path: str | Path, data: dict) -> None:
    Path(path).write_text(json.dumps(validate(data), indent=1) + "\n")


def key(result: dict) -> tuple[str, str, str, int, str]:
    """What identifies a result across files."""
    return result["op"], result["case"], result["dtype"], result["threads"], result["impl"]


def case_name(result: dict) -> str:
    return f"{result['op']} {result['case']} {result['dtype']}"
