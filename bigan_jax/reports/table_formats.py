"""Tables as data, and their rendering as Markdown, LaTeX and CSV with every cell escaped."""

import csv
import html
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from bigan_jax.errors import printable
from bigan_jax.evaluation.statistics import Difference, Spread
from bigan_jax.runtime.files import csv_cell

Cell = str | float | Spread | Difference | None


class Table(NamedTuple):
    """A table: columns are (upper heading, heading); the first column names the row."""

    title: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    groups: Mapping[int, str] = MappingProxyType({})  # headings of groups of rows, by the index of a group's first row


def format_cell(value: object) -> str:
    """Formats a value for people.

    Spreads, differences, 0 and floats from 0.01 to 1, mostly ratios, get three decimals, other floats three significant
    digits. None and empty collections become a dash.
    """
    match value:
        case Spread(mean, std, _):
            return f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")
        case Difference(difference, (low, high)):
            return f"{_signed(difference)} ({_signed(low)} to {_signed(high)})"
        case Difference(difference, None, std):
            return _signed(difference) + ("" if std is None else f" ± {std:.3f}")
        case bool() | np.bool_():
            return "yes" if value else "no"
        case float() | np.floating():
            is_ratio = 0.01 <= abs(value) <= 1 or value == 0
            return f"{value:.3f}" if is_ratio else f"{value:.3g}"
        case Mapping():
            return ", ".join(f"{key}: {format_cell(item)}" for key, item in value.items()) or "–"
        case Sequence() if not isinstance(value, str):
            return ", ".join(map(format_cell, value)) or "–"
        case _:
            return "–" if value is None else str(value)


def _signed(value):
    rounded = f"{value:+.3f}"
    return "0.000" if float(rounded) == 0 else rounded.replace("-", "−")


def spans(table: Table) -> list[tuple[str, int]]:
    """Returns the upper headings, each with the number of columns that it spans."""
    groups = [(upper, len(list(group))) for upper, group in itertools.groupby(upper for upper, _ in table.columns)]
    return [span for upper, count in groups for span in ([(upper, count)] if upper else [("", 1)] * count)]


def markdown(table: Table) -> str:
    """Renders a table in GitHub's Markdown, with a heading of level 3 and its notes as a list."""
    headings = [" ".join(filter(None, column)) for column in table.columns]
    rows = [_markdown_row(map(markdown_text, headings)), "| --- |" + " ---: |" * (len(headings) - 1)]
    for index, row in enumerate(table.rows):
        if group := table.groups.get(index):
            rows.append(_markdown_row([f"**{markdown_text(group)}**", *[""] * (len(headings) - 1)]))
        rows.append(_markdown_row(markdown_text(format_cell(cell)) for cell in row))
    notes = [f"- {markdown_text(note)}" for note in table.notes]
    blocks = [[f"### {markdown_text(table.title)}"], rows, notes]
    return "\n".join(line for block in blocks if block for line in [*block, ""])


def _markdown_row(cells):
    return f"| {' | '.join(cells)} |"


def markdown_text(text: str) -> str:
    """Escapes a text so that nothing in it is markup, including HTML."""
    escaped = html.escape(printable(text), quote=False)
    return re.sub(r"([\\`*_\[\]|~$!])", r"\\\1", escaped).replace("://", ":&#47;&#47;")


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
        "[": "{[}",  # after \\ a bracket would open an argument
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
    """Renders a table float with its caption, booktabs rules, upper headings (if any) and notes."""
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
    body = []
    for index, row in enumerate(table.rows):
        if group := table.groups.get(index):
            body.append(rf"\multicolumn{{{len(table.columns)}}}{{l}}{{{latex_text(group)}}} \\")
        body.append(" & ".join(latex_text(format_cell(cell)) for cell in row) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            *(r"\toprule", *headings, r"\midrule", *body, r"\bottomrule", r"\end{tabular}}"),
            *(rf"\par\smallskip{{\footnotesize {latex_text(note)}\par}}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Escapes a text so that no character is a command. Requires LaTeX of 2020 or later (UTF-8)."""
    return printable(text).translate(_LATEX)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """Renders a CSV file. Text that a spreadsheet would run gets an apostrophe before it."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *([_csv_cell(cell) for cell in row] for row in rows)])
    return stream.getvalue()


def _csv_cell(cell):
    if isinstance(cell, str):
        return csv_cell(printable(cell))
    return f"{cell:.6g}" if isinstance(cell, float) else cell
