"""The conclusions of an evaluation as sentences, and labels of metrics, fields and baselines."""

from collections.abc import Mapping
from typing import NamedTuple

from bigan_jax.evaluation.result import EvaluationResult

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


class Verdict(NamedTuple):
    """Whether the model beats the strongest baseline (None if that is unknown), and a sentence."""

    beats: bool | None
    sentence: str


def strongest(values: Mapping[str, float | None]) -> tuple[str, float] | None:
    """Returns the name and value of the highest of the defined values; None if there is none."""
    defined = [(name, value) for name, value in values.items() if value is not None]
    return max(defined, key=lambda item: item[1], default=None)


def verdict(result: EvaluationResult) -> Verdict:
    """Compares the AUROC of the model with that of the strongest training-free baseline."""
    auroc, baseline = result.auroc, strongest(result.baselines)
    if auroc is None:
        return Verdict(None, "No AUROC: the test set lacks normal or anomalous images.")
    if baseline is None:
        return Verdict(None, "No training-free baseline was run, so the AUROC stands alone.")
    name, best = baseline
    opponent = f"the strongest training-free baseline, {label(name)} ({best:.3f})"
    if auroc <= best:
        sentence = f"The model ({auroc:.3f}) does not beat {opponent}: on this test set, training gains nothing."
        return Verdict(False, sentence)
    sentence = f"The model ({auroc:.3f}) beats {opponent} by {auroc - best:.3f}."
    if result.auroc_ci and result.auroc_ci[0] <= best:
        sentence += " The baseline lies inside the model's 95 % interval, so it may be chance."
    return Verdict(True, sentence)


def pixel_verdict(result: EvaluationResult) -> str:
    """Compares the pixel AUROC of the error maps with that of the strongest baseline map; "" if undefined."""
    model, baseline = result.pixel.auroc, strongest({n: pixel.auroc for n, pixel in result.pixel_baselines.items()})
    if model is None or baseline is None:
        return ""
    name, best = baseline
    beats = "locate defects better than" if model > best else "do not locate defects better than"
    return f"The error maps ({model:.3f}) {beats} {label(name)} as a map ({best:.3f})."
