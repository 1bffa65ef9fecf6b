"""Tables of the stored results: detectors over seeds and splits, differences, and the paper's values next to ours."""

import hashlib
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bigan_jax.evaluation.paper_results import METRICS, MODELS, contradiction, feasible_prevalence, paper_table
from bigan_jax.evaluation.statistics import BootstrapSamples, Difference, Spread, paired_difference, spread
from bigan_jax.evaluation.verdict import GROUP_TITLES, label, strongest
from bigan_jax.metrics.bootstrap import group_resampling, resampled_metrics
from bigan_jax.metrics.image import IMAGE_METRICS, auroc
from bigan_jax.metrics.pixel import PIXEL_METRICS
from bigan_jax.reports.table_formats import Cell, Table

from . import runs
from .runs import Line, Row

DEFAULT, PAPER = "", "paper_"  # prefixes of columns
TITLES = {
    "mvtec-bottle": "bottle",
    "plant": "plant",
    "plant_color": "plant in color",
    "brain": "brain by patient",
    "brain_mixed": "brain_mixed",
}
_FEATURES = "features"  # a modifier that makes another detector, of pretrained features, and no ablation
_SEEDS = ("--seed=", "--data.split_seed=")
_OF_DATASET = ("--data.name=", "--data.channels=", "--data.image_size=")


class Detector(NamedTuple):
    """A detector on a dataset: runs that differ in seed and split only."""

    model: str
    ablations: tuple[str, ...]
    quick: bool
    variant: str  # flags that differ from the config
    rows: tuple[Row, ...]

    @property
    def group(self) -> str:
        """The group of the detector in tables."""
        return self.rows[0]["group"]

    @property
    def title(self) -> str:
        """The model and its ablations."""
        return ", ".join([self.model, *self.ablations])

    def spread(self, column: str) -> Spread | None:
        """Returns mean and standard deviation of a column of results.csv over the runs."""
        return spread(float(row[column]) if row[column] else None for row in self.rows)


def dataset_of(row: Row) -> str:
    """Returns the name of a row's dataset, a key of TITLES if it is one of the documented ones."""
    return f"{row['dataset']}-{row['category']}" if row["category"] else row["dataset"]


class Results:
    """All stored results."""

    def __init__(self, rows: Mapping[str, Row], lines: Mapping[str, Line]):
        """Takes the rows of results.csv and the lines of scores.jsonl.gz."""
        self.rows, self.lines = rows, lines
        self._resamplings, self._hashes = {}, {}  # of the test sets

    @cached_property
    def by_dataset(self) -> dict[str, list[Detector]]:
        """The detectors of each dataset, by falling mean AUROC of the score that decides."""
        groups = defaultdict(list)
        for row in self.rows.values():
            flags = [f for f in shlex.split(row["overrides"]) if not f.startswith((*_SEEDS, *_OF_DATASET))]
            modifiers = row["ablations"].split("+") if row["ablations"] else []
            model = f"{row['model']} ({_FEATURES})" if _FEATURES in modifiers else row["model"]
            ablations = tuple(name for name in modifiers if name != _FEATURES)
            key = dataset_of(row), model, ablations, row["quick"] == "true", " ".join(flags)
            groups[key].append(row)
        by_dataset = defaultdict(list)
        for (dataset, *fields), rows in groups.items():
            by_dataset[dataset].append(Detector(*fields, tuple(rows)))
        order = list(TITLES)
        names = sorted(by_dataset, key=lambda name: (order.index(name) if name in order else len(order), name))
        return {name: sorted(by_dataset[name], key=_rank) for name in names}

    def main_detectors(self, dataset: str) -> list[Detector]:
        """Returns one detector per model, without ablations: of several variants the one with the most runs."""
        best = {}
        for detector in self.by_dataset.get(dataset, ()):
            if not detector.ablations:
                kept = best.setdefault(detector.model, detector)
                if len(detector.rows) > len(kept.rows):
                    best[detector.model] = detector
        return list(best.values())

    def baseline(self, dataset: str, prefix: str = DEFAULT) -> tuple[str, Spread] | None:
        """Returns the training-free baseline with the highest mean AUROC over the splits, at the size of the models."""
        splits = {}
        for row in self.rows.values():
            if dataset_of(row) == dataset and row["paper_auroc"] and row["group"] != _FEATURES:
                splits.setdefault(row["split_seed"], row)
        values = {
            name: spread(float(text) if (text := row[f"{prefix}baseline_{name}"]) else None for row in splits.values())
            for name in runs._BASELINES
        }
        best = strongest({name: value and value.mean for name, value in values.items()})
        return best and (best[0], values[best[0]])

    def difference(self, first: Detector, second: Detector | str, score: str = "") -> Difference | str:
        """Returns the paired difference of two detectors, or of a detector and a baseline, by one score."""
        others = second.rows if isinstance(second, Detector) else first.rows
        baseline = second if isinstance(second, str) else None
        several = len({self._test_hash(row) for row in first.rows}) > 1  # intervals are of one test set only
        return paired_difference(
            [self._samples(row, score, None, several) for row in first.rows],
            [self._samples(row, score, baseline, several) for row in others],
        )

    def _test_hash(self, row):
        name = self.lines[row["run"]]["test"]
        if name not in self._hashes:
            content = [self.lines[name][field] for field in ("path", "label", "group")]
            self._hashes[name] = hashlib.sha256(repr(content).encode()).hexdigest()
        return self._hashes[name]

    def _samples(self, row, score, baseline, several) -> BootstrapSamples:
        line = self.lines[row["run"]]
        test, score, test_hash = self.lines[line["test"]], score or row["score"], self._test_hash(row)
        if baseline is None:
            values = line["scores"][score if score in line["scores"] else row["score"]]
        else:
            values = test["baselines"]["calibrated" if score == "native" else score][baseline]
        values, labels = np.array(values), np.array(test["label"], bool)
        samples = None
        if not several:
            if test_hash not in self._resamplings:
                self._resamplings[test_hash] = group_resampling(labels, np.array(test["group"], object))
            if resampling := self._resamplings[test_hash]:
                metric = {"auroc": IMAGE_METRICS["auroc"]}
                samples = resampled_metrics(metric, values, labels, 0.0, resampling)["auroc"]
        return BootstrapSamples(test_hash, auroc(values, labels), samples)


