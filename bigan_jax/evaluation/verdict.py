"""The conclusions of an evaluation as sentences, and labels of metrics, fields and baselines."""

from collections.abc import Mapping

from bigan_jax.evaluation.result import PAPER_WEIGHTS, EvaluationResult, ScoreResult
from bigan_jax.metrics.pixel import PIXEL_METRICS

SCORE_TITLES = {"paper": "the paper's score", "calibrated": "the calibrated score"}

LABELS = {
    "f1": "F1",
    "auroc": "AUROC",
    "aupro": "AUPRO",
    "top1": "highest 1 %",
    "max": "highest",
    "n": "images",
    "n_normal": "normal",
    "n_anomalous": "anomalous",
    "pca_8": "PCA, 8 components",
    "pca_64": "PCA, 64 components",
    "nearest_neighbor": "nearest training image",
    "mahalanobis_16": "Mahalanobis distance of 16x16 thumbnails",
    "mean_intensity": "mean intensity alone",
    "corner_pixels": "corner pixels alone",
}


def label(name: str) -> str:
    """Returns the text for a metric, field or baseline in reports."""
    return LABELS.get(name, str(name).replace("_", " "))


def strongest(values: Mapping[str, float | None]) -> tuple[str, float] | None:
    """Returns the name and value of the highest of the defined values; None if there is none."""
    defined = [(name, value) for name, value in values.items() if value is not None]
    return max(defined, key=lambda item: item[1], default=None)


def score_titles(result: EvaluationResult) -> dict[str, str]:
    """Returns the titles of the scores; with other weights or another reduction, "paper" is not the paper's score."""
    score = result.score
    weights = {name: weight for name, weight in score.weights.items() if weight}
    is_paper = weights == PAPER_WEIGHTS and score.reduction == "mean" and not score.standardize
    return SCORE_TITLES if is_paper else SCORE_TITLES | {"paper": "the weighted error"}


def baseline_check(result: ScoreResult) -> str:
    """Compares the AUROC of the model with that of the strongest training-free baseline."""
    auroc, baseline = result.auroc, strongest(result.baselines)
    if auroc is None:
        return "Baseline check: there is no AUROC, because the test set lacks normal or anomalous images."
    if baseline is None:
        return "Baseline check: no training-free baseline was run."
    name, best = baseline
    comparison = "higher than" if best > auroc else "as high as" if best == auroc else "below"
    text = f"Baseline check: {label(name)} scores {best:.3f}, {comparison} this model ({auroc:.3f})."
    if best < auroc and result.auroc_ci and result.auroc_ci[0] <= best:
        text += " It lies inside the model's 95 % interval, so the difference may be chance."
    return text


def localization(result: EvaluationResult) -> str:
    """Compares the pixel AUROC of the error maps with that of the strongest baseline map; "" if undefined."""
    model, baseline = result.pixel.auroc, strongest({n: pixel.auroc for n, pixel in result.pixel_baselines.items()})
    if model is None or baseline is None:
        return ""
    name, best = baseline
    beats = "locate defects better than" if model > best else "do not locate defects better than"
    return f"The error maps ({model:.3f}) {beats} {label(name)} as a map ({best:.3f})."


def summary(result: EvaluationResult) -> list[str]:
    """Returns the lines that a run prints: image-level and pixel-level results, the promise and the baseline check."""
    main = result.main
    interval = " (95 % interval {:.3f} to {:.3f})".format(*main.auroc_ci) if main.auroc_ci else ""
    lines = [
        f"{result.model} on {' '.join(filter(None, [result.dataset, result.category]))}",
        f"Images: AUROC {_number(main.auroc)}{interval}; at the threshold {main.threshold:.4g}: "
        f"recall {_number(main.recall)}, specificity {_number(main.specificity)}, F1 {_number(main.f1)}",
        f"Threshold: {main.promise.sentence if main.promise else 'set by hand, which promises nothing.'}",
    ]
    if result.pixel.auroc is not None:
        metrics = (f"{PIXEL_METRICS[name].title} {_number(value)}" for name, value in result.pixel.metrics.items())
        lines.append(f"Pixels: {', '.join(metrics)}")
    for name, other in result.scores.items():
        if name != result.score_name:
            lines.append(
                f"With {score_titles(result)[name]}: AUROC {_number(other.auroc)}, recall {_number(other.recall)}"
            )
    if volumes := main.volumes:
        counts = f"{volumes.n_normal} normal and {volumes.n_anomalous} anomalous"
        lines.append(f"Volumes ({counts}; mean of the {volumes.top} highest slices): AUROC {_number(volumes.auroc)}")
    return [*lines, baseline_check(main)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
