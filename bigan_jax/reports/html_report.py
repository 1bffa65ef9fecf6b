"""One self-contained HTML file about a run: what was reached, against what, and on which pictures.

Styles and script are inline, images are data: URIs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bigan_jax.evaluation.verdict import label, pixel_verdict, verdict
from bigan_jax.reports import html as pages
from bigan_jax.reports.charts import ERROR_PALETTE, error_levels, error_map_rgb
from bigan_jax.reports.html import data_uri, png_bytes
from bigan_jax.reports.image_grid import GalleryImage
from bigan_jax.reports.tables import format_cell
from bigan_jax.runtime.files import write_atomic

EXTREMES = 6
_MAX_IMAGE_SIDE = 256  # pixels of a gallery image; larger ones are shrunk
MODEL = "this model"
FIGURES = {
    "score_histogram": "Scores of the test pictures. Green ticks: the calibration normals.",
    "roc_curve": "Recall against false alarms over all thresholds. Shaded: where 95 % of the "
    "curves lie when groups of pictures are resampled.",
    "precision_recall_curve": "Precision against recall. It depends on how common anomalies are "
    "in this test set. Shaded: as for recall against false alarms.",
    "training_curves": "Losses and health checks by epoch. Every second phase is shaded.",
}
DECISION_METRICS = {
    "accuracy": "right calls, of all pictures",
    "balanced_accuracy": "mean of recall and specificity",
    "precision": "anomalous, of those called anomalous",
    "recall": "called anomalous, of the anomalous",
    "f1": "harmonic mean of precision and recall",
    "specificity": "called normal, of the normal",
}


def write_report(
    path: str | Path,
    evaluation: Mapping,
    history: Sequence[Mapping],
    figures: Mapping[str, bytes],
    gallery: Sequence[GalleryImage],
    audit: Mapping | None = None,
    config: Mapping | None = None,
) -> Path:
    """Writes the report to `path` and returns it; missing folders are made.

    Args:
      path: the .html file.
      evaluation: what evaluation.json holds; any value may be missing or None.
      history: the rows of train.jsonl, empty where nothing was trained here.
      figures: PNG bytes by name. The names in `FIGURES` come first and have captions.
      gallery: pictures of the test set; the report orders them.
      audit: what audit.json holds; the pictures of its first pairs may have an `image`, uint8.
      config: what config.json holds.
    """
    html = pages.render_html(
        "report.html.jinja",
        filters={
            "number": format_cell,
            "interval": _interval,
            "precise": _precise,
            "data_uri": data_uri,
            "png": png_bytes,
            "words": label,
        },
        tests={"table": _is_table},
        e=defaultdict(lambda: None, evaluation),
        metrics=DECISION_METRICS,
        controls=_ranked_controls(evaluation),
        scores=sorted(evaluation.get("score_table") or [], key=_auroc_of, reverse=True),
        verdict=verdict(evaluation),
        pixel_verdict=pixel_verdict(evaluation),
        figures=[
            (name, FIGURES.get(name, label(name)), figures[name]) for name in _ordered(figures)
        ],
        training=_training(history),
        gallery=_galleries(
            gallery,
            evaluation.get("threshold"),
            (evaluation.get("color_limits") or {}).get("combined", 1.0),
        ),
        audit=audit,
        config=config,
        color_bar=png_bytes(error_map_rgb(np.linspace(0, 1, 256)[None], 1.0)),
    )
    write_atomic(Path(path), html)
    return Path(path)


def _ordered(figures: Mapping) -> list[str]:
    return [name for name in FIGURES if name in figures] + [n for n in figures if n not in FIGURES]


def _ranked_controls(evaluation: Mapping) -> list[tuple[str, float | None]]:
    """Controls and the model itself by AUROC, the undefined last."""
    rows = {**(evaluation.get("controls") or {}), MODEL: evaluation.get("auroc")}
    return sorted(rows.items(), key=lambda row: -1.0 if row[1] is None else row[1], reverse=True)


def _auroc_of(row: Mapping) -> float:
    return -1.0 if row["auroc"] is None else row["auroc"]


def _training(history: Sequence[Mapping]) -> dict[str, str]:
    """A few facts about the training, from its log."""
    if not history:
        return {}
    phases = dict.fromkeys(str(row["phase"]) for row in history if row.get("phase") is not None)
    seconds = [row["seconds"] for row in history if row.get("seconds") is not None]
    rates = [row["images_per_second"] for row in history if row.get("images_per_second")]
    facts = {"epochs": str(len(history)), "phases": ", ".join(phases)}
    if seconds:
        facts["mean seconds an epoch"] = format_cell(float(np.mean(seconds)))
    if rates:
        facts["median pictures a second"] = format_cell(float(np.median(rates)))
    return facts


def _galleries(
    items: Sequence[GalleryImage], threshold: float | None, limit: float
) -> list[tuple[str, list]]:
    """The worst, the best and the other pictures, by how far the score lies on the right side."""

    def margin(item: GalleryImage) -> float:
        return (item.score - (threshold or 0.0)) * (1 if item.label else -1)

    ranked = sorted(items, key=margin)
    rows = [
        {**_encoded(item, limit), "margin": margin(item), "verdict": _call(item)} for item in ranked
    ]
    few = min(EXTREMES, len(rows) // 2)
    worst, between, best = rows[:few], rows[few : len(rows) - few], rows[len(rows) - few :]
    titled = (("Worst cases", worst), ("Best cases", best[::-1]), ("Between", between))
    return [(title, part) for title, part in titled if part]


def _encoded(item: GalleryImage, limit: float) -> dict:
    """The fields of a gallery image, its images as PNG bytes."""
    png = partial(png_bytes, longest=_MAX_IMAGE_SIDE)
    levels = error_levels(item.error_maps["combined"], limit)
    has_mask = item.mask is not None and item.label
    return item._asdict() | {
        "image": png(item.image),
        "reconstruction": png(item.reconstruction),
        "map": png(levels, palette=ERROR_PALETTE),
        "mask": png(item.mask.astype(np.uint8) * 255) if has_mask else None,
    }


def _call(item: GalleryImage) -> str:
    if item.decision == item.label:
        return "found" if item.label else "passed"
    return "missed" if item.label else "false alarm"


def _interval(ends: Sequence[float] | None) -> str:
    return "–" if not ends else f"{format_cell(ends[0])} to {format_cell(ends[1])}"


def _precise(value: float | None) -> str:
    """A score or threshold, which may be small: four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def _is_table(value) -> bool:
    """Whether a value is a list of objects, which reads best as a table."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return is_list and all(isinstance(row, Mapping) for row in value)
