"""The Markdown files of the repository and their parts."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md"])

_FENCE = re.compile(r"^( *)```([\w-]*)\n(.*?)^\1```", re.S | re.M)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    content: str


def name_of(page: Path) -> str:
    """Returns the path of a page in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    return [Block(page, language, content) for _, language, content in _FENCE.findall(page.read_text(encoding="utf-8"))]


def without_blocks(page: Path) -> str:
    """Returns the text of a page without fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.S)


def inline_code(page: Path) -> list[str]:
    """Returns the code spans of a page."""
    return re.findall(r"`([^`]+)`", without_blocks(page))
