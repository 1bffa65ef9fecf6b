"""Rank correlations with the AUROC of figures that need no label: which of them can choose a detector?"""

from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

from bigan_jax.evaluation.statistics import spread
from bigan_jax.reports.table_formats import Table

from .runs import Row
from .tables import TITLES, Results

# Figures without labels, with the text that tables show. Each is turned so that a higher value should be better.
FIGURES = {
    "synthetic": "AUROC of synthetic defects on calibration images",
    "mean": "low mean score of calibration images",
    "spread": "low relative spread of these scores",
    "agreement": "agreement of seeds (rank correlation of the scores of test images)",
}
_MIN_DETECTORS = 6  # for a rank correlation; on fewer it is mostly chance
_MIN_SHARED = 20  # test images of two seeds


class Cell(NamedTuple):
    """One run and score."""

    dataset: str
    split: str  # only runs on one split are ranked against each other
    model: str
    score: str
    auroc: float
    figures: dict[str, float]


class Correlations(NamedTuple):
    """Rank correlations of a figure with the AUROC on one dataset, averaged over splits."""

    spearman: float
    kendall: float
    regret: float  # the highest AUROC minus that of the detector with the highest figure
    splits: int


def cells(results: Results, synthetic: Mapping[tuple[str, str], Row], score: str) -> list[Cell]:
    """Returns all runs without ablations that have a score: "paper", or "" for the one that decides."""
    agreement = seed_agreement(results, score)
    found = []
    for dataset in TITLES:
        for row in (row for detector in results.main_detectors(dataset) for row in detector.rows):
            prefix = "paper_" if score == "paper" else ""
            if not row[f"{prefix}auroc"]:
                continue
            name = score or row["score"]
            figures = {}
            if (row["run"], name) in synthetic:
                figures["synthetic"] = float(synthetic[row["run"], name]["mean"])
            if (mean := row[f"{prefix}calibration_mean"]) and row["group"] == "reconstruction":
                figures["mean"] = -float(mean)  # other groups have other units
            if mean and (std := row[f"{prefix}calibration_std"]) and float(mean):
                figures["spread"] = -float(std) / abs(float(mean))
            if row["run"] in agreement:
                figures["agreement"] = agreement[row["run"]]
            auroc = float(row[f"{prefix}auroc"])
            found.append(Cell(dataset, row["split_seed"], row["model"], name, auroc, figures))
    return found


def seed_agreement(results: Results, score: str) -> dict[str, float]:
    """Returns for each run the mean rank correlation of its scores with those of other seeds, on shared images."""
    pairs = defaultdict(list)
    for dataset in TITLES:
        for detector in results.main_detectors(dataset):
            scores = {row["run"]: _image_scores(results, row, score) for row in detector.rows}
            for first, second in combinations([name for name in scores if scores[name]], 2):
                shared = sorted(scores[first].keys() & scores[second].keys())
                if len(shared) >= _MIN_SHARED:
                    value = spearmanr(*([scores[name][path] for path in shared] for name in (first, second))).statistic
                    if np.isfinite(value):
                        pairs[first].append(value)
                        pairs[second].append(value)
    return {name: float(np.mean(values)) for name, values in pairs.items()}


def _image_scores(results, row, score):
    line = results.lines[row["run"]]
    values = line["scores"].get(score or row["score"])
    return dict(zip(results.lines[line["test"]]["path"], values, strict=True)) if values else {}


def correlations(found: list[Cell], figure: str) -> dict[str, Correlations]:
    """Returns the correlations of a figure by dataset, where six detectors or more have it."""
    groups = defaultdict(list)
    for cell in found:
        if figure in cell.figures:
            groups[cell.dataset, cell.split].append(cell)
    by_dataset = defaultdict(list)
    for (dataset, _), together in groups.items():
        if len(together) >= _MIN_DETECTORS:
            values, aurocs = np.array([c.figures[figure] for c in together]), np.array([c.auroc for c in together])
            statistics = spearmanr(values, aurocs).statistic, kendalltau(values, aurocs).statistic
            if np.isfinite(statistics).all():
                by_dataset[dataset].append((*statistics, aurocs.max() - aurocs[values.argmax()]))
    return {
        name: Correlations(*map(float, np.mean(values, axis=0)), len(values)) for name, values in by_dataset.items()
    }


def _text(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}".replace("-", "−")


def table(results: Results, synthetic: Mapping[tuple[str, str], Row], score: str, title: str) -> Table:
    """Returns the table of all figures and datasets, and of the mean over the datasets."""
    found = cells(results, synthetic, score)
    by_figure = {figure: correlations(found, figure) for figure in FIGURES}
    names = [name for name in TITLES if any(name in values for values in by_figure.values())]
    rows = []
    for figure, text in FIGURES.items():
        values = by_figure[figure]
        rhos = [values[name].spearman if name in values else None for name in names]
        means = (spread(getattr(v, of) for v in values.values()) for of in ("spearman", "kendall", "regret"))
        rows.append([text, *map(_text, [*rhos, *(mean and mean.mean for mean in means)])])
    columns = [
        ("", "figure without labels"),
        *(("Spearman", TITLES[name]) for name in names),
        *(("mean", heading) for heading in ("Spearman", "Kendall", "AUROC lost")),
    ]
    runs = len({(cell.dataset, cell.split, cell.model) for cell in found})
    return Table(f"{title} ({runs} runs)", columns, rows)
