"""What the page shows of a run, and of an image that the run's detector scored."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigan_jax.commands.load import load
from bigan_jax.data.files.fit import source_box, unpad
from bigan_jax.data.files.images import read_full_size, read_image
from bigan_jax.data.files.medical import is_medical
from bigan_jax.data.files.unreadable import CONTENT_START, UnreadableFile, require_image_content, try_read
from bigan_jax.data.loading import is_dark
from bigan_jax.errors import UserError
from bigan_jax.evaluation.result import EvaluationResult, require_evaluation
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.evaluation.verdict import score_titles
from bigan_jax.reports.html import data_uri, png_bytes

SHOWN_SIDE = 640  # pixels: the page shows larger images at this size


class LoadedRun(NamedTuple):
    """A finished run whose detector is ready to score."""

    name: str  # the folder, as the user typed it
    result: EvaluationResult
    scorer: AnomalyScorer

    def describe(self) -> dict[str, Any]:
        """Returns the facts of the run that the page needs, as JSON values."""
        main = self.result.main
        return {
            "name": self.name,
            "model": self.result.model,
            "dataset": f"{self.result.dataset} {self.result.category}".strip(),
            "score": score_titles(self.result)[self.result.score_name],
            "threshold": main.threshold,
            "promise": main.promise.sentence if main.promise else "",
            "pixel_threshold": self.result.pixel_threshold,
            "pixel_promise": self.result.pixel_promise.sentence,
            "color_limit": self.result.color_limits["combined"],
            "calibration": sorted(main.calibration_scores),
            "conditions": self.scorer.conditions,
            "search_steps": self.scorer.search_steps,
        }

    def score(self, name: str, content: bytes, condition: str) -> dict[str, Any]:
        """Scores an image and returns what the page shows of it, as JSON values.

        Args:
          name: of the file.
          content: of the file.
          condition: one of the run's conditions; "" if it has none.

        Returns:
          Score, percentile and decision; `image`, a data: URI at the image's own aspect ratio; `map`, the error map
          without padding as base64 of little-endian float32, and `box`, the part of the image that it covers (left,
          top, right, bottom as fractions).

        Raises:
          UserError: the image cannot be read or has no finite score, or the condition is missing or unknown.
        """
        index = self.scorer.condition_index(condition)
        image_format = self.scorer.image_format

        def read():
            if is_medical(name):
                raise UserError("DICOM and NIfTI are not read here: use bigan-jax predict, or save a slice as PNG")
            require_image_content(content[:CONTENT_START])
            file = io.BytesIO(content)
            return read_image(file, *image_format), read_full_size(file, image_format.window)

        decoded = try_read(name, read)
        if isinstance(decoded, UnreadableFile):
            raise UserError(decoded.reason)
        image, shown = decoded
        scores = self.scorer.score(image[None], np.array([index], np.int32))
        width, height = shown.size
        error_map = unpad(scores.error_map[0], width, height, image_format.fit)
        box = np.array(source_box(width, height, image_format.fit)) / [width, height, width, height]
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return {
            "score": float(scores.score[0]),
            "percentile": float(self.scorer.percentile(scores)[0]),
            "anomalous": bool(self.scorer.decide(scores)[0]),
            "dark": is_dark(self.scorer.inside(image), image_format.window),
            "image": data_uri(png_bytes(np.asarray(shown))),
            "box": box.tolist(),
            "map": {
                "height": error_map.shape[0],
                "width": error_map.shape[1],
                "values": base64.b64encode(error_map.astype("<f4").tobytes()).decode("ascii"),
            },
        }


def load_run(workdir: Path) -> LoadedRun:
    """Loads a run. Raises UserError if it is not finished, or a file of it is damaged."""
    return LoadedRun(str(workdir), require_evaluation(workdir), load(workdir))
