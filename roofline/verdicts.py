"""What an emulator said of kernels: the file that `pytest --emulator PATH --verdicts FILE`
writes."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

FORMAT = 1


def fingerprint(instructions: Sequence[str]) -> str:
    """Of a kernel's code, without its labels."""
    code = "\n".join(op for op in instructions if not op.endswith(":"))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


class Verdicts:
    """tests: outcomes by architecture, kernel and fingerprint of its code, as [passed, failed]."""

    def __init__(self, tests: dict[str, dict[str, dict[str, list[int]]]] | None = None):
        self.tests = tests or {}

    def add(self, arch: str, kernel: str, code: str, passed: bool) -> None:
        counts = self.tests.setdefault(arch, {}).setdefault(kernel, {}).setdefault(code, [0, 0])
        counts[not passed] += 1

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"verdicts": FORMAT, "tests": self.tests}, indent=1) + "\n")

    def text(self, arch: str, kernel: str, code: str) -> str:
        """A kernel may be compiled for other constants than those of the tests."""
        known = self.tests.get(arch, {}).get(kernel, {})
        if code in known:
            passed, failed = known[code]
            return f"{failed} of {passed + failed} failed" if failed else f"passed {passed}"
        if not known:
            return "not run"
        passed, failed = map(sum, zip(*known.values(), strict=True))
        return (
            f"{failed} failed, other constants" if failed else f"passed {passed}, other constants"
        )


def load(path: str | Path) -> Verdicts:
    where = f"isa: --verdicts: {path}"
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: expected a file of `pytest --verdicts`, got {error}") from error
    if not isinstance(data, dict) or data.get("verdicts") != FORMAT:
        raise ValueError(f"{where}: expected a file of `pytest --verdicts`, got something else")
    return Verdicts(data["tests"])
