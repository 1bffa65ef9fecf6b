"""The detectors of all folds as one: the lowest of their scores decides (`cross_conformal_threshold`)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from bigan_jax.evaluation.scorer import AnomalyScorer, Scores


class FoldScorer(AnomalyScorer):
    """Scores images with several detectors of one kind, each trained without one fold of the normal images."""

    def __init__(
        self,
        scorers: Sequence[AnomalyScorer],
        threshold: float | None = None,
        calibration: Float[np.ndarray, "c"] | None = None,
    ):
        """Takes the scorers of all folds, and the threshold and calibration scores of the cross-conformal rule."""
        vars(self).update(vars(scorers[0]))
        self.threshold, self.calibration = threshold, calibration
        self._scorers = scorers

    def score(
        self, images: UInt8[np.ndarray, "n h w c"], condition: Int[np.ndarray, "n"] | None = None, progress: str = ""
    ) -> Scores:
        """Returns the lowest score of each image and the lowest error of each pixel over the detectors.

        Terms, reconstructions and native scores are those of the first detector.
        """
        first, *others = (scorer.score(images, condition, progress) for scorer in self._scorers)
        lowest = (first.by_name, first.error_map)
        for scores in others:
            lowest = jax.tree.map(np.minimum, lowest, (scores.by_name, scores.error_map))
        return first._replace(by_name=lowest[0], error_map=lowest[1])

    def score_and_map(
        self, images: UInt8[Array, "b h w c"], condition: Int[Array, "b"]
    ) -> tuple[Float[Array, "b"], Float[Array, "b h w"]]:
        """Returns the lowest score of each image and the lowest error of each pixel, as `score` does."""
        results = (scorer.score_and_map(images, condition) for scorer in self._scorers)
        return functools.reduce(lambda x, y: jax.tree.map(jnp.minimum, x, y), results)
