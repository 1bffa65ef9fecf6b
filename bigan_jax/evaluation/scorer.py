"""A trained detector for inference: images in, scores and error maps out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from bigan_jax.data.files.images import ImageFormat
from bigan_jax.data.inputs import ImageInput, load_images
from bigan_jax.detector import Batch, Detector, TrainState, inference_net
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.anomaly_score import TERMS, ScoreFormula, ScoreTerms
from bigan_jax.evaluation.latent_search import LatentSearcher
from bigan_jax.metrics.thresholds import decide
from bigan_jax.nn.vgg16 import weights as pretrained
from bigan_jax.nn.vgg16.network import VGG16


class Scores(NamedTuple):
    """The scores of n images, as NumPy arrays."""

    score: Float[np.ndarray, "n"]
    terms: ScoreTerms
    error_map: Float[np.ndarray, "n h w"]  # the terms' maps, combined as the score is
    reconstruction: UInt8[np.ndarray, "n h w c"]
    native: Float[np.ndarray, "n"] | None = None  # the score that the model's own paper defines, if any

    @property
    def columns(self) -> dict[str, Float[np.ndarray, "n"]]:
        """The terms' values and the score, by column of scores.csv."""
        values = self.terms.value
        columns = {term.column: np.asarray(values[name]) for name, term in TERMS.items() if name in values}
        return {**columns, "score": self.score}


class Prediction(NamedTuple):
    """The scores and decisions of n new images, as NumPy arrays."""

    score: Float[np.ndarray, "n"]
    percentile: Float[np.ndarray, "n"]  # the percentage of calibration images with a lower score
    decision: Bool[np.ndarray, "n"]  # True for an anomalous image
    error_map: Float[np.ndarray, "n h w"]  # at the model's image size


