"""What an evaluation leaves: evaluation.json, scores.csv, figures, the report, and a few lines."""

from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Images
from bigan_jax.errors import printable
from bigan_jax.evaluation.assess import Assessment
from bigan_jax.evaluation.verdict import verdict
from bigan_jax.metrics.thresholds import decide
from bigan_jax.reports import figures, html_report
from bigan_jax.runtime.files import write_atomic, write_csv, write_json
from bigan_jax.training.saving.train_log import read_train_log, rollbacks


def write_evaluation(
    workdir: Path, config: ConfigDict, test: Images, found: Audit, assessment: Assessment
) -> None:
    """Writes scores.csv, figures, the report and evaluation.json to a run's workdir, and tells the
    result.

    The last is the mark of a whole evaluation: while the others are written, it is not there. What
    the audit and training warned of joins its warnings. Raises UserError where files cannot be
    written.
    """
    evaluation, calibration, scores = assessment
    evaluation["warnings"] += [*found.warnings, *_health(workdir)]
    (workdir / "evaluation.json").unlink(missing_ok=True)
    _write_scores(workdir / "scores.csv", test, scores, evaluation["threshold"])
    _write_pictures(workdir, config, evaluation, test, found, calibration, scores)
    write_json(workdir / "evaluation.json", evaluation)
    _print_summary(evaluation, workdir)


def _health(workdir):
    """What the last epoch's health check warned of, how often any did before, and when training
    diverged and went back."""
    rows = read_train_log(workdir)
    checks = [row.get("health", []) for row in rows]
    earlier = sum(map(bool, checks[:-1]))
    found = list(checks[-1]) if checks else []
    if earlier:
        found.append(f"the health check warned in {earlier} epochs before the last (train.jsonl)")
    for number, back in enumerate(rollbacks(rows), 1):
        found.append(
            f"Training diverged in epoch {back['epoch']} ({back['objective']}) and went back to "
            f"the state after epoch {back['rolled_back_to']}, with {0.5**number:g} of the "
            "learning rates."
        )
    return found


def _write_scores(path, test, scores, threshold):
    decision = decide(scores.score, threshold)
    native = ["native"] if scores.native is not None else []
    columns = scores.columns
    rows = [["path", "label", "group", *columns, "decision", *native]]
    for i, name in enumerate(test.path):
        rows.append(
            [
                printable(name),
                "anomalous" if test.label[i] else "normal",
                printable(test.group[i]),
                *(f"{column[i]:.8g}" for column in columns.values()),
                "anomalous" if decision[i] else "normal",
                *([f"{scores.native[i]:.8g}"] if native else []),
            ]
        )
    write_csv(path, rows)


def _write_pictures(workdir, config, evaluation, test, found, calibration, scores):
    threshold, limits = evaluation["threshold"], evaluation["color_limits"]
    history = read_train_log(workdir)
    pictures = figures.evaluation_figures(
        test, scores, calibration.score, threshold, limits, history
    )
    for name, png in pictures.items():
        write_atomic(workdir / "figures" / f"{name}.png", png)
    for name in ("error_maps", "healthy_and_anomalous"):
        del pictures[name]  # the report's gallery shows the same, and more
    items = figures.report_gallery(test, scores, threshold)
    seen = found.as_dict(images=True)
    fields = config.to_dict()
    html_report.write_report(
        workdir / "report.html", evaluation, history, pictures, items, seen, fields
    )


def _print_summary(evaluation, workdir):
    def show(name):
        return "-" if evaluation[name] is None else f"{evaluation[name]:.3f}"

    low, high = evaluation["auroc_ci"] or (None, None)
    interval = "" if low is None else f" (95 % interval {low:.3f} to {high:.3f})"
    print(
        f"{evaluation['model']} on {evaluation['dataset']}: AUROC {show('auroc')}{interval}\n"
        f"{verdict(evaluation).sentence}\n"
        f"At the threshold {evaluation['threshold']:.4g} ({evaluation['threshold_rule']}): "
        f"recall {show('recall')}, specificity {show('specificity')}, F1 {show('f1')}"
    )
    if evaluation["oracle"]["f1"] is not None:
        value, f1, _ = evaluation["oracle"].values()
        print(f"Oracle, chosen by the test labels, no result: F1 {f1:.3f} at {value:.4g}")
    for warning in filter(None, [evaluation["threshold_note"], *evaluation["warnings"]]):
        print(f"Warning: {warning}")
    print(f"Report: {workdir / 'report.html'}")
