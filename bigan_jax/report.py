"""One self-contained HTML file about a run: what was reached, against what, and on which pictures.

Nothing is fetched: styles and script are inline, images are data: URIs, and a content security
policy forbids the rest, any other script above all. Everything that comes from outside (file names
first) is escaped, its control characters too.
"""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from bigan_jax.errors import printable
from bigan_jax.plots import error_map_rgb
from bigan_jax.png import data_uri, png_bytes
from bigan_jax.workdir import write_whole

EXTREMES = 6
MODEL = "this model"
NAMES = {
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
    "nearest_neighbour": "nearest training picture",
    "mahalanobis_16": "Mahalanobis distance of 16x16 thumbnails",
    "mean_intensity": "mean intensity alone",
    "corner_pixels": "corner pixels alone",
}
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


class GalleryItem(NamedTuple):
    """One picture of the gallery, its parts as PNG bytes; what does not exist is None."""

    path: str
    label: bool
    kind: str
    score: float
    decision: bool
    image: bytes
    reconstruction: bytes
    map: bytes
    mask: bytes | None = None


def write_report(
    path: str | Path,
    evaluation: Mapping,
    history: Sequence[Mapping],
    figures: Mapping[str, bytes],
    gallery: Sequence[GalleryItem],
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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bigan_jax", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
    )
    environment.filters.update(
        number=_number,
        interval=_interval,
        precise=_precise,
        data_uri=data_uri,
        png=png_bytes,
        words=_words,
        script_hash=_script_hash,
    )
    environment.tests["table"] = _is_table
    html = environment.get_template("report.html.jinja").render(
        e=defaultdict(lambda: None, evaluation),
        metrics=DECISION_METRICS,
        controls=_ranked_controls(evaluation),
        scores=sorted(evaluation.get("score_table") or [], key=_auroc_of, reverse=True),
        verdict=verdict(evaluation),
        pixel_verdict=pixel_verdict(evaluation),
        figures=[
            (name, FIGURES.get(name, _words(name)), figures[name]) for name in _ordered(figures)
        ],
        training=_training(history),
        gallery=_galleries(gallery, evaluation.get("threshold")),
        audit=audit,
        config=config,
        colour_bar=png_bytes(error_map_rgb(np.linspace(0, 1, 256)[None], 1.0)),
    )
    write_whole(Path(path), html)
    return Path(path)


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
    against = f"the strongest training-free control, {_words(name)} ({best:.3f})"
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
    return f"The error maps ({model:.3f}) {beats} {_words(name)} as a map ({best:.3f})."


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
        facts["mean seconds an epoch"] = _number(float(np.mean(seconds)))
    if rates:
        facts["median pictures a second"] = _number(float(np.median(rates)))
    return facts


def _galleries(items: Sequence[GalleryItem], threshold: float | None) -> list[tuple[str, list]]:
    """The worst, the best and the other pictures, by how far the score lies on the right side."""

    def margin(item: GalleryItem) -> float:
        return (item.score - (threshold or 0.0)) * (1 if item.label else -1)

    ranked = sorted(items, key=margin)
    rows = [{**item._asdict(), "margin": margin(item), "verdict": _call(item)} for item in ranked]
    few = min(EXTREMES, len(rows) // 2)
    worst, between, best = rows[:few], rows[few : len(rows) - few], rows[len(rows) - few :]
    titled = (("Worst cases", worst), ("Best cases", best[::-1]), ("Between", between))
    return [(title, part) for title, part in titled if part]


def _call(item: GalleryItem) -> str:
    if item.decision == item.label:
        return "found" if item.label else "passed"
    return "missed" if item.label else "false alarm"


def _number(value) -> str:
    """A value for people: four significant digits, a dash for what does not apply."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        # A ratio reads best with three decimals; other magnitudes keep their leading digits.
        return f"{value:.3f}" if 0.01 <= abs(value) <= 1 or value == 0 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_number(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_number, value)) or "–"
    return str(value)


def _interval(ends: Sequence[float] | None) -> str:
    return "–" if not ends else f"{_number(ends[0])} to {_number(ends[1])}"


def _precise(value: float | None) -> str:
    """A score or threshold, which may be small: four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def _words(name: str) -> str:
    return NAMES.get(name, str(name).replace("_", " "))


def _harmless(value):
    """Whatever the template shows: text from outside without its control characters."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script_hash(script: str) -> str:
    """The name by which the content security policy allows one script and no other."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return Markup(f"sha256-{base64.b64encode(digest).decode('ascii')}")


def _is_table(value) -> bool:
    """Whether a value is a list of objects, which reads best as a table."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return is_list and all(isinstance(row, Mapping) for row in value)
