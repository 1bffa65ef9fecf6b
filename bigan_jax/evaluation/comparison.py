"""The runs on one set of pictures, side by side: rows over seeds, paired differences, notes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from bigan_jax.evaluation import statistics
from bigan_jax.evaluation.paper_results import METRICS, MODELS, contradiction
from bigan_jax.evaluation.results import FinishedRun
from bigan_jax.evaluation.statistics import Difference, Spread, spread
from bigan_jax.evaluation.verdict import LABELS

# What may differ between the seeds of one row: none of it makes another detector.
_NOT_THE_DETECTOR = (
    *("seed", "data.dir", "data.tfds_dir", "data.stream", "data.split_seed"),
    *("checkpoint.", "vgg16.", "sweep."),
)
_SIZES = ("n_train", "n_calibration", "n_normal", "n_anomalous")
_LONGEST_VARIANT = 60

FIGURES = (
    *METRICS,
    *("average_precision", "native", "control", "calibration_score"),
    *("pixel_auroc", "pixel_average_precision", "aupro", "pixel_control"),
)


class ComparisonRow(NamedTuple):
    """One detector on one set of pictures, over its seeds; figures by the names in FIGURES."""

    label: str
    model: str
    ablations: tuple[str, ...]
    quick: bool
    variant: str
    runs: list[FinishedRun]
    figures: dict[str, Spread | None]
    wrong: list[str]  # why its figures cannot be true


class DatasetComparison(NamedTuple):
    """All rows on one set of pictures, the highest AUROC first.

    differences: by label, to the first row. ablations: by label, to each row of the same model with
    fewer of the same ablations, whose label comes first. A difference that could not be had is a
    sentence that says why.
    """

    dataset: str
    category: str
    rows: list[ComparisonRow]
    differences: dict[str, Difference | str]
    ablations: dict[tuple[str, str], Difference | str]
    notes: list[str]

    @property
    def title(self) -> str:
        """The pictures' name: dataset and category."""
        return f"{self.dataset}, {self.category}" if self.category else self.dataset

    @property
    def control(self) -> float | None:
        """The AUROC of the strongest training-free control."""
        known = [row.figures["control"].mean for row in self.rows if row.figures["control"]]
        return max(known, default=None)


def figures(evaluation: Mapping) -> dict[str, float | None]:
    """The numbers of an evaluation that tables show, flat."""
    controls = [v for v in evaluation["controls"].values() if v is not None]
    pixel = evaluation["pixel"] or {}
    raw = [(p or {}).get("auroc") for p in (evaluation["pixel_controls"] or {}).values()]
    normals = evaluation["calibration_scores"]
    return {
        **{name: evaluation[name] for name in (*METRICS, "average_precision")},
        "native": (evaluation["native"] or {}).get("auroc"),
        "control": max(controls, default=None),
        "calibration_score": normals and fmean(normals),
        "pixel_auroc": pixel.get("auroc"),
        "pixel_average_precision": pixel.get("average_precision"),
        "aupro": pixel.get("aupro"),
        # Its better sign, which older evaluations did not take.
        "pixel_control": max((max(v, 1 - v) for v in raw if v is not None), default=None),
    }


def compare_runs(runs: Sequence[FinishedRun]) -> list[DatasetComparison]:
    """The standings of each set of pictures (dataset and category) that the runs speak of."""
    by_set = defaultdict(list)
    for run in runs:
        by_set[run.evaluation["dataset"], run.evaluation["category"]].append(run)
    order = {name: i for i, name in enumerate(("brain", "brain_mixed", "mvtec", "plant"))}
    keys = sorted(by_set, key=lambda key: (order.get(key[0], len(order)), key))
    return [_standings(*key, by_set[key]) for key in keys]


def differing_fields(row: ComparisonRow, other: ComparisonRow) -> dict[str, tuple[str, str]]:
    """The config fields in which two rows differ, seed and places aside, with both values, each as
    JSON; of their first runs, and of fields that both have."""
    ours, theirs = (each.runs[0].fields for each in (row, other))
    differing = _fields_apart([ours, theirs])
    return {field: (ours[field], theirs[field]) for field in differing if field != "ablations"}


def _standings(dataset, category, runs):
    rows, notes = _rows(runs)
    notes += _notes(dataset, rows)
    ranked = [row for row in rows if row.figures["auroc"]]
    samples = statistics.bootstrap_samples(
        [run for row in ranked for run in row.runs] if ranked[1:] else []
    )
    best = {
        row.label: statistics.paired_difference(row.runs, ranked[0].runs, samples)
        for row in ranked[1:]
    }
    ablations = {
        (full.label, row.label): statistics.paired_difference(row.runs, full.runs, samples)
        for full in ranked
        for row in ranked
        if set(full.ablations) < set(row.ablations)
        and (row.model, row.quick, row.variant) == (full.model, full.quick, full.variant)
    }
    return DatasetComparison(dataset, category, rows, best, ablations, notes)


def _rows(runs):
    """Runs of one detector together; and notes on what was told apart or left out."""
    by_detector, notes = defaultdict(list), []
    for run in runs:
        said = run.evaluation
        by_detector[said["model"], tuple(said["ablations"]), said["quick"]].append(run)
    rows = []
    for (model, ablations, quick), same in by_detector.items():
        name = ", ".join([model, *ablations]) + " (quick)" * quick
        for variant, members in _variants(same, name, notes).items():
            members = _without_copies(members, notes)
            values = [figures(run.evaluation) for run in members]
            row = ComparisonRow(
                label=f"{name} [{variant}]" if variant else name,
                model=model,
                ablations=ablations,
                quick=quick,
                variant=variant,
                runs=members,
                figures={key: spread(v[key] for v in values) for key in FIGURES},
                wrong=[w for w in map(_wrong, members) if w],
            )
            rows.append(row)
    place = {name: i for i, name in enumerate(MODELS)}
    rows.sort(
        key=lambda row: (
            -(row.figures["auroc"] or Spread(-1.0, None, 0)).mean,
            place.get(row.model, len(place)),
            row.label,
        )
    )
    return rows, notes


