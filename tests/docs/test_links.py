"""Internal links lead to files and headings that exist."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT, name_of, without_blocks

LINK = re.compile(r"\]\(([^)\s]+)\)")
MENTION = re.compile(r"(?<![\w/.])docs/[\w./-]+\.\w+")
SOURCES = [ROOT / "mkdocs.yml", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
SOURCES += [
    p for folder in ("bigan_jax", "configs", "benchmarks", "scripts", "tests") for p in (ROOT / folder).rglob("*.py")
]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(page), re.M):
        text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[ ]+", "-", re.sub(r"[^\w\s-]", "", text)))
    return found


def problems(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(without_blocks(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            found.append(f"{link}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page(page):
    assert problems(page) == []


def test_checker_finds_broken_links(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`: c\n[1](#a-b-c) [2](#d) [3](page.md#a-b-c) [4](none.md) [5](https://x.y/z)\n```\n[6](no)\n```\n"
    )
    assert problems(page) == ["#d: no such heading", "none.md: no such file"]


def test_documents_that_code_mentions_exist():
    missing = []
    for path in (*SOURCES, *PAGES):
        names = set(MENTION.findall(path.read_text(encoding="utf-8")))
        missing += [f"{name_of(path)}: {name}" for name in names if not (ROOT / name).exists()]
    # The changelog names pages that moved.
    assert [entry for entry in missing if not entry.startswith("CHANGELOG.md")] == []


def test_every_page_is_in_the_navigation():
    def pages(entry):
        values = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else None
        return [entry] if values is None else [page for value in values for page in pages(value)]

    navigation = pages(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)["nav"])
    assert sorted(navigation) == sorted(str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md"))
