"""Writes the files of an evaluation.

These are scores.csv, baseline_scores.csv, figures/, report.html, pixel_statistics.npy and evaluation.json.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Images
from bigan_jax.errors import printable
from bigan_jax.evaluation.assess import Assessment
from bigan_jax.evaluation.calibrated_score import write_statistics
from bigan_jax.evaluation.finished_run import baseline_column
from bigan_jax.evaluation.result import EvaluationResult
from bigan_jax.evaluation.scorer import Scores
from bigan_jax.evaluation.verdict import baseline_check, score_titles
from bigan_jax.metrics.pixel import PIXEL_METRICS
from bigan_jax.metrics.thresholds import decide
from bigan_jax.nn.pixel_statistics import PixelStatistics
from bigan_jax.reports import charts, figures, html_report
from bigan_jax.reports.table_formats import format_cell
from bigan_jax.runtime.files import write_atomic, write_csv, write_json
from bigan_jax.training.saving.train_log import read_train_log, rollbacks


def write_evaluation(
    workdir: Path,
    config: Mapping,
    test: Images,
    audit: Audit,
    assessment: Assessment,
    statistics: Sequence[PixelStatistics] = (),
) -> EvaluationResult:
    """Writes all files of an evaluation to the run's folder and prints a summary.

    evaluation.json is deleted first and written last, so that its presence marks a complete evaluation. Without test
    images, only it and the pixel statistics are written. Returns the result with the warnings of the leak audit and
    of the training health checks added. Raises UserError if a file could not be written.
    """
    history = read_train_log(workdir)
    result = assessment.result
    warnings = dict.fromkeys([*result.warnings, *audit.warnings, *_training_warnings(history)])  # folds share some
    result = result.replace(warnings=list(warnings))
    assessment = assessment._replace(result=result)
    (workdir / "evaluation.json").unlink(missing_ok=True)
    if statistics:
        write_statistics(workdir, *statistics)
    if len(test.label):
        _write_test_results(workdir, config, test, audit, assessment, history)
    write_json(workdir / "evaluation.json", result.as_dict())
    _print_summary(result, workdir)
    return result


def _write_test_results(workdir, config, test, audit, assessment, history):
    result = assessment.result
    classes = {"label": class_names(test.label), "group": test.group}
    rows = score_rows(test.path, assessment.test, decide(assessment.test.score, result.main.threshold), classes)
    write_csv(workdir / "scores.csv", [list(rows[0]), *(list(row.values()) for row in rows)])
    write_csv(workdir / "baseline_scores.csv", _baseline_rows(test.path, classes, assessment.baselines))
    _write_figures_and_report(workdir, config, test, audit, assessment, history)


def class_names(anomalous: Bool[np.ndarray, "n"]) -> list[str]:
    """Returns "anomalous" or "normal" for each image."""
    return ["anomalous" if value else "normal" for value in anomalous]


def score_rows(
    paths: Iterable[str],
    scores: Scores,
    decision: Bool[np.ndarray, "n"],
    before: Mapping[str, Iterable[str]],
    after: Mapping[str, Iterable[str]] | None = None,
) -> list[dict[str, str]]:
    """Returns the rows of a scores.csv, with a text per column and more columns before and after the scores."""
    columns = {name: [f"{v:.8g}" for v in values] for name, values in scores.columns.items()}
    columns = {"path": paths, **before, **columns, **(after or {}), "decision": class_names(decision)}
    if scores.native is not None:
        columns["native"] = [f"{value:.8g}" for value in scores.native]
    texts = zip(*columns.values(), strict=True)
    return [dict(zip(columns, map(printable, row), strict=True)) for row in texts]


def _baseline_rows(paths, classes, baselines) -> Iterator[Iterable[str]]:
    """Yields the rows of baseline_scores.csv: scores of the training-free baselines, with which runs are paired."""
    columns = {"path": map(printable, paths), "label": classes["label"], "group": map(printable, classes["group"])}
    for score, by_baseline in baselines.items():
        for name, values in by_baseline.items():
            columns[baseline_column(score, name)] = [f"{value:.8g}" for value in values]
    yield columns
    yield from zip(*columns.values(), strict=True)


def _training_warnings(history: Sequence[dict]) -> list[str]:
    """Returns the last epoch's health warnings, their earlier number, and all rollbacks."""
    checks = [row.get("health", []) for row in history]
    earlier = sum(map(bool, checks[:-1]))
    warnings = list(checks[-1]) if checks else []
    if earlier:
        warnings.append(f"the health check warned in {earlier} epochs before the last (see train.jsonl)")
    return warnings + [
        f"Training diverged in epoch {rollback['epoch']} ({rollback['objective']}) and was rolled back to the state "
        f"after epoch {rollback['rolled_back_to']}, with {0.5**number:g} of the learning rates."
        for number, rollback in enumerate(rollbacks(history), 1)
    ]


