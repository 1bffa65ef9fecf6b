"""Writes report.html of a prediction: a gallery of the new images, the highest score first, in pages."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np

from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.evaluation.result import EvaluationResult
from bigan_jax.metrics.drift import Drift
from bigan_jax.reports.html import render_html
from bigan_jax.reports.overlays import thumbnail_name
from bigan_jax.reports.prediction_files import FILE, ImagePrediction
from bigan_jax.runtime.files import write_atomic

PAGE = 200  # images on a page
_MAX_BOXES = 20  # drawn on an image, of the regions with the highest peaks
_MAX_UNREADABLE = 100  # files listed
_CURVE_POINTS = 200  # of a distribution function


class _Order(msgspec.Struct):
    """What the order of the images depends on, of a line of predictions.jsonl."""

    score: float
    decision: str
    warning: str


def write_gallery(
    output: Path, evaluation: EvaluationResult, drift: Drift, unreadable: Sequence[UnreadableFile]
) -> Path:
    """Writes report.html, and report-2.html and so on for more than PAGE images, from predictions.jsonl.

    The pages show the files in thumbnails/, overlays/ and masks/, and keep one page of images in memory.

    Args:
      output: the folder of the prediction.
      evaluation: of the run that scored the images.
      unreadable: files that were not scored.

    Returns:
      The path of the first page.
    """
    scores, starts, n_anomalous, n_warned, position = array("d"), array("q"), 0, 0, 0
    decoder, lines = msgspec.json.Decoder(_Order), msgspec.json.Decoder(ImagePrediction)
    with (output / FILE).open("rb") as file:
        for line in file:
            image = decoder.decode(line)
            scores.append(image.score)
            starts.append(position)
            n_anomalous += image.decision == "anomalous"
            n_warned += bool(image.warning)
            position += len(line)
        order = np.argsort(-np.array(scores), kind="stable")
        pages = [order[first : first + PAGE] for first in range(0, max(1, len(order)), PAGE)]
        for number, chosen in enumerate(pages, 1):
            images = []
            for index in chosen:
                file.seek(starts[index])
                images.append(lines.decode(file.readline()))
            html = render_html(
                "predictions.html.jinja",
                filters={"number": _number, "share": _share, "link": _link, "thumbnail": thumbnail_name},
                e=evaluation,
                drift=drift,
                curves=_curves(evaluation, np.array(scores)) if number == 1 and len(scores) > 1 else None,
                images=images,
                n_images=len(scores),
                n_anomalous=n_anomalous,
                n_warned=n_warned,
                page=number,
                n_pages=len(pages),
                first_rank=(number - 1) * PAGE + 1,
                page_name=page_name,
                max_boxes=_MAX_BOXES,
                unreadable=unreadable[:_MAX_UNREADABLE] if number == 1 else [],
                n_unreadable=len(unreadable),
            )
            write_atomic(output / page_name(number), html)
    return output / page_name(1)


def page_name(number: int) -> str:
    """Returns the file of a page, from 1 on."""
    return "report.html" if number == 1 else f"report-{number}.html"


def _curves(evaluation: EvaluationResult, scores: np.ndarray) -> dict:
    """Returns the distribution functions of calibration and new scores as points of SVG lines, in a 100 x 100 square.

    The horizontal scale is logarithmic if all scores are positive, and linear otherwise.
    """
    calibration = np.array(evaluation.main.calibration_scores)
    everything = np.concatenate([calibration, scores, [evaluation.main.threshold]])
    logarithmic = bool(everything.min() > 0)
    scale = np.log if logarithmic else np.asarray
    low, high = scale(everything.min()), scale(everything.max())

    def horizontal(values):
        return 100 * (scale(values) - low) / (high - low or 1)

    def line(values):
        x = horizontal(np.sort(values))
        keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _CURVE_POINTS)).astype(int))
        corners = ["0,100"]
        for before, index in zip([-1, *keep[:-1]], keep, strict=True):
            corners += [f"{x[index]:.2f},{100 - 100 * (before + 1) / len(x):.2f}"]
            corners += [f"{x[index]:.2f},{100 - 100 * (index + 1) / len(x):.2f}"]
        return " ".join([*corners, "100,0"])

    return {
        "calibration": line(calibration),
        "new": line(scores),
        "threshold": f"{horizontal(evaluation.main.threshold):.2f}",
        "logarithmic": logarithmic,
        "low": everything.min(),
        "high": everything.max(),
    }


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(value: float) -> str:
    """Formats a fraction as a percentage with two digits; a small one is not shown as 0."""
    return "< 0.01 %" if 0 < value < 1e-4 else f"{100 * value:.2g} %" if value < 0.995 else "100 %"


def _link(path: str) -> str:
    """Returns a relative address of a file."""
    return quote(path)
