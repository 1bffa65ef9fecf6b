"""The compare command: tables of runs over models, datasets and seeds, next to the paper's."""

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
from bigan_jax.evaluation.finished_run import read_run
from bigan_jax.reports import html, table_formats
from bigan_jax.reports.comparison_tables import CSV_HEADER, comparison_tables, csv_rows, overview
from bigan_jax.reports.table_formats import Table
from bigan_jax.runtime.files import write_atomic

_LATEX_HEAD = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n\n"


class Comparison(NamedTuple):
    datasets: list[DatasetComparison]
    skipped: list[tuple[str, str]]  # folder of each run that cannot be read, and the reason
    unfinished: list[str]  # folders of runs without an evaluation
    output: Path  # folder of the files

    def __repr__(self):
        n_runs = sum(len(row.runs) for dataset in self.datasets for row in dataset.rows)
        names = ", ".join(dataset.title for dataset in self.datasets)
        left_out = f"{len(self.skipped)} skipped, {len(self.unfinished)} unfinished"
        return f"Comparison({n_runs} runs on {names}; {left_out}; output={str(self.output)!r})"


class Dot(NamedTuple):
    """A row of the plot. Positions are in percent of the plot's width."""

    label: str
    mean: float  # AUROC over the seeds
    at: float  # position of the mean
    interval: tuple[float, float] | None  # positions of the mean limits; None if a seed has no bootstrap interval
    seeds: list[float]  # positions of the seeds, if there are several


class Plot(NamedTuple):
    """AUROCs of the detectors on one dataset."""

    dots: list[Dot]
    baseline: float | None  # position of the strongest training-free baseline
    chance: float  # position of AUROC 0.5
    ticks: list[tuple[float, float]]  # values and positions


class Section(NamedTuple):
    dataset: DatasetComparison
    tables: list[Table]
    plot: Plot


def compare(workdirs: str | Path | Iterable[str | Path], output: str | Path, synthetic: bool = False) -> Comparison:
    """Compares finished runs and writes comparison.md, .csv, .tex and .html to the output folder.

    Unreadable and unfinished runs are skipped; they are listed on stdout, in the files and in the result.

    Args:
      workdirs: folders of runs, or patterns such as "runs/*".
      output: folder of the files.
      synthetic: whether to score synthetic defects on the calibration images of each run, which needs its data folder.

    Raises:
      UserError: there is no such folder, or no finished run.
    """
    patterns = [workdirs] if isinstance(workdirs, str | Path) else list(workdirs)
    runs, skipped, unfinished = _read(_folders(patterns))
    if not runs:
        reasons = [f"  {name}: {reason}" for name, reason in skipped]
        reasons += [f"  {name}: not finished" for name in unfinished]
        folders = ", ".join(map(str, patterns))
        deeper = [f"{os.path.expanduser(pattern)}/{sub}" for pattern in patterns for sub in ("*", "*/*")]
        deeper = [pattern for pattern in deeper if glob.glob(f"{pattern}/evaluation.json")]
        hint = f"Subfolders have some: --workdirs='{deeper[0]}'" if deeper else ""
        lines = [f"There is no finished run in {folders}.", *reasons, hint]
        raise UserError("\n".join(filter(None, lines)))
    output = Path(output)
    comparison = Comparison(compare_runs(runs, _synthetic(runs) if synthetic else {}), skipped, unfinished, output)
    sections = [Section(d, comparison_tables(d), _plot(d)) for d in comparison.datasets]
    page = {"remarks": _remarks(comparison), "overview": overview(comparison.datasets), "sections": sections}
    all_tables = [*page["overview"], *(table for section in sections for table in section.tables)]
    filters = {"cell": table_formats.format_cell, "spans": table_formats.spans}
    for suffix, content in {
        "md": _markdown(**page),
        "csv": table_formats.csv_text(CSV_HEADER, csv_rows(comparison.datasets)),
        "tex": _LATEX_HEAD + "\n".join(map(table_formats.latex, all_tables)),
        "html": html.render_html("comparison.html.jinja", filters=filters, **page),
    }.items():
        write_atomic(output / f"comparison.{suffix}", content)
    _print(comparison)
    return comparison