def _write_figures_and_report(workdir, config, test, audit, assessment, history):
    result, calibration, scores, _ = assessment
    threshold = result.main.threshold
    drawn = figures.evaluation_charts(test, scores, calibration.score, threshold, history)
    pngs = {name: charts.to_png(figure) for name, figure in drawn.items()}
    pngs |= figures.image_grids(test, scores, threshold, result.color_limits)
    for name, png in pngs.items():
        write_atomic(workdir / "figures" / f"{name}.png", png)
    html_report.write_report(
        workdir / "report.html",
        result,
        history,
        {name: charts.to_svg(figure) for name, figure in drawn.items()},
        figures.report_gallery(test, scores, threshold),
        audit.as_dict(images=True),
        config,
        figures.report_examples(test, scores, threshold),
    )


def summary(result: EvaluationResult) -> list[str]:
    """Returns the lines that a run prints: image-level and pixel-level results, the promise and the baseline check."""
    main = result.main
    if not result.n_anomalous:
        alarms = round((1 - (main.specificity or 0)) * result.n_normal)
        return [
            _title(result),
            "Images: no anomalous test images, so nothing is known about detection. At the threshold "
            f"{main.threshold:.4g}: {alarms} of {result.n_normal} normal test images called anomalous",
            _threshold_line(main),
            "To measure detection, add anomalous images in a folder named anomalous next to the normal ones.",
        ]
    interval = " (95 % interval {:.3f} to {:.3f})".format(*main.auroc_ci) if main.auroc_ci else ""
    lines = [
        _title(result),
        f"Images: AUROC {format_cell(main.auroc)}{interval}; at the threshold {main.threshold:.4g}: "
        f"recall {format_cell(main.recall)}, specificity {format_cell(main.specificity)}, F1 {format_cell(main.f1)}",
        _threshold_line(main),
    ]
    if result.pixel.auroc is not None:
        metrics = (f"{PIXEL_METRICS[name].title} {format_cell(value)}" for name, value in result.pixel.metrics.items())
        lines.append(f"Pixels: {', '.join(metrics)}")
    for name, other in result.scores.items():
        if name != result.score_name:
            auroc, recall = format_cell(other.auroc), format_cell(other.recall)
            lines.append(f"With {score_titles(result)[name]}: AUROC {auroc}, recall {recall}")
    if volumes := main.volumes:
        counts = f"{volumes.n_normal} normal and {volumes.n_anomalous} anomalous"
        lines.append(
            f"Volumes ({counts}; mean of the {volumes.top} highest slices): AUROC {format_cell(volumes.auroc)}"
        )
    return [*lines, baseline_check(main)]


def _title(result):
    return f"{result.model} on {' '.join(filter(None, [result.dataset, result.category]))}"


def _threshold_line(main):
    return f"Threshold: {main.promise.sentence if main.promise else 'set by hand, which promises nothing.'}"


def _print_summary(result: EvaluationResult, workdir: Path) -> None:
    if result.n_normal + result.n_anomalous == 0:
        promise = result.main.promise
        print(
            f"No test images. Threshold {result.main.threshold:.4g}: {promise.sentence if promise else 'set by hand.'}"
        )
        return
    print("\n".join(summary(result)))
    for warning in result.warnings:
        print(f"Warning: {warning}")
    print(f"Report: {workdir / 'report.html'}")
    print(f"Next: open the report, or score new images: bigan-jax predict {workdir} IMAGES --output=FOLDER")