class AnomalyScorer:
    """Scores images with trained networks in inference mode.

    No image affects another one's score. The number of images scored together changes its last digits, by 1e-6 of the
    score at most on a CPU.
    """

    def __init__(
        self,
        detector: Detector,
        state: TrainState,
        formula: ScoreFormula,
        shape: tuple[int, int, int],
        batch_size: int = 32,
        threshold: float | None = None,
        vgg16_weights: str = "",
        unit_features: bool = True,
        calibration: Float[np.ndarray, "c"] | None = None,
        conditions: Sequence[str] = (),
        window: bool = False,
        fit: str = "stretch",
    ):
        """Prepares the networks; they are compiled by the first call.

        Args:
          shape: height, width and channels of the images.
          batch_size: the number of images per call of the networks.
          threshold: required by `decide`.
          vgg16_weights: as `load_weights` takes it, if a term of the formula needs features.
          unit_features: whether these features are scaled first (`losses.unit_features`).
          calibration: the scores of the calibration images, required by `percentile`.
          conditions: the names of the conditions that the model takes; empty for most models.
          window: whether the contrast of new images is stretched, as in training.
          fit: how new images that are not square become square, as in training.
        """
        self.formula, self.shape, self.threshold = formula, shape, threshold
        self.image_format = ImageFormat(*shape[1:], window, fit)
        self.calibration, self.conditions = calibration, tuple(conditions)
        self._batch_size, self.notes = batch_size, detector.notes
        self._variables = (state, dict(detector.frozen))
        self._searcher = LatentSearcher(detector)
        self._vgg16, vgg16 = None, None
        if any(TERMS[name].needs_features for name in formula.weights):
            loaded = pretrained.load_weights(vgg16_weights)
            self._vgg16 = {"params": loaded.params}
            vgg16 = VGG16(convention=loaded.convention, unit_features=unit_features)
        self._reconstruct = jax.jit(partial(_reconstruct, detector))
        self._compute_scores = jax.jit(partial(_compute_scores, vgg16, formula.reduction))

    @property
    def steps_trained(self) -> int:
        """The number of training steps of the detector's state."""
        return int(self._variables[0].step)

    @property
    def search_steps(self) -> int:
        """The number of latent search steps per reconstruction; 0 for most models."""
        return self._searcher.steps

    def score(
        self, images: UInt8[np.ndarray, "n h w c"], condition: Int[np.ndarray, "n"] | None = None, progress: str = ""
    ) -> Scores:
        """Reconstructs and scores images.

        Args:
          images: of the detector's shape.
          condition: the index of each image's condition; 0 by default.
          progress: the label of a progress bar; none by default.

        Raises:
          UserError: there are no images, their shape or type is wrong, or a score is not finite.
        """
        if not len(images):
            raise UserError("there are no images to score.")
        if images.shape[1:] != self.shape or images.dtype != np.uint8:
            shape = ", ".join(map(str, self.shape))
            raise UserError(f"images must be uint8 (n, {shape}) for this detector (got {images.dtype} {images.shape}).")
        if condition is None:
            condition = np.zeros(len(images), np.int32)
        size = min(self._batch_size, len(images))
        # All images share a key: an image's position must not affect its result.
        keys = jnp.broadcast_to(jax.random.key(self._variables[0].seed), size)
        scores: dict[str, Any] = {}
        starts = range(0, len(images), size)
        bar = tqdm(
            total=len(starts) * (self._searcher.steps + 1),
            desc=progress,
            unit="step" if self._searcher.steps else "batch",
            disable=not progress,
            leave=False,
        )
        for start in starts:
            indices = self._batch_indices(start, size, len(images))
            batch = Batch(jnp.asarray(images[indices]) / 255, jnp.asarray(condition[indices]))
            batch = self._searcher(*self._variables, batch, keys, bar.update)
            reconstruction, native = self._reconstruct(*self._variables, batch, keys)
            batch_scores = {**self._score_batch(batch.image, reconstruction), "native": native}
            if not scores:
                scores = jax.tree.map(lambda x: np.empty((len(images), *x.shape[1:]), x.dtype), batch_scores)
            for target, values in zip(*map(jax.tree.leaves, (scores, batch_scores)), strict=True):
                target[start : start + size] = np.asarray(values)[: len(images) - start]
            bar.update()
        bar.close()
        # NaN reaches no threshold, so it would be called normal.
        if n_invalid := int((~np.isfinite(scores["score"])).sum()):
            raise UserError(
                f"{n_invalid} of {len(images)} images have no finite score: their reconstructions are NaN or infinite. "
                "Train again, in float32 or at a lower learning rate."
            )
        return Scores(**scores)

    def decide(self, scores: Scores) -> Bool[np.ndarray, "n"]:
        """Returns True for each anomalous image: its score reaches the evaluation's threshold."""
        assert self.threshold is not None, "the scorer was made without a threshold"
        return decide(scores.score, self.threshold)

    def percentile(self, scores: Scores) -> Float[np.ndarray, "n"]:
        """Returns the percentage of calibration images with a lower score: 100 is above all."""
        if self.calibration is None:
            raise UserError("percentiles require the scores of calibration images (got None).")
        lower = np.searchsorted(np.sort(self.calibration), scores.score.astype(np.float64))
        return 100 * lower / len(self.calibration)

    @no_type_check  # wrong input is reported as a UserError
    def predict(self, images: Sequence[ImageInput], condition: str | Sequence[str] = "") -> Prediction:
        """Scores new images of any size and decides, with the preprocessing of training.

        Args:
          images: files, PIL images or uint8 arrays: [h w] or [h w 1], gray, [h w 3], RGB, or [h w 4], RGBA. Only a
            file reproduces the scores of a large JPEG exactly, which is decoded at a fraction of its size.
          condition: the condition of all images, or one name per image; required if the model takes conditions.

        Raises:
          UserError: an input is not an image (the message has its index), or a condition is missing or unknown.
        """
        arrays = load_images(images, self.image_format)
        names = [condition] * len(images) if isinstance(condition, str) else condition
        if len(names) != len(images):
            raise UserError(f"condition must be one name or one per image (got {len(names)} for {len(images)} images).")
        scores = self.score(arrays, np.array([self.condition_index(name) for name in names], np.int32))
        return Prediction(scores.score, self.percentile(scores), self.decide(scores), scores.error_map)

    def condition_index(self, name: str) -> int:
        """Returns the index of a condition in `conditions`, or 0 if the model takes none; else raises UserError."""
        if not self.conditions:
            if name:
                raise UserError(f"condition={name}: this model takes no condition. Leave it out.")
            return 0
        if not name:
            raise UserError(f"this model requires the condition of each image: one of {', '.join(self.conditions)}.")
        if name not in self.conditions:
            raise unknown_name("condition", name, self.conditions)
        return self.conditions.index(name)

    def standardize(self, deviations: Mapping[str, float]) -> None:
        """Divides each term of the formula by its standard deviation; raises UserError if one is 0."""
        self.formula = self.formula.standardized(deviations)

    def rescore(self, scores: Scores) -> Scores:
        """Returns the same reconstructions, scored by the current formula."""
        return scores._replace(
            score=np.asarray(anomaly_score.score(self.formula, scores.terms)),
            error_map=np.asarray(anomaly_score.combined_map(self.formula, scores.terms)),
        )

    def score_reconstructions(
        self, images: Float[np.ndarray, "n h w c"], reconstructions: Float[np.ndarray, "n h w c"]
    ) -> Float[np.ndarray, "n"]:
        """Returns the scores of reconstructions by another method; both arrays are in [0, 1]."""
        size = min(self._batch_size, len(images))
        parts = []
        for start in range(0, len(images), size):
            indices = self._batch_indices(start, size, len(images))
            scores = self._score_batch(images[indices], reconstructions[indices])["score"]
            parts.append(np.asarray(scores)[: len(images) - start])
        return np.concatenate(parts)

    @staticmethod
    def _batch_indices(start, size, n_images):
        """Returns indices of equally large batches: the last one repeats the last image."""
        return np.arange(start, start + size).clip(max=n_images - 1)

    def _score_batch(self, images, reconstructions):
        return self._compute_scores(self._vgg16, self.formula.weights, images, reconstructions)


def _reconstruct(detector, state, frozen, batch, keys):
    net = inference_net(detector, state, frozen)
    native = detector.native_score and detector.native_score(net, batch, keys)
    return detector.reconstruct(net, batch, keys), native


def _compute_scores(vgg16, reduction, vgg16_variables, weights, image, reconstruction):
    features = vgg16 and (vgg16.apply(vgg16_variables, image), vgg16.apply(vgg16_variables, reconstruction))
    terms = anomaly_score.terms(image, reconstruction, features)
    formula = ScoreFormula(weights, reduction)
    return {
        "score": anomaly_score.score(formula, terms),
        "terms": terms,
        "error_map": anomaly_score.combined_map(formula, terms),
        "reconstruction": jnp.round(reconstruction * 255).astype(jnp.uint8),
    }
