"""Compares runs on the same data set: rows over seeds, paired differences, and notes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from bigan_jax.evaluation import statistics
from bigan_jax.evaluation.finished_run import FinishedRun
from bigan_jax.evaluation.paper_results import MODELS, contradiction
from bigan_jax.evaluation.result import CALIBRATED, NATIVE, SCORE_NAMES, EvaluationResult, ScoreResult
from bigan_jax.evaluation.statistics import Difference, Spread, spread
from bigan_jax.evaluation.verdict import SCORE_TITLES, label, strongest
from bigan_jax.metrics.image import IMAGE_METRICS
from bigan_jax.metrics.pixel import PIXEL_METRICS

# Fields that may differ between the seeds of one row: they do not define the detector.
_NOT_THE_DETECTOR = (
    *("seed", "data.dir", "data.tfds_dir", "data.stream", "data.split_seed"),
    *("checkpoint.", "vgg16.", "sweep."),
)
_SIZES = ("n_train", "n_calibration", "n_normal", "n_anomalous")
_MAX_VARIANT = 60  # characters
_DATASET_ORDER = ("brain", "brain_mixed", "mvtec", "plant")

# Pixel metrics by their names among the values of a row.
PIXEL_VALUES = {f"pixel_{name}" if name in IMAGE_METRICS else name: name for name in PIXEL_METRICS}
_BY_SCORE = (*IMAGE_METRICS, "baseline", "calibration_score")
# Those of the comparison's score, and of both scores, as "paper_auroc".
VALUES = (
    *(*_BY_SCORE, *(f"{score}_{name}" for score in SCORE_NAMES for name in _BY_SCORE)),
    *("native", *PIXEL_VALUES, "pixel_baseline", "synthetic"),
)


class ComparisonRow(NamedTuple):
    """One detector on one data set, over its seeds."""

    label: str  # the row's title
    model: str
    ablations: tuple[str, ...]
    quick: bool
    variant: str
    runs: list[FinishedRun]  # one per seed
    values: dict[str, Spread | None]  # by the names in VALUES; None where no run has one
    inconsistencies: list[str]  # for each run with values that cannot all be right, the reason

    @property
    def group(self) -> str:
        """The group of the detector, one of GROUPS."""
        return self.runs[0].result.group


class DatasetComparison(NamedTuple):
    """All rows on one data set, by falling AUROC; a sentence in place of a difference says why there is none."""

    dataset: str
    category: str
    score: str  # that ranks: the one that decides in all runs, or the calibrated one
    rows: list[ComparisonRow]
    strongest_baseline: tuple[str, float] | None  # its name and mean AUROC over the runs
    differences: dict[str, Difference | str]  # of each row to the strongest baseline, by label
    # Of each row to that of its model with the next fewer of its ablations, by the labels of the latter and the former.
    ablations: dict[tuple[str, str], Difference | str]
    notes: list[str]

    @property
    def title(self) -> str:
        """The name of data set and category."""
        return f"{self.dataset}, {self.category}" if self.category else self.dataset

    @property
    def baseline(self) -> float | None:
        """The AUROC of the strongest training-free baseline."""
        return self.strongest_baseline and self.strongest_baseline[1]


def values(result: EvaluationResult, score: str) -> dict[str, float | None]:
    """Returns the values of a result that comparisons by this score show, by the names in VALUES."""
    by_score = {name: _score_values(of_score) for name, of_score in result.scores.items()}
    pixel_baseline = strongest({name: pixel.auroc for name, pixel in result.pixel_baselines.items()})
    return {
        **_score_values(result.by_score(score)),
        **{f"{of}_{name}": value for of, values in by_score.items() for name, value in values.items()},
        "native": by_score[NATIVE]["auroc"] if NATIVE in by_score else result.native and result.native.auroc,
        **{name: getattr(result.pixel, metric) for name, metric in PIXEL_VALUES.items()},
        "pixel_baseline": pixel_baseline and pixel_baseline[1],
    }


def _score_values(result: ScoreResult) -> dict[str, float | None]:
    baseline = strongest(result.baselines)
    mean = fmean(result.calibration_scores)
    return {**result.metrics, "baseline": baseline and baseline[1], "calibration_score": mean}


def compare_runs(
    runs: Sequence[FinishedRun], synthetic: Mapping[Path, Mapping[str, Mapping[str, float]]] | None = None
) -> list[DatasetComparison]:
    """Returns one comparison per data set and category, in the paper's order.

    `synthetic` has the results of `synthetic_aurocs` by the folders of runs; their means by the score that decides are
    shown.
    """
    by_dataset = defaultdict(list)
    for run in runs:
        by_dataset[run.result.dataset, run.result.category].append(run)
    order = {name: i for i, name in enumerate(_DATASET_ORDER)}
    keys = sorted(by_dataset, key=lambda key: (order.get(key[0], len(order)), key))
    return [_compare_on_dataset(name, category, by_dataset[name, category], synthetic or {}) for name, category in keys]


def differing_fields(row: ComparisonRow, other: ComparisonRow) -> dict[str, tuple[str, str]]:
    """Returns the shared config fields in which the first runs of two rows differ, with both values as JSON."""
    first, second = row.runs[0].fields, other.runs[0].fields
    return {f: (first[f], second[f]) for f in _differing_fields([first, second]) if f != "ablations"}


def _compare_on_dataset(dataset, category, runs, synthetic):
    names = {run.result.score_name for run in runs}
    score = names.pop() if len(names) == 1 else CALIBRATED
    rows, notes = _rows(runs, score, synthetic)
    baseline = _strongest_baseline(rows, score)
    notes += _notes(dataset, rows, score)
    notes += _baseline_note(baseline)
    ranked = [row for row in rows if row.values["auroc"]]
    compared = [run for row in ranked for run in row.runs]
    samples = statistics.bootstrap_samples(compared, score)
    baseline_samples = statistics.bootstrap_samples(compared, score, baseline[0]) if baseline else {}
    of_row = {row.label: [samples[run.workdir] for run in row.runs] for row in ranked}
    of_baseline = {row.label: [baseline_samples[run.workdir] for run in row.runs] for row in ranked if baseline}
    difference = statistics.paired_difference
    differences = {name: difference(of_row[name], of_baseline[name]) for name in of_baseline}
    ablations = {
        (full.label, row.label): difference(of_row[row.label], of_row[full.label])
        for row in ranked
        for full in _with_fewer_ablations(row, ranked)
    }
    return DatasetComparison(dataset, category, score, rows, baseline, differences, ablations, notes)


def _strongest_baseline(rows, score) -> tuple[str, float] | None:
    """Returns the baseline of the highest mean AUROC over all runs; the choice is the same for all of them."""
    aurocs = defaultdict(list)
    for result in (run.result for row in rows for run in row.runs):
        for name, value in result.by_score(score).baselines.items():
            if value is not None:
                aurocs[name].append(value)
    return strongest({name: fmean(values) for name, values in aurocs.items()})


def _with_fewer_ablations(row, rows):
    """Yields the rows that a row's ablations are subtracted from: of the same model, with as many of them as possible.

    With rows of no, one and two ablations, the row of two is compared with that of one: one change at a time.
    """

    def is_ablation_of(row, full):
        same = (row.model, row.quick, row.variant) == (full.model, full.quick, full.variant)
        return same and set(full.ablations) < set(row.ablations)

    fewer = [full for full in rows if is_ablation_of(row, full)]
    yield from (full for full in fewer if not any(is_ablation_of(other, full) for other in fewer))


def _rows(runs, score, synthetic):
    """Returns the rows, and notes on variants and on runs that are left out."""
    by_detector, notes = defaultdict(list), []
    for run in runs:
        by_detector[run.result.model, tuple(run.result.ablations), run.result.quick].append(run)
    rows = []
    for (model, ablations, quick), detector_runs in by_detector.items():
        name = ", ".join([model, *ablations]) + " (quick)" * quick
        for variant, variant_runs in _variants(detector_runs, name, notes).items():
            seeds = _without_duplicates(variant_runs, notes)
            run_values = [values(run.result, score) | _synthetic_value(run, score, synthetic) for run in seeds]
            row = ComparisonRow(
                label=f"{name} [{variant}]" if variant else name,
                model=model,
                ablations=ablations,
                quick=quick,
                variant=variant,
                runs=seeds,
                values={name: spread(v.get(name) for v in run_values) for name in VALUES},
                inconsistencies=[
                    reason for run in seeds for name in run.result.scores if (reason := _inconsistency(run, name))
                ],
            )
            rows.append(row)
    order = {name: i for i, name in enumerate(MODELS)}

    def rank(row):
        auroc = row.values["auroc"]
        return -auroc.mean if auroc else 1, order.get(row.model, len(order)), row.label

    return sorted(rows, key=rank), notes


def _synthetic_value(run, score, synthetic):
    """Returns the mean AUROC of synthetic defects, if it was measured."""
    aurocs = synthetic.get(run.workdir)
    return {"synthetic": aurocs and aurocs[run.result.name_of(score)]["mean"]}


def _variants(runs, name, notes):
    """Groups runs by the config fields in which they differ, without seeds and folders."""
    differing = _differing_fields([run.fields for run in runs if run.fields])
    variants = defaultdict(list)
    for run in runs:
        fields = (f"{field}={run.fields.get(field, '?')}" for field in differing)
        variants[", ".join(fields)].append(run)
    if max(map(len, variants)) <= _MAX_VARIANT:
        return dict(sorted(variants.items()))
    numbered = {f"variant {i}": key for i, key in enumerate(sorted(variants), 1)}
    notes += [f"{name}, {number}: {_shorten(key)}" for number, key in numbered.items()]
    return {number: variants[key] for number, key in numbered.items()}


def _differing_fields(configs):
    """Returns the fields that all configs have and that differ, without seeds and folders."""
    shared = sorted(set(configs[0]).intersection(*configs[1:])) if configs else ()
    fields = (field for field in shared if not field.startswith(_NOT_THE_DETECTOR))
    return [field for field in fields if len({config[field] for config in configs}) > 1]


def _without_duplicates(runs, notes):
    first = {}
    for run in sorted(runs, key=lambda run: (run.result.seed, str(run.workdir))):
        key = run.result.seed, run.fields.get("data.split_seed")
        kept = first.setdefault(key, run)
        if kept is run:
            continue
        reason = f"is the same run as {kept.workdir} (seed {key[0]})"
        if any(getattr(run.result, name) != getattr(kept.result, name) for name in _SIZES):
            hint = "(config.data.name gives each data set its own)"
            reason = f"has other images than {kept.workdir} under the same name {hint}"
        notes.append(f"{run.workdir} {reason}: only the latter counts")
    return list(first.values())


def _inconsistency(run, score):
    """Returns why a run's values of a score cannot all be right, by the check that the paper's values get."""
    tested = run.result.n_normal + run.result.n_anomalous
    if not tested:
        return None
    prevalence = run.result.n_anomalous / tested
    reason = contradiction(run.result.scores[score].metrics, (prevalence, prevalence))
    return f"{run.workdir}, {score}: {reason}" if reason else None


def _notes(dataset, rows, score):
    notes = []
    if dataset == "phantom":
        notes.append("phantom: synthetic images, which say little about real ones")
    if quick := [row.label for row in rows if row.quick]:
        notes.append(f"with the modifier quick, for a first look: {_join(quick)}")
    if sentences := dict.fromkeys(
        p.sentence for r in rows for run in r.runs if (p := run.result.by_score(score).promise)
    ):
        notes.append(f"thresholds: {_shorten(' '.join(sentences), 1000)}")
    notes += _other_ranking(rows, score)
    for row in rows:
        for run in row.runs:
            if run.total_epochs is not None and run.result.epochs < run.total_epochs:
                notes.append(f"{run.workdir} is incomplete: trained {run.result.epochs} of {run.total_epochs} epochs")
        notes += [f"{row.label} is inconsistent: {reason}" for reason in row.inconsistencies]
    for name in _SIZES:
        notes += _difference_note(name, rows, lambda run, name=name: str(getattr(run.result, name)))
    notes += _difference_note("threshold_rule", rows, lambda run: run.result.by_score(score).threshold_rule)
    fields = {field for row in rows for run in row.runs for field in run.fields}
    for field in sorted(f for f in fields if f.startswith("data.") and not f.endswith(("dir", "stream"))):
        notes += _difference_note(field, rows, lambda run, field=field: run.fields.get(field))
    notes += _difference_note("number of seeds", rows)
    if undefined := [row.label for row in rows if not row.values["auroc"]]:
        notes.append(f"no AUROC, since the test set lacks a class: {_join(undefined)}")
    return notes


def _baseline_note(baseline):
    if baseline:
        yield (
            f"strongest training-free baseline: {label(baseline[0])}, AUROC {baseline[1]:.3f}. It is the best of "
            "several by the test labels, which favors it over the models."
        )


def _other_ranking(rows, score):
    """Returns a note for each other score that ranks another detector first, of those that have it."""
    for other in SCORE_NAMES:
        ranked = [row for row in rows if row.values[f"{other}_auroc"]]
        by_other = sorted(ranked, key=lambda row: -row.values[f"{other}_auroc"].mean)
        if other != score and by_other and by_other[0] is not ranked[0]:
            ranking = (f"{row.label} {row.values[f'{other}_auroc'].mean:.3f}" for row in by_other)
            yield f"{SCORE_TITLES[other]} ranks differently: {_join(ranking)}"


def _difference_note(
    name: str, rows: Iterable[ComparisonRow], value_of: Callable[[FinishedRun], str | None] | None = None
) -> list[str]:
    """Returns a note if a value of the runs (by default, their number) differs between rows."""
    labels_by_values = defaultdict(list)
    for row in rows:
        row_values = map(value_of, row.runs) if value_of else [str(len(row.runs))]
        # The values of a row are compared together: its runs may have different splits.
        if known := {value for value in row_values if value is not None}:
            numbers_in_order = sorted(known, key=lambda value: (len(value), value))
            labels_by_values[tuple(numbers_in_order)].append(row.label)
    if len(set().union(*labels_by_values)) < 2:
        return []
    parts = [f"{_shorten(', '.join(v))} ({_join(names)})" for v, names in labels_by_values.items()]
    return [f"{name} differs: " + "; ".join(sorted(parts))]


def _join(names, max_names=6):
    names = list(dict.fromkeys(names))
    more = len(names) - max_names
    return ", ".join(names[:max_names]) + (f" and {more} more" if more > 0 else "")


def _shorten(text, max_length=300):
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
