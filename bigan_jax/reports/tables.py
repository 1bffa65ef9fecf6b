"""Tables as data, and their writing as Markdown, LaTeX and CSV. Every cell is escaped.

A cell is a text, a number, a Spread, a Difference, or None for what does not apply.
"""

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bigan_jax.errors import printable
from bigan_jax.evaluation.statistics import Difference, Spread

Cell = str | float | Spread | Difference | None


class Table(NamedTuple):
    """Columns are (heading above several, heading); the first column names the row."""

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


def format_cell(cell: Cell) -> str:
    """A cell for people: three decimals, a dash for what does not apply."""
    match cell:
        case None:
            return "–"
        case str():
            return cell
        case Spread(mean, None, _):
            return f"{mean:.3f}"
        case Spread(mean, std, _):
            return f"{mean:.3f} ± {std:.3f}"
        case Difference(value, (low, high)):
            return f"{_signed(value)} ({_signed(low)} to {_signed(high)})"
        case Difference(value, None, None):
            return _signed(value)
        case Difference(value, None, std):
            return f"{_signed(value)} ± {std:.3f}"
        case int():
            return str(cell)
        case _:
            return f"{cell:.3f}"


def _signed(value):
    rounded = f"{value:+.3f}"
    return "0.000" if float(rounded) == 0 else rounded.replace("-", "−")


def spans(table: Table) -> list[tuple[str, int]]:
    """The upper headings, each with how many columns it stands over."""
    found = []
    for upper, _ in table.columns:
        if found and upper and found[-1][0] == upper:
            found[-1] = (upper, found[-1][1] + 1)
        else:
            found.append((upper, 1))
    return found


# Markdown, as GitHub reads it


def markdown(table: Table) -> str:
    """The table with its title as a heading of level 3 and its notes as a list."""
    headings = [" ".join(filter(None, column)) for column in table.columns]
    lines = [headings, *([format_cell(cell) for cell in row] for row in table.rows)]
    rows = [f"| {' | '.join(map(markdown_text, line))} |" for line in lines]
    rows.insert(1, "| --- |" + " ---: |" * (len(headings) - 1))
    notes = [f"- {markdown_text(note)}" for note in table.notes]
    blocks = [[f"### {markdown_text(table.title)}"], rows, notes]
    return "\n".join(line for block in blocks if block for line in [*block, ""])


def markdown_text(words: str) -> str:
    """Text in which nothing is markup, HTML included."""
    escaped = html.escape(printable(words), quote=False)
    return re.sub(r"([\\`*_\[\]|~$!])", r"\\\1", escaped).replace("://", ":&#47;&#47;")


# LaTeX, with booktabs

_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "{}$&#%_"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\char34{}",
        "`": r"\textasciigrave{}",
        "[": "{[}",  # after \\ it would open an argument
        "]": "{]}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "·": r"$\cdot$",
        "×": r"$\times$",
        "†": r"\dag{}",
    }
)


def latex(table: Table) -> str:
    """A table float: caption, booktabs rules, upper headings where there are any, notes below."""
    width = len(table.columns)
    headings = []
    if any(upper for upper, _ in table.columns):
        cells, rules, column = [], [], 1
        for upper, count in spans(table):
            cells.append(rf"\multicolumn{{{count}}}{{c}}{{{latex_text(upper)}}}")
            if upper:
                rules.append(rf"\cmidrule(lr){{{column}-{column + count - 1}}}")
            column += count
        headings = [" & ".join(cells) + r" \\", "".join(rules)]
    headings.append(" & ".join(latex_text(name) for _, name in table.columns) + r" \\")
    body = [
        " & ".join(latex_text(format_cell(cell)) for cell in row) + r" \\" for row in table.rows
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            *(r"\toprule", *headings, r"\midrule", *body, r"\bottomrule", r"\end{tabular}}"),
            *(rf"\par\smallskip{{\footnotesize {latex_text(note)}\par}}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def latex_text(words: str) -> str:
    """Text in which no character is a command; for LaTeX of 2020 on, which reads UTF-8."""
    return printable(words).translate(_LATEX)


# CSV


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """A CSV file. A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_harmless(cell) for cell in row])
    return stream.getvalue()


def _harmless(cell):
    if isinstance(cell, str):
        cell = printable(cell)
        return "'" + cell if cell.startswith(("=", "+", "-", "@")) else cell
    return f"{cell:.6g}" if isinstance(cell, float) else cell
