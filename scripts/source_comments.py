"""Comments of assignments and fields in Python source."""

import ast
import io
import tokenize
from collections.abc import Iterable


def assignment_comments(source: str, nodes: Iterable[ast.stmt] | None = None) -> dict[str, str]:
    """Returns the comment of each assignment by its target, such as "config.data.dir"; "" where there is none.

    The comment is at the end of the assignment's last line, or fills the lines directly above it.

    Args:
      source: Python code.
      nodes: the statements to look at; by default all.
    """
    tree = ast.parse(source)
    trailing, whole = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            kind = whole if not source.splitlines()[line - 1][:column].strip() else trailing
            kind[line] = token.string.lstrip("# ")
    comments = {}
    for node in nodes if nodes is not None else ast.walk(tree):
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        else:
            continue
        comment = trailing.get(node.end_lineno or 0) or _above(whole, node.lineno)
        comments.setdefault(ast.unparse(target), comment)  # later assignments compute another value
    return comments


def _above(whole: dict[int, str], line: int) -> str:
    lines = []
    while (line := line - 1) in whole:
        lines.insert(0, whole[line])
    return " ".join(lines)


def markdown_cell(text: str) -> str:
    """Returns a comment as a cell of a Markdown table: a sentence with characters of Markdown and HTML escaped."""
    text = text[:1].upper() + text[1:]
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("*", "\\*")):
        text = text.replace(character, escaped)
    return text


def table(header: list[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
