"""Writes report.html: one self-contained file with the results and test images of a run."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from bigan_jax.evaluation.anomaly_score import TERMS
from bigan_jax.evaluation.result import EvaluationResult, Interval
from bigan_jax.evaluation.verdict import GROUP_TITLES, baseline_check, label, localization, score_titles, strongest
from bigan_jax.metrics.image import IMAGE_METRICS
from bigan_jax.metrics.pixel import PIXEL_METRICS
from bigan_jax.reports.charts import ERROR_PALETTE, error_levels, error_map_rgb
from bigan_jax.reports.html import data_uri, png_bytes, render_html
from bigan_jax.reports.image_grid import GalleryImage
from bigan_jax.reports.table_formats import format_cell
from bigan_jax.runtime.files import write_atomic

MODEL = "this model"
PARTS = ("input", "reconstruction", "error map", "mask")  # of a test image
CAPTIONS = {
    "score_histogram": "Scores of the test images. Green ticks: the calibration images.",
    "roc_curve": "Recall against the false-alarm rate over all thresholds. Shaded: the range of "
    "95 % of the curves when groups of images are resampled.",
    "precision_recall_curve": "Precision against recall. It depends on the fraction of anomalous "
    "images in this test set. Shaded: the same range as for recall against the false-alarm rate.",
    "training_curves": "Losses and health checks by epoch. Every second phase is shaded.",
}
_N_EXTREMES = 6  # images in the gallery's worst and best cases
_MAX_IMAGE_SIDE = 256  # pixels of a gallery image; larger ones are shrunk


def write_report(
    path: str | Path,
    result: EvaluationResult,
    history: Sequence[Mapping],
    figures: Mapping[str, bytes],
    gallery: Sequence[GalleryImage],
    audit: Mapping | None = None,
    config: Mapping | None = None,
    examples: Sequence[GalleryImage] = (),
) -> Path:
    """Writes the report of an evaluation to the .html file `path`, and returns the path.

    Args:
      history: the rows of train.jsonl, which may be empty.
      figures: SVG or PNG bytes by name. The names in CAPTIONS come first and have captions.
      gallery: test images, in any order.
      audit: the content of audit.json. The images of its first pairs may have an `image`, uint8.
      config: the content of config.json.
      examples: the test images that the first screen shows.

    Raises:
      UserError: the file cannot be written.
    """
    names = [name for name in CAPTIONS if name in figures] + [name for name in figures if name not in CAPTIONS]
    limit = result.color_limits["combined"]
    shown = [*gallery, *examples]
    html = render_html(
        "report.html.jinja",
        filters={
            **{"number": format_cell, "interval": _interval, "precise": _precise, "label": label},
            **{"data_uri": data_uri, "png": png_bytes, "builtins": msgspec.to_builtins},
        },
        tests={"table": _is_table},
        e=result,
        m=result.main,
        image_metrics=IMAGE_METRICS,
        score_titles=score_titles(result),
        group_title=GROUP_TITLES[result.group],
        decision_metrics={name: metric for name, metric in IMAGE_METRICS.items() if metric.uses_threshold},
        ranking_metrics={name: metric for name, metric in IMAGE_METRICS.items() if not metric.uses_threshold},
        pixel_metrics=PIXEL_METRICS,
        terms=TERMS,
        baselines=_by_auroc({**result.main.baselines, MODEL: result.main.auroc}.items(), lambda row: row[1]),
        scores=_by_auroc(result.score_table, lambda row: row.auroc),
        baseline_check=baseline_check(result.main),
        localization=localization(result),
        strongest=lambda baselines: (strongest(baselines) or (None, None))[1],
        figures=[(name, CAPTIONS.get(name, label(name)), figures[name]) for name in names],
        training=_training_summary(history),
        gallery=_galleries(gallery, result.main.threshold, limit),
        examples=[{**_encoded(image, limit), "verdict": _outcome(image)} for image in examples],
        parts=[part for part in PARTS if part != "reconstruction" or _reconstructs(shown)],
        reconstructs=_reconstructs(shown),
        audit=audit,
        config=config,
        color_bar=png_bytes(error_map_rgb(np.linspace(0, 1, 256)[None], 1.0)),
    )
    write_atomic(Path(path), html)
    return Path(path)


def _by_auroc(rows, auroc_of):
    """Sorts rows by falling AUROC, with undefined ones last."""
    return sorted(rows, key=lambda row: -1.0 if auroc_of(row) is None else auroc_of(row), reverse=True)


def _training_summary(history: Sequence[Mapping]) -> dict[str, str]:
    if not history:
        return {}
    phases = dict.fromkeys(str(row["phase"]) for row in history if row.get("phase") is not None)
    seconds = [row["seconds"] for row in history if row.get("seconds") is not None]
    rates = [row["images_per_second"] for row in history if row.get("images_per_second")]
    summary = {"epochs": str(len(history)), "phases": ", ".join(phases)}
    if seconds:
        summary["mean seconds per epoch"] = format_cell(float(np.mean(seconds)))
    if rates:
        summary["median images per second"] = format_cell(float(np.median(rates)))
    return summary


def _galleries(images: Sequence[GalleryImage], threshold: float, limit: float) -> list[tuple[str, list[dict]]]:
    """Returns titled galleries: worst cases, best cases, and the cases between.

    Images are ranked by the distance of the score from the threshold, which is negative for a wrong decision.
    """

    def margin(image: GalleryImage) -> float:
        return (image.score - threshold) * (1 if image.label else -1)

    ranked = sorted(images, key=margin)
    cases = [{**_encoded(image, limit), "margin": margin(image), "verdict": _outcome(image)} for image in ranked]
    count = min(_N_EXTREMES, len(cases) // 2)
    worst, between, best = cases[:count], cases[count : len(cases) - count], cases[len(cases) - count :]
    galleries = (("Worst cases", worst), ("Best cases", best[::-1]), ("Between", between))
    return [(title, chosen) for title, chosen in galleries if chosen]


def _encoded(image: GalleryImage, limit: float) -> dict:
    """Returns the fields of a gallery image, with its arrays as PNG bytes."""
    png = partial(png_bytes, longest=_MAX_IMAGE_SIDE)
    mask = image.mask if image.label else None
    return image._asdict() | {
        "input": png(image.image),
        "reconstruction": None if image.reconstruction is None else png(image.reconstruction),
        "error map": png(error_levels(image.error_maps["combined"], limit), palette=ERROR_PALETTE),
        "mask": None if mask is None else png(mask.astype(np.uint8) * 255),
    }


def _outcome(image: GalleryImage) -> str:
    if image.decision == image.label:
        return "found" if image.label else "passed"
    return "below threshold" if image.label else "false alarm"


def _reconstructs(images: Sequence[GalleryImage]) -> bool:
    return all(image.reconstruction is not None for image in images)


def _interval(limits: Interval | None) -> str:
    return "–" if not limits else " to ".join(map(format_cell, limits))


def _precise(value: float | None) -> str:
    """Formats a score or threshold, which may be small, with four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def _is_table(value: object) -> bool:
    """Returns whether a config value is a list of objects, which is shown as a table."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return len(value) > 0 and all(isinstance(row, Mapping) for row in value)
