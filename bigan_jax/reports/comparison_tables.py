"""The tables of a comparison: results, differences, localization, ablations, published results."""

from collections.abc import Iterable, Iterator, Sequence

from bigan_jax.evaluation import paper_results
from bigan_jax.evaluation.comparison import PIXEL_VALUES, ComparisonRow, DatasetComparison, differing_fields
from bigan_jax.evaluation.paper_results import METRICS, MODELS
from bigan_jax.evaluation.statistics import Difference
from bigan_jax.evaluation.verdict import GROUP_TITLES, SCORE_TITLES, label
from bigan_jax.metrics.image import IMAGE_METRICS
from bigan_jax.metrics.pixel import PIXEL_METRICS
from bigan_jax.reports.table_formats import Cell, Table

_HEADINGS = {"auroc": "AUROC", "f1": "F1", "pixel_auroc": "pixel AUROC"}
_SEED_NOTE = "Mean ± standard deviation over seeds, including their splits where these differ."
_SCORE_NOTE = "Rows are ranked by {}, which also decides and scores the baseline."
_NOT_RANKED_NOTE = (
    "No test set has both normal and anomalous images: rows are in alphabetical order, and nothing says which is best."
)
_CALIBRATION_NOTE = (
    "Calibration: mean of the paper's score over the calibration images, which are normal and not trained on. Lower "
    "means better reconstruction. Selecting a model by it needs no labels, but a model that copies any input has a low "
    "score too."
)
_SYNTHETIC_NOTE = (
    "Synthetic defects: cracks, spots, fibers, stains, films and pasted patches, drawn on calibration images, against "
    "the same images without. Selecting a model by it needs no labels."
)
_INTERVAL_NOTE = (
    "In parentheses: the 95 % interval of a paired bootstrap. Both sides are tested on the same images, resampled "
    "alike by group, and seeds are averaged. The interval describes other test images, not other seeds. If it "
    "contains 0, the difference may be chance."
)
_BASELINE_NOTE = (
    "All models are compared with the same baseline. It is the best of several by the test labels, which favors it. No "
    "bootstrap sample chooses another one."
)
_SPLITS_NOTE = (
    "Over several splits: mean ± standard deviation of the differences on each split. This is not an interval, because "
    "the test sets of several splits share images."
)
_PUBLISHED_NOTE = (
    "Prevalence: the fractions of anomalous test images for which the published accuracy, precision and F1 follow from "
    "the published recall and specificity, within rounding. †: the published row is inconsistent, for the reason below."
)
CSV_HEADER = (
    *("source", "dataset", "category", "model", "ablations", "quick", "variant", "seed"),
    *("metric", "value", "std", "n", "low", "high", "note"),
)


def comparison_tables(comparison: DatasetComparison) -> list[Table]:
    """Returns all tables of one dataset, without those that have no rows."""
    optional = _localization, _differences, _ablations, _published
    return [_results(comparison), *(table for tables in optional for table in tables(comparison))]


def overview(comparisons: Sequence[DatasetComparison]) -> list[Table]:
    """Returns a table of AUROC by model and dataset; none for a single dataset."""
    if len(comparisons) < 2:
        return []
    aurocs = [{row.label: row.values["auroc"] for row in c.rows} for c in comparisons]
    rank: dict[str, int] = {name: i for i, name in enumerate(MODELS)}
    order = sorted({(rank.get(row.model, len(rank)), row.label) for c in comparisons for row in c.rows})
    rows = [[title, *(by_label.get(title) for by_label in aurocs)] for _, title in order]
    rows.append(["strongest training-free baseline", *(c.baseline for c in comparisons)])
    columns = [("", "model"), *(("AUROC", comparison.title) for comparison in comparisons)]
    return [Table("Overview", columns, rows, [_SEED_NOTE])]