def _rank(detector: Detector):
    value = detector.spread("auroc")
    return -(value.mean if value else -1), detector.title, detector.variant


def overview(results: Results, prefix: str = DEFAULT) -> str:
    """Returns the table of AUROC by model and dataset, with the best of each column in bold."""
    columns = [name for name in TITLES if results.main_detectors(name)]
    cells: dict[str, dict[str, Spread]] = defaultdict(dict)
    groups = {}
    for name in columns:
        for detector in results.main_detectors(name):
            value = detector.spread(f"{prefix}auroc")
            if value and not (prefix and detector.group == _FEATURES):  # whose error is not that of images
                cells[detector.model][name] = value
                groups[detector.model] = detector.group
    best = {name: _best([cells[m][name] for m in cells if name in cells[m]]) for name in columns}
    usual = usual_runs(results)
    order = list(MODELS)
    lines = [["model", *(TITLES[name] for name in columns)], ["---", *["---:"] * len(columns)]]
    for group, title in GROUP_TITLES.items():
        models = sorted(
            (m for m in cells if groups[m] == group), key=lambda m: (order.index(m) if m in order else len(order), m)
        )
        if models:
            lines.append([f"**{title}**", *[""] * len(columns)])
        for model in models:
            row = (_cell(cells[model].get(name), best[name], usual) for name in columns)
            lines.append([code_free(model), *row])
    baselines = [results.baseline(name, prefix) for name in columns]
    lines.append(["*best training-free baseline*", *(_cell(b and b[1], None, usual) for b in baselines)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _best(values: Sequence[Spread]) -> Spread:
    """Returns the highest of the values over the most runs: fewer splits may be easier ones."""
    most = max((value.n for value in values), default=0)
    return max((value for value in values if value.n == most), default=Spread(2, None, 0))


def usual_runs(results: Results) -> int:
    """Returns the most common number of runs of a detector on a dataset."""
    counts = [len(d.rows) for name in TITLES for d in results.main_detectors(name)]
    return max(set(counts), key=counts.count, default=0)


def code_free(name: str) -> str:
    """Returns a name with its underscores escaped for Markdown."""
    return name.replace("_", r"\_")


class Gains(NamedTuple):
    """The default score against the paper's, over pairs of a model of the paper and a dataset."""

    mean: float  # difference of the mean AUROC
    better: int  # pairs in which the default score is higher
    below_baseline: int  # pairs in which the strongest training-free baseline is higher, by the default score
    n: int


def gains(results: Results) -> Gains:
    """Compares both scores of the paper's ten models on all datasets."""
    differences, below = [], 0
    for name in TITLES:
        baseline = results.baseline(name)
        for detector in results.main_detectors(name):
            default, paper = detector.spread("auroc"), detector.spread("paper_auroc")
            if detector.model in MODELS and default and paper and baseline:
                differences.append(default.mean - paper.mean)
                own = detector.spread(f"baseline_{baseline[0]}")  # on the detector's splits
                below += own is not None and default.mean < own.mean
    return Gains(float(np.mean(differences)), int(np.sum(np.array(differences) > 0)), below, len(differences))


def is_best_model(results: Results, model: str, dataset: str) -> bool:
    """Returns whether a model's mean is above that of each other model of the paper on the other's splits."""
    detectors = {d.model: d for d in results.main_detectors(dataset) if d.model in MODELS}
    own = {row["seed"]: float(row["auroc"]) for row in detectors[model].rows}
    for other in (d for name, d in detectors.items() if name != model):
        theirs = {row["seed"]: float(row["auroc"]) for row in other.rows if row["seed"] in own}
        if theirs and np.mean([*theirs.values()]) >= np.mean([own[seed] for seed in theirs]):
            return False
    return True


class Range(NamedTuple):
    """The AUROC of a group of detectors on a dataset."""

    lowest: float  # by the default score
    highest: float
    paper_mean: float  # by the paper's score


def range_of(results: Results, dataset: str, group: str) -> Range:
    """Returns the range of the mean AUROC over the detectors of a group."""
    detectors = [d for d in results.main_detectors(dataset) if d.group == group]
    default, paper = ([v.mean for d in detectors if (v := d.spread(c))] for c in ("auroc", "paper_auroc"))
    return Range(min(default), max(default), float(np.mean(paper)))


def _cell(value: Spread | None, best: Spread | None, usual: int) -> str:
    if value is None:
        return "–"
    mean = f"{value.mean:.3f}"
    mean = f"**{mean}**" if best and value.n == best.n and value.mean >= best.mean - 5e-4 else mean
    std = "" if value.std is None else f" ± {value.std:.3f}"
    text = mean + std + (f" ({value.n})" if value.n != usual else "")
    return text.replace(" ", "\N{NO-BREAK SPACE}")  # tables scroll on a phone


def metric_table(title: str, detectors: Sequence[Detector], columns: Mapping[str, str], notes=()) -> Table:
    """Returns a table of the detectors with these columns of results.csv, by heading."""
    known = [d for d in detectors if any(d.spread(column) for column in columns)]
    order = list(GROUP_TITLES)
    ranked = sorted(known, key=lambda d: order.index(d.group))
    groups = [d.group for d in ranked]
    headings = {groups.index(group): text for group, text in GROUP_TITLES.items() if group in groups}
    names = variant_names(ranked)
    rows = [[n, len(d.rows), *(d.spread(c) for c in columns)] for n, d in zip(names, ranked, strict=True)]
    heads = [("", "model"), ("", "runs"), *(("", heading) for heading in columns.values())]
    return Table(title, heads, rows, notes, headings)


def variant_names(detectors: Sequence[Detector]) -> list[str]:
    """Returns a title for each detector, with its flags where another one has the same title."""
    titles = [d.title for d in detectors]
    return [f"{d.title} [{d.variant or 'defaults'}]" if titles.count(d.title) > 1 else d.title for d in detectors]


def image_metrics_table(title: str, detectors: Sequence[Detector], prefix: str) -> Table:
    """Returns the table of all image metrics by one score."""
    return metric_table(title, detectors, {prefix + name: metric.title for name, metric in IMAGE_METRICS.items()})


def pixel_table(detectors: Sequence[Detector]) -> Table:
    """Returns the table of the pixel metrics, and of raw intensity as a baseline."""
    columns = {f"pixel_{name}": metric.title for name, metric in PIXEL_METRICS.items()}
    columns |= {"pixel_dice": "Dice at the pixel threshold", "pixel_raw_intensity_auroc": "AUROC of raw intensity"}
    return metric_table("Localization, by pixel", detectors, columns)


def baseline_table(results: Results, dataset: str) -> Table:
    """Returns the AUROC of each training-free baseline by both scores, over the splits."""
    rows = {}
    for row in results.rows.values():
        if dataset_of(row) == dataset and row["paper_auroc"] and row["group"] != _FEATURES:
            rows.setdefault(row["split_seed"], row)
    cells: list[list[Cell]] = [
        [label(name), *(spread(float(t) if (t := r[f"{p}baseline_{name}"]) else None for r in rows.values()) for p in
         (DEFAULT, PAPER))]
        for name in runs._BASELINES
    ]  # fmt: skip
    return Table("Training-free baselines", [("", "baseline"), ("", "default score"), ("", "paper's score")], cells)


def difference_table(results: Results, dataset: str) -> Table | None:
    """Returns the paired differences of all detectors from the strongest baseline, by the score that decides."""
    best = results.baseline(dataset)
    if best is None:
        return None
    detectors = results.main_detectors(dataset)
    rows = [[d.title, results.difference(d, best[0])] for d in detectors]
    notes = [
        f"The baseline is the strongest on this dataset, by its test labels: {label(best[0])}. It has the image size "
        "of the detector.",
        "In parentheses: the 95 % interval of a paired bootstrap over the test images. Over several splits: the mean ± "
        "standard deviation of the difference on each split.",
    ]
    return Table("Differences from the strongest baseline", [("", "model"), ("", "AUROC minus baseline")], rows, notes)


def ablations(results: Results, datasets: Iterable[str] = tuple(TITLES)) -> Table | None:
    """Returns one row per dataset and change: the ablated detector minus the one without this change, by both scores.

    Of a detector with several ablations, the change is the last one that another detector lacks: one at a time.
    """
    rows = []
    for dataset in datasets:
        detectors = results.by_dataset.get(dataset, ())
        for detector in detectors:
            for full in detectors:
                changed = set(detector.ablations) - set(full.ablations)
                same = (full.model, full.quick, full.variant) == (detector.model, detector.quick, detector.variant)
                if same and len(changed) == 1 and set(full.ablations) < set(detector.ablations):
                    both = (results.difference(detector, full, score) for score in ("", "paper"))
                    rows.append([TITLES.get(dataset, dataset), changed.pop(), full.title, len(detector.rows), *both])
    if not rows:
        return None
    columns = [("", h) for h in ("dataset", "change", "of", "runs", "AUROC, default score", "AUROC, paper's score")]
    return Table("Ablations", columns, rows)


def _paper_table(dataset):
    name, _, category = dataset.partition("-")
    return paper_table(name, category)


def published_overview(results: Results) -> str:
    """Returns the AUROC of the paper's Tables I to III next to ours by the paper's score."""
    pairs = {"brain": "brain", "mvtec-bottle": "bottle", "plant": "plant"}
    tables = {name: _paper_table(name) for name in pairs}
    ours = {name: {d.model: d for d in results.main_detectors(name)} for name in pairs}
    heads = [f"{title}, {side}" for title in pairs.values() for side in ("paper", "ours")]
    lines = [["model", *heads], ["---", *["---:"] * len(heads)]]
    for model, title in MODELS.items():
        line = [title]
        for name, table in tables.items():
            values = dict(zip(METRICS, table.rows[model], strict=True))
            measured = ours[name][model].spread("paper_auroc") if model in ours[name] else None
            line += [f"{values['auroc']:.3f}{' †' * bool(contradiction(values))}", f"{measured.mean:.3f}" if measured
                     else "–"]  # fmt: skip
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inconsistent_rows() -> tuple[int, int]:
    """Returns how many rows of the paper's tables no confusion matrix can give, and the number of rows."""
    tables = [paper_table("brain", ""), paper_table("mvtec", "bottle"), paper_table("plant", "")]
    rows = [dict(zip(METRICS, row, strict=True)) for table in tables if table for row in table.rows.values()]
    return sum(contradiction(row) is not None for row in rows), len(rows)


def published_table(results: Results, dataset: str) -> Table | None:
    """Returns all metrics of the paper's table for a dataset next to ours by the paper's score."""
    table = _paper_table(dataset)
    if table is None:
        return None
    ours = {d.model: d for d in results.main_detectors(dataset)}
    columns = [
        ("", "model"),
        *((IMAGE_METRICS[m].title, s) for m in METRICS for s in ("ours", "paper")),
        ("", "prevalence"),
    ]
    rows, notes = [], []
    for model, values in table.rows.items():
        published: dict[str, float | None] = dict(zip(METRICS, values, strict=True))
        reason = contradiction(published)
        notes += [f"Published row of {MODELS[model]}: {reason}"] * bool(reason)
        feasible = None if reason else feasible_prevalence(published)
        measured = [ours[model].spread(f"paper_{m}") if model in ours else None for m in METRICS]
        means = [value and value.mean for value in measured]
        cells = [cell for pair in zip(means, values, strict=True) for cell in pair]
        prevalence = " to ".join(f"{p:.3f}" for p in feasible) if feasible else None
        rows.append([MODELS[model] + " †" * bool(reason), *cells, prevalence])
    notes = [
        "Prevalence: the shares of anomalous test images at which a published row is possible. †: no confusion matrix "
        "gives the row, for the reason below.",
        *notes,
    ]
    return Table(f"Next to the paper's Table {table.number} ({table.title})", columns, rows, notes)