def _folders(patterns):
    """Returns the folders of finished and unfinished runs that match the patterns."""
    folders = {}
    for pattern in patterns:
        folder = Path(os.path.expanduser(pattern))
        matches = [folder] if folder.is_dir() else glob.glob(str(folder), recursive=True)
        if not matches:
            raise UserError(f"--workdirs={pattern}: there is no such folder.")
        for name in sorted(matches):
            folder = Path(name)
            holds_run = any((folder / f).exists() for f in ("config.json", "evaluation.json"))
            if folder.is_dir() and holds_run:
                folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def _read(folders):
    """Returns the finished runs, the folders and errors of unreadable ones, and the folders of unfinished ones."""
    runs, skipped, unfinished = [], [], []
    for folder in folders:
        if not (folder / "evaluation.json").exists():
            unfinished.append(str(folder))
            continue
        try:
            runs.append(read_run(folder))
        except UserError as error:
            skipped.append((str(folder), str(error)))
    return runs, skipped, unfinished


def _synthetic(runs):
    """Returns the results of synthetic defects by the folders of the runs that can be measured."""
    from bigan_jax.commands.synthetic import measure_runs  # the import of JAX takes seconds

    measured = {}
    for workdir, aurocs in measure_runs(run.workdir for run in runs):
        if isinstance(aurocs, str):
            print(f"Warning: no synthetic defects for {printable(str(workdir))}: {printable(aurocs)}")
        else:
            measured[workdir] = aurocs
    return measured


def _plot(dataset: DatasetComparison) -> Plot:
    """Computes positions on an axis from 0.5, or less where an AUROC is lower, to 1."""
    known = [(row, auroc.mean) for row in dataset.rows if (auroc := row.values["auroc"])]
    seeds = [[v for run in row.runs if (v := run.result.by_score(dataset.score).auroc) is not None] for row, _ in known]
    limits = [[ci for run in row.runs if (ci := run.result.by_score(dataset.score).auroc_ci)] for row, _ in known]
    limits = [found if len(found) == len(row.runs) else [] for (row, _), found in zip(known, limits, strict=True)]
    lowest = min([0.5, *chain(*seeds), *(low for low, _ in chain(*limits))])
    start = math.floor(lowest * 10) / 10

    def position(value):
        return 3 + 94 * (float(value) - start) / (1 - start)

    dots = []
    for (row, mean), aurocs, intervals in zip(known, seeds, limits, strict=True):
        low, high = np.mean(intervals, axis=0) if intervals else (None, None)
        interval = None if low is None else (position(low), position(high))
        positions = [position(value) for value in aurocs] if len(aurocs) > 1 else []
        dots.append(Dot(row.label, mean, position(mean), interval, positions))
    ticks = [i / 10 for i in range(round(start * 10), 11)]
    ticks = ticks[-1::-2][::-1] if len(ticks) > 6 else ticks
    baseline = None if dataset.baseline is None else position(dataset.baseline)
    return Plot(dots, baseline, position(0.5), [(tick, position(tick)) for tick in ticks])


def _remarks(comparison):
    skipped = [f"{name} was skipped: {reason}" for name, reason in comparison.skipped]
    unfinished = [f"{name} is not finished" for name in comparison.unfinished]
    return list(map(printable, skipped + unfinished))


def _markdown(remarks, overview, sections):
    parts = ["# Comparison", "", *(f"- {table_formats.markdown_text(remark)}" for remark in remarks), ""]
    parts += map(table_formats.markdown, overview)
    for section in sections:
        parts += [f"## {table_formats.markdown_text(section.dataset.title)}", ""]
        parts += map(table_formats.markdown, section.tables)
    return "\n".join(parts)


def _print(comparison):
    for dataset in comparison.datasets:
        best = next((row for row in dataset.rows if row.values["auroc"]), None)
        if best:
            auroc, baseline = map(table_formats.format_cell, (best.values["auroc"], dataset.baseline))
            row = f"best {best.label}, AUROC {auroc}; strongest training-free baseline {baseline}"
            print(f"{dataset.title}: {len(dataset.rows)} rows; {row}")
    for remark in _remarks(comparison):
        print(f"Warning: {remark}")
    print(f"Comparison: {comparison.output / 'comparison.html'}")