def _variants(runs, name, notes):
    """The runs by the config fields in which they differ, seed and places aside."""
    differing = _fields_apart([run.fields for run in runs if run.fields])
    found = defaultdict(list)
    for run in runs:
        fields = (f"{field}={run.fields.get(field, '?')}" for field in differing)
        found[", ".join(fields)].append(run)
    if max(map(len, found)) <= _LONGEST_VARIANT:
        return dict(sorted(found.items()))
    numbered = {f"variant {i}": key for i, key in enumerate(sorted(found), 1)}
    notes += [f"{name}, {number}: {_shortened(key)}" for number, key in numbered.items()]
    return {number: found[key] for number, key in numbered.items()}


def _fields_apart(configs):
    """The fields that all configs have and in which they differ, seed and places aside."""
    shared = set(configs[0]).intersection(*configs[1:]) if configs else ()
    return [
        field
        for field in sorted(shared)
        if not field.startswith(_NOT_THE_DETECTOR) and len({c[field] for c in configs}) > 1
    ]


def _without_copies(runs, notes):
    first = {}
    for run in sorted(runs, key=lambda run: (run.evaluation["seed"], str(run.workdir))):
        key = run.evaluation["seed"], run.fields.get("data.split_seed")
        kept = first.setdefault(key, run)
        if kept is run:
            continue
        said = f"is the same run as {kept.workdir} (seed {key[0]})"
        if any(run.evaluation[name] != kept.evaluation[name] for name in _SIZES):
            said = (
                f"has other pictures than {kept.workdir} under one name (config.data.name gives "
                "each set its own)"
            )
        notes.append(f"{run.workdir} {said}: only the latter counts")
    return list(first.values())


def _wrong(run):
    """Why a run's figures cannot be true on its test set, by the check that the paper's get."""
    said = run.evaluation
    tested = said["n_normal"] + said["n_anomalous"]
    if not tested:
        return None
    prevalence = said["n_anomalous"] / tested
    reason = contradiction(said, (prevalence, prevalence))
    return f"{run.workdir}: {reason}" if reason else None


def _notes(dataset, rows):
    notes = []
    if dataset == "phantom":
        notes.append("phantom: drawn pictures, which say little of real ones")
    if quick := [row.label for row in rows if row.quick]:
        notes.append(f"by the modifier quick, for a first look: {_several(quick)}")
    if doubted := [row.label for row in rows if any(r.evaluation["doubted"] for r in row.runs)]:
        notes.append(
            "few pictures or groups (patients, camera blocks) calibrated, so that more of new "
            f"normal pictures may lie above the threshold than it promises: {_several(doubted)}"
        )
    for row in rows:
        for run in row.runs:
            if run.trained and run.trained[0] < run.trained[1]:
                done, wanted = run.trained
                notes.append(f"{run.workdir} is incomplete: trained {done} of {wanted} epochs")
        notes += [f"{row.label} cannot be true: {reason}" for reason in row.wrong]
    for name in (*_SIZES, "threshold_rule"):
        notes += _differing(name, rows, lambda run, name=name: str(run.evaluation[name]))
    fields = {field for row in rows for run in row.runs for field in run.fields}
    for field in sorted(
        f for f in fields if f.startswith("data.") and not f.endswith(("dir", "stream"))
    ):
        notes += _differing(field, rows, lambda run, field=field: run.fields.get(field))
    notes += _differing("number of seeds", rows)
    if missing := [row.label for row in rows if not row.figures["auroc"]]:
        notes.append(f"no AUROC, since the test lacks a class: {_several(missing)}")
    strongest = {
        name: value
        for row in rows
        for run in row.runs
        for name, value in run.evaluation["controls"].items()
        if value is not None and value == max(_known(run.evaluation["controls"]))
    }
    if strongest:
        named = _several([LABELS.get(name, name) for name in strongest])
        notes.append(f"strongest training-free control: {named}")
    return notes


def _known(controls):
    return [value for value in controls.values() if value is not None]


def _differing(
    name: str,
    rows: Iterable[ComparisonRow],
    of_run: Callable[[FinishedRun], str | None] | None = None,
) -> list[str]:
    """A note that a value is not the same in all runs, and where it is what; else none. By default
    of the number of runs."""
    found = defaultdict(list)
    for row in rows:
        values = map(of_run, row.runs) if of_run else [str(len(row.runs))]
        # All of a row together: its runs may have each their own split.
        known = {value for value in values if value is not None}
        if known:
            numbers_in_order = sorted(known, key=lambda value: (len(value), value))
            found[tuple(numbers_in_order)].append(row.label)
    if len(set().union(*found)) < 2:
        return []
    parts = [f"{_shortened(', '.join(v))} ({_several(labels)})" for v, labels in found.items()]
    return [f"{name} differs: " + "; ".join(sorted(parts))]


def _several(names, most=6):
    names = list(dict.fromkeys(names))
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _shortened(words, most=300):
    return words if len(words) <= most else words[: most - 1] + "…"
