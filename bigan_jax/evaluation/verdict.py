"""What an evaluation's figures say of a model, in words."""

from collections.abc import Mapping
from typing import NamedTuple

LABELS = {
    "f1": "F1",
    "auroc": "AUROC",
    "aupro": "AUPRO",
    "top1": "highest 1 %",
    "max": "highest",
    "n": "pictures",
    "n_normal": "normal",
    "n_anomalous": "anomalous",
    "pca_8": "PCA, 8 components",
    "pca_64": "PCA, 64 components",
    "nearest_neighbor": "nearest training picture",
    "mahalanobis_16": "Mahalanobis distance of 16x16 thumbnails",
    "mean_intensity": "mean intensity alone",
    "corner_pixels": "corner pixels alone",
}


def label(name: str) -> str:
    """The name of a figure or a field, for people."""
    return LABELS.get(name, str(name).replace("_", " "))


class Verdict(NamedTuple):
    """Whether the model beats the strongest control (None where that cannot be said), in words."""

    beats: bool | None
    sentence: str


def verdict(evaluation: Mapping) -> Verdict:
    """Compares the model's AUROC with the strongest training-free control's."""
    auroc, interval = evaluation.get("auroc"), evaluation.get("auroc_ci")
    controls = {k: v for k, v in (evaluation.get("controls") or {}).items() if v is not None}
    if auroc is None:
        return Verdict(None, "No AUROC: the test set lacks normal or anomalous pictures.")
    if not controls:
        return Verdict(None, "No training-free control was run, so the AUROC stands alone.")
    name, best = max(controls.items(), key=lambda item: item[1])
    against = f"the strongest training-free control, {label(name)} ({best:.3f})"
    if auroc <= best:
        return Verdict(
            False,
            f"The model ({auroc:.3f}) does not beat {against}: on this test set the training "
            "has not paid.",
        )
    sentence = f"The model ({auroc:.3f}) beats {against} by {auroc - best:.3f}."
    if interval and interval[0] <= best:
        sentence += " That control lies inside the model's 95 % interval, so it may be chance."
    return Verdict(True, sentence)


def pixel_verdict(evaluation: Mapping) -> str:
    """Whether the error maps locate defects better than a map that no training went into."""
    model = (evaluation.get("pixel") or {}).get("auroc")
    controls = evaluation.get("pixel_controls") or {}
    rows = {name: (pixel or {}).get("auroc") for name, pixel in controls.items()}
    rows = {name: value for name, value in rows.items() if value is not None}
    if model is None or not rows:
        return ""
    name, best = max(rows.items(), key=lambda row: row[1])
    beats = "locate defects better than" if model > best else "do not locate defects better than"
    return f"The error maps ({model:.3f}) {beats} {label(name)} as a map ({best:.3f})."
