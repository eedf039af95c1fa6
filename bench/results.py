"""The result file, JSON schema 1, and its validation.

{"schema": 1, "machine": {...}, "limits": {...}, "rows": [{
    "op":     attention | cca | moe | accept | sample | commit | decode
    "case":   "B=8 L=8192 P=3": key=value, separated by spaces
    "impl":   a backend of blockdraft ("reference", "cpp", ...) or a peer; "is_peer": which of the
              two
    "dtype":  bfloat16 | float16 | float32; "threads": CPU threads, 0 on a GPU
    "ms":     median, "mad": median absolute deviation; both null if the row was not timed
    "flops", "bytes": what the case at least needs; "of_limit": limit time / ms "vs_best_peer": ms
    of the fastest peer / ms (above 1: faster than every peer), null without a timed peer "checked":
    the output agreed with the reference; a row that failed is never timed optional: "exps",
    exponentials; "prepare_ms", conversion of the inputs to the implementation's layout, not part of
    ms; "error", why a row was not timed}]}
"""

import json
import math
import platform
import re
from pathlib import Path

OPS = ("attention", "cca", "moe", "accept", "sample", "commit", "decode")
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
_OPTIONAL = {"exps": _NUMBER, "prepare_ms": (*_NUMBER, _NULL), "error": (str, _NULL)}
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
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def validate(data) -> dict:
    """The data itself, or a ValueError that says where it is off."""

    def need(ok, where, expected, got):
        if not ok:
            raise ValueError(f"bench results: {where}: expected {expected}, got {got!r}")

    need(isinstance(data, dict), "file", "an object", data)
    need(data.get("schema") == 1, "schema", "1", data.get("schema"))
    for key in ("machine", "limits"):
        need(isinstance(data.get(key), dict), key, "an object", data.get(key))
    for key in _LIMITS:
        need(
            isinstance(data["limits"].get(key), _NUMBER),
            f"limits.{key}",
            "a number",
            data["limits"].get(key),
        )
    need(isinstance(data.get("rows"), list), "rows", "a list", data.get("rows"))
    for i, row in enumerate(data["rows"]):
        need(isinstance(row, dict), f"rows[{i}]", "an object", row)
        for key in _FIELDS:
            need(key in row, f"rows[{i}]", f"a field {key!r}", sorted(row))
        for key, kind in (_FIELDS | _OPTIONAL).items():
            value = row.get(key)
            plain = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            need(plain or key not in row, f"rows[{i}].{key}", "another type", value)
            need(
                not isinstance(value, float) or math.isfinite(value),
                f"rows[{i}].{key}",
                "a finite number",
                value,
            )
        need(row["op"] in OPS, f"rows[{i}].op", f"one of {', '.join(OPS)}", row["op"])
        need(
            row["dtype"] in ("bfloat16", "float16", "float32"),
            f"rows[{i}].dtype",
            "bfloat16, float16 or float32",
            row["dtype"],
        )
        need(
            re.fullmatch(r"\w+=\S+( \w+=\S+)*", row["case"]),
            f"rows[{i}].case",
            "space-separated key=value",
            row["case"],
        )
        need(
            (row["ms"] is None) == (row["mad"] is None) and (row["ms"] is None or row["checked"]),
            f"rows[{i}].ms",
            "a time exactly for a checked, timed row",
            row["ms"],
        )
        need(row["ms"] is None or row["ms"] > 0, f"rows[{i}].ms", "more than 0", row["ms"])
    return data


def load(path) -> dict:
    try:
        return validate(json.loads(Path(path).read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"bench results: {path}: expected a JSON file, got {error}") from error


def save(path, data: dict) -> None:
    Path(path).write_text(json.dumps(validate(data), indent=1) + "\n")


def key(row: dict) -> tuple:
    """What identifies a row across files."""
    return row["op"], row["case"], row["dtype"], row["threads"], row["impl"]