def csv_rows(comparisons: Iterable[DatasetComparison]) -> Iterator[list]:
    """Yields all values in long form, one per row, with the columns of CSV_HEADER.

    The source is "mean" (over seeds), "run", "difference" (to the strongest baseline), "ablation" (difference to the
    model with the next fewer ablations) or "published".
    """
    for comparison in comparisons:
        dataset = [comparison.dataset, comparison.category]
        rows = {row.label: row for row in comparison.rows}
        names = {}
        for title, row in rows.items():
            names[title] = [row.model, "+".join(row.ablations), str(row.quick).lower(), row.variant]
            note = "inconsistent: " + "; ".join(row.inconsistencies) if row.inconsistencies else ""
            for metric, spread in row.values.items():
                if spread:
                    yield ["mean", *dataset, *names[title], "", metric, *spread, "", "", note]
            for run in row.runs:
                for score, result in run.result.scores.items():
                    for metric, value in result.metrics.items():
                        if value is not None:
                            interval = (metric == "auroc" and result.auroc_ci) or ("", "")
                            values = [run.result.seed, f"{score}_{metric}", value, "", 1, *interval]
                            yield ["run", *dataset, *names[title], *values, str(run.workdir)]
        pairs = [("difference", title, value) for title, value in comparison.differences.items()]
        pairs += [("ablation", title, value) for (_, title), value in comparison.ablations.items()]
        for source, title, value in pairs:
            n = len(rows[title].runs)
            values = ["", "", n, "", "", value]
            if isinstance(value, Difference):
                n = n if value.std is None else value.splits
                values = [value.value, value.std, n, *(value.interval or ("", "")), ""]
            yield [source, *dataset, *names[title], "", "auroc", *values]
        if paper := paper_results.paper_table(comparison.dataset, comparison.category):
            for model, values in paper.rows.items():
                reason = paper_results.contradiction(dict(zip(METRICS, values, strict=True))) or ""
                for metric, value in zip(METRICS, values, strict=True):
                    yield ["published", *dataset, model, *[""] * 4, metric, value, *[""] * 4, reason]


def _heading(metric: str) -> str:
    return _HEADINGS.get(metric, metric)


def _results(comparison):
    decides = {"auroc": ("AUROC", "score that decides")}
    columns = {
        # Detectors that do not reconstruct have another score.
        **(decides if any(not row.values[f"{comparison.score}_auroc"] for row in comparison.rows) else {}),
        "calibrated_auroc": ("AUROC", "calibrated score"),
        "paper_auroc": ("AUROC", "paper's score"),
        "native": ("AUROC", "native score"),
        "baseline": ("AUROC", "strongest baseline"),
        "synthetic": ("without labels", "AUROC of synthetic defects"),
        "paper_calibration_score": ("calibration", "mean paper's score"),
        **{name: ("at the threshold", metric.title) for name, metric in IMAGE_METRICS.items() if metric.uses_threshold},
    }
    ranked = any(row.values["auroc"] for row in comparison.rows)
    notes = [_SEED_NOTE, _SCORE_NOTE.format(SCORE_TITLES[comparison.score]) if ranked else _NOT_RANKED_NOTE]
    notes += [_CALIBRATION_NOTE] * any(row.values["paper_calibration_score"] for row in comparison.rows)
    notes += [_SYNTHETIC_NOTE] * any(row.values["synthetic"] for row in comparison.rows)
    return _metric_table(f"Results on {comparison.title}", columns, comparison.rows, [*notes, *comparison.notes])


def _localization(comparison):
    columns = {
        **{name: ("pixels", PIXEL_METRICS[of].title) for name, of in PIXEL_VALUES.items()},
        "pixel_baseline": ("pixels", "raw intensity AUROC"),
    }
    rows = [row for row in comparison.rows if row.values["pixel_auroc"]]
    if rows:
        yield _metric_table(f"Localization on {comparison.title}", columns, rows, [_SEED_NOTE])


def _metric_table(
    title: str, columns: dict[str, tuple[str, str]], rows: Sequence[ComparisonRow], notes: Sequence[str]
) -> Table:
    columns = {name: column for name, column in columns.items() if any(row.values[name] for row in rows)}
    order = list(GROUP_TITLES)
    rows = sorted(rows, key=lambda row: order.index(row.group))  # within a group, as before
    groups = [row.group for row in rows]
    headings = {groups.index(group): title for group, title in GROUP_TITLES.items() if group in groups}
    cells = [
        [row.label + " †" * bool(row.inconsistencies), len(row.runs), *(_cell(row, name) for name in columns)]
        for row in rows
    ]
    shown = headings if len(headings) > 1 else {}
    return Table(title, [("", "model"), ("", "seeds"), *columns.values()], cells, notes, shown)


