"""A trained detector as a user has it: pictures in, scores and error maps out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

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
from bigan_jax.evaluation.anomaly_score import ScoreFormula, ScoreTerms
from bigan_jax.evaluation.latent_search import LatentSearcher
from bigan_jax.metrics.thresholds import decide
from bigan_jax.nn.vgg16 import weights as pretrained
from bigan_jax.nn.vgg16.network import VGG16


class Scores(NamedTuple):
    """What a detector says of n pictures, as NumPy arrays."""

    score: Float[np.ndarray, "n"]  # by the config's formula
    terms: ScoreTerms  # what it is made of: a value and a map of each of "mse", "ssim", ...
    error_map: Float[np.ndarray, "n h w"]  # the terms' maps, combined as the score is
    reconstruction: UInt8[np.ndarray, "n h w c"]
    native: Float[np.ndarray, "n"] | None = None  # by the model's own paper, where that differs

    @property
    def mse(self) -> Float[np.ndarray, "n"]:
        """The mean squared error of each reconstruction."""
        return self.terms.value["mse"]

    @property
    def ssim_error(self) -> Float[np.ndarray, "n"]:
        """1 - SSIM of each reconstruction."""
        return self.terms.value["ssim"]

    @property
    def columns(self) -> dict[str, Float[np.ndarray, "n"]]:
        """The terms and the score that they make, by the names that scores.csv has."""
        names, value = {"ssim": "ssim_error"}, self.terms.value
        terms = {
            names.get(name, name): value[name] for name in anomaly_score.TERMS if name in value
        }
        return {**terms, "score": self.score}


class Prediction(NamedTuple):
    """What a detector says of n new pictures, as NumPy arrays."""

    score: Float[np.ndarray, "n"]
    percentile: Float[np.ndarray, "n"]  # of the calibration normals that score lower, 0 to 100
    decision: Bool[np.ndarray, "n"]  # True: anomalous
    error_map: Float[np.ndarray, "n h w"]  # at the model's size


class AnomalyScorer:
    """Scores pictures with trained networks in inference mode. No picture affects another's score;
    how many are scored at once moves its last digits, by 1e-6 of it at most on a CPU."""

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
    ):
        """formula: how a score is made. shape: of the pictures. threshold: decides.

        calibration: the scores of the calibration normals, for percentiles.
        conditions: names of what the detector has to be told of a picture; none for most.
        window: whether new pictures are stretched, as in `data.load`.

        vgg16_weights: as in vgg16.load, which is only called where the formula has a perceptual
        term. unit_features: whether that term's features are scaled (losses.unit_features) first.
        """
        self.formula, self.shape, self.threshold = formula, shape, threshold
        self.form = ImageFormat(*shape[1:], window)
        self.calibration, self.conditions = calibration, tuple(conditions)
        self._batch_size, self.notes = batch_size, detector.notes
        self._variables = (state, dict(detector.frozen))
        self._searcher = LatentSearcher(detector)
        self._vgg16, features = None, None
        if "perceptual" in formula.weights:
            loaded = pretrained.load_weights(vgg16_weights)
            self._vgg16 = {"params": loaded.params}
            features = VGG16(convention=loaded.convention, unit_features=unit_features)
        self._reconstruct = jax.jit(partial(_reconstruct, detector))
        self._judge = jax.jit(partial(_judge, features, formula.reduction))

    @property
    def steps_trained(self) -> int:
        """The number of training steps of the detector's state."""
        return int(self._variables[0].step)

    @property
    def search_steps(self) -> int:
        """How many steps of search come before a picture is reconstructed; 0 for most models."""
        return self._searcher.steps

    def score(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        condition: Int[np.ndarray, "n"] | None = None,
        progress: str = "",
    ) -> Scores:
        """Reconstructs and scores pictures.

        images: uint8 of the trained size and channels.
        condition: index of each picture's known kind; the first kind by default.
        progress: the name of a progress bar; none by default.
        Raises UserError when the pictures are of another size or type, and where one's score is not
        finite: there the detector is broken, not the picture.
        """
        if not len(images):
            raise UserError("there is no picture to score")
        if images.shape[1:] != self.shape or images.dtype != np.uint8:
            raise UserError(
                f"pictures are {images.dtype} {images.shape}; this detector takes uint8 "
                f"(n, {', '.join(map(str, self.shape))})"
            )
        if condition is None:
            condition = np.zeros(len(images), np.int32)
        size = min(self._batch_size, len(images))
        # The same key for every picture: its place among others has no part in its result.
        keys = jnp.broadcast_to(jax.random.key(self._variables[0].seed), size)
        scores = None
        starts = range(0, len(images), size)
        bar = tqdm(
            total=len(starts) * (self._searcher.steps + 1),
            desc=progress,
            unit="step" if self._searcher.steps else "batch",
            disable=not progress,
            leave=False,
        )
        for start in starts:
            chosen = np.arange(start, start + size).clip(max=len(images) - 1)
            batch = Batch(jnp.asarray(images[chosen]) / 255, condition[chosen])
            batch = self._searcher(*self._variables, batch, keys, bar.update)
            reconstruction, native = self._reconstruct(*self._variables, batch, keys)
            part = self._judged(batch.image, reconstruction)._replace(native=native)
            if scores is None:
                scores = jax.tree.map(
                    lambda x: np.empty((len(images), *x.shape[1:]), x.dtype), part
                )
            for whole, some in zip(*map(jax.tree.leaves, (scores, part)), strict=True):
                whole[start : start + size] = np.asarray(some)[: len(images) - start]
            bar.update()
        bar.close()
        self._check_finite(scores.score)
        return scores

    def _check_finite(self, score):
        """NaN would be called normal: it reaches no threshold."""
        if broken := int((~np.isfinite(score)).sum()):
            raise UserError(
                f"{broken} of {len(score)} pictures have no finite score: their reconstructions "
                "are NaN or infinite. Train it anew, in float32 or at a lower learning rate"
            )

    def decide(self, scores: Scores) -> Bool[np.ndarray, "n"]:
        """True where a picture is anomalous: its score reaches the threshold of the evaluation."""
        return decide(scores.score, self.threshold)

    def percentile(self, scores: Scores) -> Float[np.ndarray, "n"]:
        """How many in a hundred calibration normals score lower: 100 is above all of them.

        Raises UserError where the evaluation did not keep their scores.
        """
        if self.calibration is None:
            raise UserError(
                "the run's evaluation.json holds no calibration_scores, as it was written by an "
                "older version: python launch.py --mode=evaluate --workdir=DIR makes them"
            )
        lower = np.searchsorted(np.sort(self.calibration), scores.score.astype(np.float64))
        return 100 * lower / len(self.calibration)

    def predict(
        self,
        pictures: Sequence[ImageInput],
        condition: str | Sequence[str] = "",
    ) -> Prediction:
        """Scores and judges new pictures of any size, prepared as the training pictures were.

        pictures: files, PIL images or uint8 arrays: [h w] or [h w 1], gray, [h w 3], RGB, or
          [h w 4], RGBA. Give a large JPEG as a file: training reads such at a fraction of its size,
          which an image in memory cannot repeat to the last bit.
        condition: the name of what all pictures show, or one name each, where `conditions` is not
          empty.
        Raises UserError for what is no picture, by its place, and for a missing condition.
        """
        images = load_images(pictures, self.form)
        names = [condition] * len(pictures) if isinstance(condition, str) else condition
        if len(names) != len(pictures):
            raise UserError(f"{len(names)} conditions for {len(pictures)} pictures")
        known = [self.condition_index(name) for name in names]
        scores = self.score(images, np.array(known, np.int32))
        judged = self.percentile(scores), self.decide(scores)
        return Prediction(scores.score, *judged, scores.error_map)

    def condition_index(self, name: str) -> int:
        """The place of a condition among `conditions`; 0 where the detector is told none.

        Raises UserError that names them.
        """
        if not self.conditions:
            if name:
                raise UserError(f"condition={name}: this model is told no condition. Leave it out")
            return 0
        if not name:
            raise UserError(
                "this model has to be told what a picture shows: "
                f"condition is one of {', '.join(self.conditions)}"
            )
        if name not in self.conditions:
            raise unknown_name("condition", name, self.conditions)
        return self.conditions.index(name)

    def standardize(self, spread: Mapping[str, float]) -> None:
        """From now on divides each term by its spread over the calibration normals."""
        self.formula = self.formula.divided_by(spread)

    def rescore(self, scores: Scores) -> Scores:
        """The same reconstructions, scored by the formula of now."""
        return scores._replace(
            score=np.asarray(anomaly_score.score(self.formula, scores.terms)),
            error_map=np.asarray(anomaly_score.combined_map(self.formula, scores.terms)),
        )

    def rate(
        self, images: Float[np.ndarray, "n h w c"], reconstructions: Float[np.ndarray, "n h w c"]
    ) -> Float[np.ndarray, "n"]:
        """The scores of somebody else's reconstructions: pictures of both kinds in [0, 1]."""
        size = min(self._batch_size, len(images))
        parts = []
        for start in range(0, len(images), size):
            chosen = np.arange(start, start + size).clip(max=len(images) - 1)
            judged = self._judged(images[chosen], reconstructions[chosen])
            parts.append(np.asarray(judged.score)[: len(images) - start])
        return np.concatenate(parts)

    def _judged(self, images, reconstructions):
        return self._judge(self._vgg16, self.formula.weights, images, reconstructions)


def _reconstruct(detector, state, frozen, batch, keys):
    net = inference_net(detector, state, frozen)
    native = detector.native_score and detector.native_score(net, batch, keys)
    return detector.reconstruct(net, batch, keys), native


def _judge(features, reduction, vgg16_variables, weights, image, reconstruction):
    terms = _terms(features, vgg16_variables, image, reconstruction)
    formula = ScoreFormula(weights, reduction)
    return Scores(
        score=anomaly_score.score(formula, terms),
        terms=terms,
        error_map=anomaly_score.combined_map(formula, terms),
        reconstruction=jnp.round(reconstruction * 255).astype(jnp.uint8),
    )


def _terms(features, variables, image, reconstruction):
    if features is None:
        return anomaly_score.terms(image, reconstruction)
    seen = [features.apply(variables, picture) for picture in (image, reconstruction)]
    return anomaly_score.terms(image, reconstruction, seen)
