"""The figures of an evaluation, and the choice of the test images that they and the report show."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from bigan_jax.data.dataset import Images
from bigan_jax.evaluation.scorer import Scores
from bigan_jax.metrics.bootstrap import curve_bands
from bigan_jax.metrics.thresholds import decide
from bigan_jax.reports import charts, image_grid
from bigan_jax.reports.html import png_bytes
from bigan_jax.reports.image_grid import GalleryImage
from bigan_jax.reports.training_curves import training_curves


def evaluation_charts(
    test: Images, scores: Scores, calibration: Float[np.ndarray, "c"], threshold: float, history: list[dict]
) -> dict[str, Figure]:
    """Draws the charts of an evaluation by name.

    `calibration` are the scores of the calibration images, and `history` the rows of train.jsonl.
    """
    score, label = scores.score, test.label
    bands = curve_bands(score, label, test.group) or {}
    return {
        "score_histogram": charts.score_histogram(score[~label], score[label], calibration, threshold),
        "roc_curve": charts.roc_curve(score, label, threshold, bands.get("roc")),
        "precision_recall_curve": charts.precision_recall_curve(score, label, threshold, bands.get("precision_recall")),
        "training_curves": training_curves(history),
    }


def image_grids(test: Images, scores: Scores, threshold: float, limits: dict[str, float]) -> dict[str, bytes]:
    """Draws test images and their error maps as PNG files by name.

    `limits` is the error of the brightest color by error map.
    """
    score, label = scores.score, test.label
    chosen = representative_indices(label, score), evenly_ranked(score, ~label), evenly_ranked(score, label)
    representative, normal, anomalous = (_gallery_images(test, scores, threshold, indices) for indices in chosen)
    grids = {
        "error_maps": image_grid.error_map_grid(representative, limits),
        "healthy_and_anomalous": image_grid.normal_and_anomalous_grid(normal, anomalous, limits["combined"]),
    }
    return {name: png_bytes(np.asarray(grid.image)) for name, grid in grids.items()}


def report_examples(test: Images, scores: Scores, threshold: float) -> list[GalleryImage]:
    """Returns three anomalous test images (normal ones if there are none) at even steps of their rank by score."""
    shown = test.label if test.label.any() else ~test.label
    return _gallery_images(test, scores, threshold, evenly_ranked(scores.score, shown, count=3))


def report_gallery(test: Images, scores: Scores, threshold: float) -> list[GalleryImage]:
    """Returns the test images of the report's gallery, at most 180."""
    return _gallery_images(test, scores, threshold, representative_indices(test.label, scores.score, count=30))


def representative_indices(label: Bool[np.ndarray, "n"], score: Float[np.ndarray, "n"], count: int = 2) -> list[int]:
    """Returns indices of the lowest, middle and highest scores of each class, `count` of each."""
    indices = []
    for label_value in (True, False):
        ranked = np.flatnonzero(label == label_value)[np.argsort(score[label == label_value])]
        middle = max(0, len(ranked) // 2 - count // 2)
        chosen = ranked[:count], ranked[middle : middle + count], ranked[::-1][:count]
        indices += dict.fromkeys(np.concatenate(chosen).tolist())
    return indices


def evenly_ranked(score: Float[np.ndarray, "n"], selected: Bool[np.ndarray, "n"], count: int = 4) -> list[int]:
    """Returns indices of `count` selected images at even steps of their rank by score: no cherry-picking."""
    ranked = np.flatnonzero(selected)[np.argsort(score[selected])]
    count = min(count, len(ranked))
    return ranked[(2 * np.arange(count) + 1) * len(ranked) // (2 * max(count, 1))].tolist()


def _gallery_images(test: Images, scores: Scores, threshold: float, indices: Iterable[int]) -> list[GalleryImage]:
    error_maps = scores.terms.map | {"combined": scores.error_map}
    decision = decide(scores.score, threshold)
    return [
        GalleryImage(
            path=test.path[i],
            label=bool(test.label[i]),
            defect_type=test.defect_type[i],
            score=float(scores.score[i]),
            decision=bool(decision[i]),
            image=test.image[i],
            reconstruction=None if scores.reconstruction is None else scores.reconstruction[i],
            error_maps={name: np.asarray(maps[i]) for name, maps in error_maps.items()},
            mask=test.mask[i] if test.has_mask[i] else None,
        )
        for i in indices
    ]