def _cell(row: ComparisonRow, metric: str) -> Cell:
    """The value of a metric; of a baseline, which has no seed of its own, only the mean."""
    spread = row.values[metric]
    return spread.mean if spread and metric in ("baseline", "pixel_baseline") else spread


def _differences(comparison):
    if not comparison.differences:
        return
    name = label(comparison.strongest_baseline[0])
    columns = [("", "model"), ("", "AUROC minus baseline"), ("", "interval")]
    rows = [[model, *_explained(value)] for model, value in comparison.differences.items()]
    notes = [_BASELINE_NOTE, *_difference_notes(comparison.differences.values())]
    yield Table(f"Differences from the strongest baseline ({name}) on {comparison.title}", columns, rows, notes)


def _difference_notes(values):
    over_splits = {v.std is not None for v in values if isinstance(v, Difference)}
    return [_INTERVAL_NOTE] * (False in over_splits) + [_SPLITS_NOTE] * (True in over_splits)


def _explained(value: Difference | str):
    if isinstance(value, str):
        return None, value
    if value.interval is None:
        return value, f"over {value.splits} splits"
    low, high = value.interval
    return value, "may be chance" if low <= 0 <= high else "excludes 0"


def _ablations(comparison):
    rows_by_label = {row.label: row for row in comparison.rows}
    metrics = [*METRICS[1:], "pixel_auroc"]
    columns = [("", name) for name in ("variant", "seeds", *map(_heading, ["auroc", *metrics]))]
    for full in dict.fromkeys(full for full, _ in comparison.ablations):
        ablated = {name: v for (of, name), v in comparison.ablations.items() if of == full}
        full_row = rows_by_label[full]
        rows = [[full, len(full_row.runs), *(full_row.values[m] for m in ("auroc", *metrics))]]
        first_note = f"The first row is {full}. The other rows are differences from it."
        notes = [" ".join([first_note, *_difference_notes(ablated.values())])]
        for name, value in ablated.items():
            row = rows_by_label[name]
            if isinstance(value, str):
                notes.append(f"{name}: no interval: {value}")
                value = _difference(row, full_row, "auroc")
            fields = differing_fields(row, full_row).items()
            changes = (f"{field} {new}, not {old}" for field, (new, old) in fields)
            notes.append(f"{name}: {'; '.join(changes) or 'the same config'}")
            rows.append([name, len(row.runs), value, *(_difference(row, full_row, metric) for metric in metrics)])
        yield Table(f"Ablations of {full} on {comparison.title}", columns, rows, notes)


def _difference(row: ComparisonRow, other: ComparisonRow, metric: str) -> Difference | None:
    value, other_value = row.values[metric], other.values[metric]
    return Difference(value.mean - other_value.mean) if value and other_value else None


def _published(comparison):
    """The published results, in their order, next to the measured ones."""
    paper = paper_results.paper_table(comparison.dataset, comparison.category)
    if not paper:
        return
    pairs = ((_heading(name), source) for name in METRICS for source in ("measured", "published"))
    columns = [("", "model"), *pairs, ("published", "prevalence")]
    rows, notes = [], [_PUBLISHED_NOTE]
    if comparison.dataset == "brain_mixed":
        notes.append("The paper does not say which brain dataset it used. The other candidate is brain.")
    for model, values in paper.rows.items():
        published: dict[str, float] = dict(zip(METRICS, values, strict=True))
        reason = paper_results.contradiction(published)
        if reason:
            notes.append(f"Published row of {MODELS[model]}: {reason}")
        feasible = None if reason else paper_results.feasible_prevalence(published)
        prevalence = " to ".join(f"{p:.3f}" for p in feasible) if feasible else "none"
        measured = [row for row in comparison.rows if row.model == model and not row.ablations]
        for row in measured or [None]:
            variant = row.label.removeprefix(model) if row else ""
            name = MODELS[model] + variant + " †" * bool(reason)
            pairs = [(row and row.values[f"paper_{metric}"], published[metric]) for metric in METRICS]
            rows.append([name, *(cell for pair in pairs for cell in pair), prevalence])
    title = f"Results on {comparison.title}, compared with the paper's Table {paper.number} ({paper.title})"
    yield Table(title, columns, rows, notes)
