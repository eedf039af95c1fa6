"""README's examples."""

import re
from pathlib import Path

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def _blocks(language: str) -> list[str]:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    return [block for found, block in FENCED.findall(text) if found == language]


def program() -> str:
    """Its Python, one block after the other."""
    return "\n".join(_blocks("python"))


def commands() -> list[str]:
    """Its shell lines, without comments, in order."""
    lines = (re.sub(r"\s+#.*", "", line) for block in _blocks("") for line in block.splitlines())
    return [line for line in lines if line.partition(" ")[0] in ("make", "pytest", "blockdraft")]
