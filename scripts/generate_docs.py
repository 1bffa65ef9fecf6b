"""Writes the generated parts of the documentation.

    python -m scripts.generate_docs

It writes the tables of config fields and of evaluation.json, the JSON schema of evaluation.json, and the diagram of the
packages. `tests/docs/test_generated.py` fails when one of them is not up to date.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from scripts import architecture_page, config_page, evaluation_page

DOCS = Path(__file__).parents[1] / "docs"

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/config.md": config_page.text,
    "reference/evaluation-json.md": evaluation_page.text,
    "reference/evaluation.schema.json": evaluation_page.schema,
    "images/packages.svg": architecture_page.diagram,
    "development/packages.md": architecture_page.text,
}


def main() -> None:
    """Writes all files and prints the names of those that changed."""
    for name, generate in PAGES.items():
        path, content = DOCS / name, generate()
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
            print(f"updated {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
