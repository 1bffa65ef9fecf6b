"""The tables of a comparison: results, paired differences, ablations, the paper's beside ours."""

from collections.abc import Iterator, Sequence

from bigan_jax.evaluation.comparison import (
    FIGURES,
    ComparisonRow,
    DatasetComparison,
    differing_fields,
)
from bigan_jax.evaluation.paper_results import (
    METRICS,
    MODELS,
    contradiction,
    feasible_prevalence,
    paper_table,
)
from bigan_jax.evaluation.statistics import Difference, Spread
from bigan_jax.reports.tables import Table

_HEADINGS = {"auroc": "AUROC", "f1": "F1"}
_SEED_NOTE = "mean ± standard deviation over seeds, with their splits where these differ"
_SCORE_NOTE = "all figures are of the common score, save those of the native score"
_CALIBRATION_NOTE = (
    "mean score of the calibration pictures, normal ones that trained nothing: lower is better "
    "reconstructed; to choose by it needs no labels, but what copies anything has a low one as well"
)
_INTERVAL_NOTE = (
    "In brackets the 95 % interval of a paired bootstrap: both are tested on the same pictures, "
    "resampled alike by group, seeds averaged. It speaks of other test pictures, not of other "
    "seeds. Where it holds 0, the difference may be chance."
)
_SPLITS_NOTE = (
    "Over several splits: the mean of the differences on each, and their standard deviation; tests "
    "of several splits share pictures, so that it is no interval."
)
_FIT_NOTE = (
    "Fits: the share of anomalous test pictures at which the paper's accuracy, precision and F1 "
    "follow from its recall and specificity, within rounding. †: the "
    "paper's row cannot be true, for the reason given below."
)
CSV_HEADER = (
    *("source", "dataset", "category", "model", "ablations", "quick", "variant", "seed"),
    *("metric", "value", "std", "n", "low", "high", "note"),
)


def comparison_tables(found: DatasetComparison) -> list[Table]:
    """All tables of one set of pictures; those without rows are left out."""
    parts = _differences, _ablations, _localization, _paper
    return [_results(found), *(table for part in parts for table in part(found))]


def _heading(metric):
    return _HEADINGS.get(metric, metric)


def _results(found):
    columns = [("", "model"), ("", "seeds"), ("AUROC", "score")]
    columns += [("AUROC", "native score"), ("AUROC", "strongest control")]
    columns += [("calibration", "mean score")]
    columns += [("at the threshold", _heading(name)) for name in METRICS[1:]]
    shown = ("auroc", "native", "control", "calibration_score", *METRICS[1:])
    rows = [
        [_marked(row), len(row.runs), *(_shown(name, row.figures[name]) for name in shown)]
        for row in found.rows
    ]
    notes = [_SEED_NOTE, _SCORE_NOTE]
    notes += [_CALIBRATION_NOTE] * any(row.figures["calibration_score"] for row in found.rows)
    return Table(f"Results on {found.title}", columns, rows, [*notes, *found.notes])


def _localization(found):
    shown = ("pixel_auroc", "pixel_average_precision", "aupro", "pixel_control")
    names = ("AUROC", "average precision", "AUPRO", "raw intensity's AUROC")
    columns = [("", "model"), ("", "seeds"), *(("pixels", name) for name in names)]
    rows = [
        [_marked(row), len(row.runs), *(_shown(name, row.figures[name]) for name in shown)]
        for row in found.rows
        if row.figures["pixel_auroc"]
    ]
    if rows:
        yield Table(f"Localization on {found.title}", columns, rows, [_SEED_NOTE])


def _shown(name: str, figure: Spread | None):
    """A control has no seed of its own, so its spread would say nothing."""
    return figure.mean if figure and name in ("control", "pixel_control") else figure


def _marked(row: ComparisonRow) -> str:
    return row.label + " †" * bool(row.wrong)


def _differences(found):
    if not found.differences:
        return
    best = next(row.label for row in found.rows if row.figures["auroc"])
    columns = [("", "model"), ("", "AUROC"), ("", "interval")]
    rows = [[label, *_explained(value)] for label, value in found.differences.items()]
    notes = _difference_notes(found.differences.values())
    yield Table(f"Differences to {best} on {found.title}", columns, rows, notes)


def _difference_notes(values):
    """What the differences mean, of the kinds that there are."""
    over_splits = {v.std is not None for v in values if isinstance(v, Difference)}
    return [_INTERVAL_NOTE] * (False in over_splits) + [_SPLITS_NOTE] * (True in over_splits)


def _explained(value: Difference | str):
    if isinstance(value, str):
        return None, value
    if value.interval is None:
        return value, f"over {value.splits} splits"
    low, high = value.interval
    return value, "may be chance" if low <= 0 <= high else "excludes 0"


