"""`--mode=compare`: many runs, over models, pictures and seeds, beside the paper's tables."""

import glob
import math
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigan_jax.errors import UserError, printable
from bigan_jax.evaluation.comparison import DatasetComparison, compare_runs
from bigan_jax.evaluation.finished_run import FinishedRun, read_run
from bigan_jax.reports import html, tables
from bigan_jax.reports.comparison_tables import CSV_HEADER, comparison_tables, csv_rows, overview
from bigan_jax.reports.tables import Table
from bigan_jax.runtime.files import write_atomic

_LATEX_HEAD = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n\n"


class Comparison(NamedTuple):
    """What was compared, and what could not be: (folder, reason)."""

    standings: list[DatasetComparison]
    skipped: list[tuple[str, str]]
    unfinished: list[str]
    output: Path


class Dot(NamedTuple):
    """A row of the plot: AUROCs, and where they lie across it, in percent."""

    label: str
    mean: float
    at: float
    interval: tuple[float, float] | None  # bootstrap, ends averaged over seeds that all have one
    seeds: list[float]


class Plot(NamedTuple):
    """AUROC by model; ticks are (value, place)."""

    dots: list[Dot]
    control: float | None
    chance: float
    ticks: list[tuple[float, float]]


class Section(NamedTuple):
    """One set of pictures as the page shows it."""

    standings: DatasetComparison
    tables: list[Table]
    plot: Plot


def compare(workdirs: str | Path | Iterable[str | Path], output: str | Path) -> Comparison:
    """Compares finished runs and writes comparison.md, .csv, .tex and .html to a folder.

    workdirs: folders of runs, or patterns such as "runs/*".
    Broken runs are left out and told, in what is printed, written and returned.
    Raises UserError when no finished run is found.
    """
    patterns = [workdirs] if isinstance(workdirs, str | Path) else list(workdirs)
    runs, skipped, unfinished = _read(_folders(patterns))
    if not runs:
        reasons = [f"  {name}: {reason}" for name, reason in skipped]
        reasons += [f"  {name}: not finished" for name in unfinished]
        where = ", ".join(map(str, patterns))
        deeper = [f"{p}/{more}" for p in patterns for more in ("*", "*/*") if _finished(p, more)]
        hint = f"There are some one deeper: --workdirs='{deeper[0]}'" if deeper else ""
        raise UserError("\n".join(filter(None, [f"no finished run in {where}", *reasons, hint])))
    output = Path(output)
    comparison = Comparison(compare_runs(runs), skipped, unfinished, output)
    sections = [Section(s, comparison_tables(s), _plot(s)) for s in comparison.standings]
    above = overview(comparison.standings)
    every = [*above, *(table for section in sections for table in section.tables)]
    for name, content in (
        ("comparison.md", _markdown(comparison, above, sections)),
        ("comparison.csv", tables.csv_text(CSV_HEADER, csv_rows(comparison.standings))),
        ("comparison.tex", _LATEX_HEAD + "\n".join(map(tables.latex, every))),
        ("comparison.html", _html(comparison, above, sections)),
    ):
        write_atomic(output / name, content)
    _print(comparison)
    return comparison


def _finished(pattern, more):
    place = os.path.join(os.path.expanduser(pattern), more, "evaluation.json")
    return any(glob.iglob(place))


def _folders(patterns):
    """Every folder that the patterns name and that holds a run, or should."""
    found = {}
    for pattern in patterns:
        folder = Path(os.path.expanduser(pattern))
        named = [folder] if folder.is_dir() else glob.glob(str(folder), recursive=True)
        if not named:
            raise UserError(f"--workdirs={pattern}: there is no such folder")
        for name in sorted(named):
            folder = Path(name)
            holds_run = any((folder / f).exists() for f in ("config.json", "evaluation.json"))
            if folder.is_dir() and holds_run:
                found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _read(folders: Iterable[Path]) -> tuple[list[FinishedRun], list[tuple[str, str]], list[str]]:
    runs, skipped, unfinished = [], [], []
    for folder in folders:
        try:
            if not (folder / "evaluation.json").exists():
                unfinished.append(str(folder))
            else:
                runs.append(read_run(folder))
        except UserError as error:
            skipped.append((str(folder), str(error)))
    return runs, skipped, unfinished


def _plot(found: DatasetComparison) -> Plot:
    """Where everything lies on an axis that ends at 1 and begins at 0.5 or below."""
    known = [row for row in found.rows if row.values["auroc"]]
    seeds = [[run.result.auroc for run in row.runs] for row in known]
    seeds = [[value for value in values if value is not None] for values in seeds]
    ends = [[run.result.auroc_ci for run in row.runs] for row in known]
    ends = [intervals if all(intervals) else [] for intervals in ends]
    lowest = min([0.5, *chain(*seeds), *(low for low, _ in chain(*ends))])
    start = math.floor(lowest * 10) / 10

    def at(value):
        return 3 + 94 * (value - start) / (1 - start)

    dots = [
        Dot(
            row.label,
            row.values["auroc"].mean,
            at(row.values["auroc"].mean),
            tuple(at(float(end)) for end in np.mean(intervals, axis=0)) if intervals else None,
            [at(value) for value in values] if len(values) > 1 else [],
        )
        for row, values, intervals in zip(known, seeds, ends, strict=True)
    ]
    ticks = [i / 10 for i in range(round(start * 10), 11)]
    ticks = ticks[-1::-2][::-1] if len(ticks) > 6 else ticks
    control = None if found.baseline is None else at(found.baseline)
    return Plot(dots, control, at(0.5), [(tick, at(tick)) for tick in ticks])


def _remarks(comparison: Comparison) -> list[str]:
    skipped = [f"{name} was left out: {reason}" for name, reason in comparison.skipped]
    unfinished = [f"{name} is not finished" for name in comparison.unfinished]
    return list(map(printable, skipped + unfinished))


def _markdown(comparison, above, sections):
    parts = ["# Comparison", ""]
    parts += [f"- {tables.markdown_text(remark)}" for remark in _remarks(comparison)] + [""]
    parts += map(tables.markdown, above)
    for section in sections:
        parts += [f"## {tables.markdown_text(section.standings.title)}", ""]
        parts += map(tables.markdown, section.tables)
    return "\n".join(parts)


def _html(comparison, above, sections):
    return html.render_html(
        "comparison.html.jinja",
        filters={"cell": tables.format_cell, "spans": tables.spans},
        remarks=_remarks(comparison),
        overview=above,
        sections=sections,
    )


def _print(comparison):
    for found in comparison.standings:
        best = next((row for row in found.rows if row.values["auroc"]), None)
        if best:
            auroc, control = (
                tables.format_cell(best.values[name]) for name in ("auroc", "baseline")
            )
            print(
                f"{found.title}: {len(found.rows)} rows; best {best.label}, AUROC {auroc}; "
                f"strongest training-free baseline {control}"
            )
    for remark in _remarks(comparison):
        print(f"Warning: {remark}")
    print(f"Comparison: {comparison.output / 'comparison.html'}")
