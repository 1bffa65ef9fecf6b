"""The conclusions of an evaluation as sentences, and labels of metrics, fields and baselines."""

from collections.abc import Mapping

from bigan_jax.evaluation.result import PAPER_WEIGHTS, EvaluationResult, ScoreResult

SCORE_TITLES = {
    "paper": "the paper's score",
    "calibrated": "the calibrated score",
    "native": "the detector's own score",
}

# Of detectors, in the order of tables.
GROUP_TITLES = {
    "reconstruction": "Reconstruction of images",
    "features": "Pretrained features",
    "baseline": "Baselines that can be kept",
}

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
    """Compares the AUROC of the model with that of the strongest training-free baseline.

    The difference has a paired interval, for a baseline that the complete test set chose.
    """
    auroc, baseline = result.auroc, strongest(result.baselines)
    if auroc is None:
        return "Baseline check: there is no AUROC, because the test set lacks normal or anomalous images."
    if baseline is None:
        return "Baseline check: no training-free baseline was run."
    name, best = baseline
    comparison = "higher than" if best > auroc else "as high as" if best == auroc else "below"
    text = f"Baseline check: {label(name)} scores {best:.3f}, {comparison} this model ({auroc:.3f})."
    if result.over_baseline and result.over_baseline.interval:
        low, high = result.over_baseline.interval
        chance = ", so the difference may be chance" if low <= 0 <= high else ""
        text += f" Model minus baseline: {auroc - best:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}{chance}."
    return text


def localization(result: EvaluationResult) -> str:
    """Compares the pixel AUROC of the error maps with that of the strongest baseline map; "" if undefined."""
    model, baseline = result.pixel.auroc, strongest({n: pixel.auroc for n, pixel in result.pixel_baselines.items()})
    if model is None or baseline is None:
        return ""
    name, best = baseline
    beats = "locate defects better than" if model > best else "do not locate defects better than"
    return f"The error maps ({model:.3f}) {beats} {label(name)} as a map ({best:.3f})."