def _ablations(found):
    by_label = {row.label: row for row in found.rows}
    others = [name for name in METRICS[1:]] + ["pixel_auroc"]
    for full in dict.fromkeys(full for full, _ in found.ablations):
        columns = [("", "variant"), ("", "seeds"), ("", "AUROC")]
        columns += [("", _heading(name).replace("_auroc", " AUROC")) for name in others]
        start = by_label[full]
        rows = [[full, len(start.runs), *(start.figures[name] for name in ("auroc", *others))]]
        values = [value for (of, _), value in found.ablations.items() if of == full]
        notes = [
            " ".join(
                [f"The first row is {full} itself, the others less it.", *_difference_notes(values)]
            )
        ]
        for (of, label), value in found.ablations.items():
            if of == full:
                row = by_label[label]
                if isinstance(value, str):
                    notes.append(f"{label}: no interval: {value}")
                    value = _less(row.figures["auroc"], start.figures["auroc"])
                fields = differing_fields(row, start).items()
                changes = (f"{field} {new}, not {old}" for field, (new, old) in fields)
                notes.append(f"{label}: {'; '.join(changes) or 'the same config'}")
                rest = [_less(row.figures[name], start.figures[name]) for name in others]
                rows.append([label, len(row.runs), value, *rest])
        yield Table(f"Ablations of {full} on {found.title}", columns, rows, notes)


def _less(ours: Spread | None, theirs: Spread | None) -> Difference | None:
    return Difference(ours.mean - theirs.mean) if ours and theirs else None


def _paper(found):
    """The paper's table in its layout and order, ours beside each figure."""
    paper = paper_table(found.dataset, found.category)
    if not paper:
        return
    columns = [("", "model")]
    columns += [(_heading(name), who) for name in METRICS for who in ("ours", "paper")]
    columns += [("paper", "fits")]
    rows, notes = [], [_FIT_NOTE]
    if found.dataset == "brain_mixed":
        notes.append("The paper does not say which brain set it used; the other one is brain.")
    for model, figures in paper.rows.items():
        said = dict(zip(METRICS, figures, strict=True))
        reason = contradiction(said)
        if reason:
            notes.append(f"The paper's {MODELS[model]}: {reason}")
        fits = "none" if reason else " to ".join(f"{p:.3f}" for p in feasible_prevalence(said))
        ours = [row for row in found.rows if row.model == model and not row.ablations]
        for row in ours or [None]:
            name = (
                MODELS[model] + (row.label.removeprefix(model) if row else "") + " †" * bool(reason)
            )
            pairs = [(row and row.figures[metric], said[metric]) for metric in METRICS]
            rows.append([name, *(cell for pair in pairs for cell in pair), fits])
    title = f"Table {paper.number} of the paper ({paper.title}) beside {found.title}"
    yield Table(title, columns, rows, notes)


def overview(found: Sequence[DatasetComparison]) -> list[Table]:
    """AUROC by model and set of pictures, where there are several sets."""
    if len(found) < 2:
        return []
    by_set = [{row.label: row.figures["auroc"] for row in each.rows} for each in found]
    place = {name: i for i, name in enumerate(MODELS)}
    order = {
        row.label: (place.get(row.model, len(place)), row.label)
        for each in found
        for row in each.rows
    }
    rows = [
        [label, *(each.get(label) for each in by_set)] for label in sorted(order, key=order.get)
    ]
    rows.append(["strongest training-free control", *(each.control for each in found)])
    columns = [("", "model"), *(("AUROC", each.title) for each in found)]
    return [Table("Overview", columns, rows, [_SEED_NOTE])]


def csv_rows(found: Sequence[DatasetComparison]) -> Iterator[list]:
    """Long form, a figure a line. source: mean, run, difference (to the best), ablation, paper."""
    for each in found:
        where = [each.dataset, each.category]
        by_label = {row.label: row for row in each.rows}
        for row in each.rows:
            who = [row.model, "+".join(row.ablations), str(row.quick).lower(), row.variant]
            for name in FIGURES:
                if value := row.figures[name]:
                    note = "cannot be true: " + "; ".join(row.wrong) if row.wrong else ""
                    yield ["mean", *where, *who, "", name, *value, "", "", note]
            for run in row.runs:
                ends = run.evaluation["auroc_ci"] or ("", "")
                seed = run.evaluation["seed"]
                for name in METRICS:
                    value = run.evaluation[name]
                    if value is not None:
                        interval = ends if name == "auroc" else ("", "")
                        note = str(run.workdir)
                        yield ["run", *where, *who, seed, name, value, "", 1, *interval, note]
        pairs = [("difference", label, value) for label, value in each.differences.items()]
        pairs += [("ablation", label, value) for (_, label), value in each.ablations.items()]
        for source, label, value in pairs:
            row = by_label[label]
            who = [row.model, "+".join(row.ablations), str(row.quick).lower(), row.variant]
            figures = ["", "", len(row.runs), "", "", value]
            if isinstance(value, Difference):
                ends = value.interval or ("", "")
                count = value.splits if value.std is not None else len(row.runs)
                figures = [value.value, value.std, count, *ends, ""]
            yield [source, *where, *who, "", "auroc", *figures]
        if paper := paper_table(each.dataset, each.category):
            for model, figures in paper.rows.items():
                reason = contradiction(dict(zip(METRICS, figures, strict=True))) or ""
                for name, value in zip(METRICS, figures, strict=True):
                    yield ["paper", *where, model, "", "", "", "", name, value, *[""] * 4, reason]
