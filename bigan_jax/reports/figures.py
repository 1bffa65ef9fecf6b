"""What is seen of an evaluation: its figures, the gallery, and one fixed scale of colors."""

from functools import partial

import numpy as np
from jaxtyping import Bool, Float

from bigan_jax.data.dataset import Images
from bigan_jax.evaluation.scorer import Scores
from bigan_jax.metrics.bootstrap import curve_bands
from bigan_jax.metrics.thresholds import decide
from bigan_jax.reports import charts as plots
from bigan_jax.reports import html_report, image_grid, training_curves
from bigan_jax.reports.html import png_bytes

_LONGEST_IN_REPORT = 256  # pixels


def evaluation_figures(
    test: Images,
    scores: Scores,
    calibration: Float[np.ndarray, "c"],
    threshold: float,
    limits: dict[str, float],
    history: list[dict],
) -> dict[str, bytes]:
    """PNG bytes of each figure by name. calibration: the scores of the calibration normals."""
    normal, anomalous = scores.score[~test.label], scores.score[test.label]
    measured = scores.score, test.label
    band = curve_bands(*measured, test.group) or {}

    def rows(chosen):
        return [_row(test, scores, i, threshold) for i in chosen]

    charts = {
        "score_histogram": plots.score_histogram(normal, anomalous, calibration, threshold),
        "roc_curve": plots.roc_curve(*measured, threshold, band.get("roc")),
        "precision_recall_curve": plots.precision_recall_curve(
            *measured, threshold, band.get("precision_recall")
        ),
        "training_curves": training_curves.training_curves(history),
    }
    sheets = {
        "error_maps": image_grid.gallery(
            rows(representative_indices(test.label, scores.score)),
            [limits[name] for name in ("mse", "ssim", "combined")],
        ),
        "healthy_and_anomalous": image_grid.healthy_and_anomalous(
            *(rows(evenly_ranked(scores.score, test.label == wanted)) for wanted in (False, True)),
            limits["combined"],
        ),
    }
    pictures = {name: plots.to_png(chart) for name, chart in charts.items()}
    return pictures | {name: sheet.png() for name, sheet in sheets.items()}


def gallery(
    test: Images, scores: Scores, threshold: float, limits: dict[str, float]
) -> list[html_report.GalleryItem]:
    """Up to 180 test pictures for the report."""
    png = partial(png_bytes, longest=_LONGEST_IN_REPORT)
    return [
        html_report.GalleryItem(
            path=test.path[i],
            label=bool(test.label[i]),
            defect_type=test.defect_type[i],
            score=float(scores.score[i]),
            decision=bool(decide(scores.score[i], threshold)),
            image=png(test.image[i]),
            reconstruction=png(scores.reconstruction[i]),
            map=png(
                plots.error_levels(scores.error_map[i], limits["combined"]),
                palette=plots.ERROR_PALETTE,
            ),
            mask=png(test.mask[i].astype(np.uint8) * 255)
            if test.has_mask[i] and test.label[i]
            else None,
        )
        for i in representative_indices(test.label, scores.score, each=30)
    ]


def representative_indices(
    label: Bool[np.ndarray, "n"], score: Float[np.ndarray, "n"], each: int = 2
) -> list[int]:
    """Indices of the lowest scores of each class, of those in the middle and of the highest."""
    chosen = []
    for wanted in (True, False):
        ranked = np.flatnonzero(label == wanted)[np.argsort(score[label == wanted])]
        middle = max(0, len(ranked) // 2 - each // 2)
        parts = ranked[:each], ranked[middle : middle + each], ranked[::-1][:each]
        chosen += dict.fromkeys(np.concatenate(parts).tolist())
    return chosen


def evenly_ranked(
    score: Float[np.ndarray, "n"], wanted: Bool[np.ndarray, "n"], count: int = 4
) -> list[int]:
    """Indices of wanted pictures at even steps from the lowest score to the highest: neither the
    best cases nor the worst."""
    ranked = np.flatnonzero(wanted)[np.argsort(score[wanted])]
    count = min(count, len(ranked))
    return ranked[(2 * np.arange(count) + 1) * len(ranked) // (2 * max(count, 1))].tolist()


def _row(test, scores, i, threshold):
    def picture(x):
        x = x.astype(np.float32) / 255
        return x[..., 0] if x.shape[-1] == 1 else x

    return image_grid.GalleryRow(
        path=test.path[i],
        score=float(scores.score[i]),
        decision=bool(decide(scores.score[i], threshold)),
        label=bool(test.label[i]),
        image=picture(test.image[i]),
        reconstruction=picture(scores.reconstruction[i]),
        squared_error=scores.terms.map["mse"][i],
        ssim_error=scores.terms.map["ssim"][i],
        combined=scores.error_map[i],
        mask=test.mask[i] if test.has_mask[i] else None,
    )
