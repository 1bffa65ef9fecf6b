"""A trained detector for inference: images in, scores and error maps out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from bigan_jax.data.files.images import ImageFormat
from bigan_jax.data.inputs import ImageInput, load_images
from bigan_jax.data.streaming import LazyImages, fixed_draw
from bigan_jax.detector import Batch, Detector, TrainState, inference_net
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.anomaly_score import TERMS, ScoreFormula, ScoreTerms
from bigan_jax.evaluation.calibrated_score import DISPLAY_SIGMA, MapMoments, PixelStatistics, calibrated_score, smooth
from bigan_jax.evaluation.latent_search import LatentSearcher
from bigan_jax.evaluation.result import CALIBRATED, NATIVE, PAPER, SCORE_NAMES
from bigan_jax.evaluation.symmetry import asymmetry_statistics
from bigan_jax.metrics.thresholds import decide
from bigan_jax.nn.pixel_statistics import Roi, blank_outside
from bigan_jax.nn.symmetry import asymmetry_score
from bigan_jax.nn.vgg16 import weights as pretrained
from bigan_jax.nn.vgg16.network import VGG16
from bigan_jax.runtime.progress_bar import progress_bar

AnyArray = Array | np.ndarray
_VGG16_LAYERS = ("relu2_2", "relu3_3")  # whose features the perceptual term compares
MAP = "map"  # the only map of a detector that does not reconstruct
_MAX_FITTED = 512  # training images that the statistics come from; more change them by little
_FITTED_TOGETHER = 256  # of these are in memory at a time, with their maps
_MAX_SEARCHED = 64  # of detectors with a latent search, which takes hundreds of steps per image


class Scores(NamedTuple):
    """The scores of n images, as NumPy arrays."""

    name: str  # the score that decides
    by_name: dict[str, Float[np.ndarray, "n"]]  # by SCORE_NAMES
    terms: ScoreTerms
    error_map: Float[np.ndarray, "n h w"]  # the terms' maps, combined as in the paper's score and smoothed for display
    reconstruction: UInt8[np.ndarray, "n h w c"] | None  # None if the detector does not reconstruct
    asymmetry: Float[np.ndarray, "n"] | None = None  # the part of the calibrated score, where images are symmetric
    native: Float[np.ndarray, "n"] | None = None  # of a detector that reconstructs: its own paper's score, if any

    @property
    def score(self) -> Float[np.ndarray, "n"]:
        """The score that decides."""
        return self.by_name[self.name]

    @property
    def columns(self) -> dict[str, Float[np.ndarray, "n"]]:
        """The terms' values and the scores, by column of scores.csv."""
        values = self.terms.value
        columns = {term.column: np.asarray(values[name]) for name, term in TERMS.items() if name in values}
        if self.asymmetry is not None:
            columns["asymmetry"] = self.asymmetry
        return columns | {name: self.by_name[name] for name in SCORE_NAMES if name in self.by_name}

    def select(self, rows: slice) -> "Scores":
        """Returns the scores of some of the images."""
        return Scores(self.name, *jax.tree.map(lambda x: x[rows], tuple(self[1:])))

    def __repr__(self):
        return f"Scores({_range(self.name, self.score)})"


# From a few training images to states that were fitted on some of them, each with the indices of others.
Refits = Callable[[UInt8[np.ndarray, "n h w c"]], Iterator[tuple[TrainState, Int[np.ndarray, "m"]]]]


def score_names(detector: Detector) -> tuple[str, ...]:
    """Returns the names of the scores that a detector has, of SCORE_NAMES."""
    if detector.reconstruct:
        return PAPER, CALIBRATED
    # The maps of a fitted detector are standardized, and those of its training images too small.
    return (NATIVE,) if detector.fit else (NATIVE, CALIBRATED)


class Prediction(NamedTuple):
    """The scores and decisions of n new images, as NumPy arrays."""

    score: Float[np.ndarray, "n"]
    percentile: Float[np.ndarray, "n"]  # the percentage of calibration images with a lower score
    decision: Bool[np.ndarray, "n"]  # True for an anomalous image
    error_map: Float[np.ndarray, "n h w"]  # at the model's image size

    def __repr__(self):
        return f"Prediction({int(self.decision.sum())} anomalous; {_range('score', self.score)})"


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
        name: str = CALIBRATED,
        statistics: PixelStatistics | None = None,
        asymmetry: PixelStatistics | None = None,
        threshold: float | None = None,
        vgg16_weights: str = "",
        unit_features: bool = True,
        calibration: Float[np.ndarray, "c"] | None = None,
        conditions: Sequence[str] = (),
        window: bool = False,
        fit: str = "stretch",
        roi: Roi = None,
    ):
        """Prepares the networks; they are compiled by the first call.

        Args:
          shape: height, width and channels of the images.
          batch_size: the number of images per call of the networks.
          name: the score that decides, one of SCORE_NAMES.
          statistics: of the error maps of training images, required by the calibrated score; `fit` estimates them.
          asymmetry: of the asymmetry of training images, if the calibrated score includes it.
          threshold: required by `decide`.
          vgg16_weights: as `load_weights` takes it, if a term of the formula needs features.
          unit_features: whether these features are scaled first (`losses.unit_features`).
          calibration: the scores of the calibration images, required by `percentile`.
          conditions: the names of the conditions that the model takes; empty for most models.
          window: whether the contrast of new images is stretched, as in training.
          fit: how new images that are not square become square, as in training.
          roi: the pixels that count; None for all.
        """
        self.formula, self.shape, self.threshold = formula._replace(roi=roi), shape, threshold
        self.name, self.statistics, self.asymmetry = name, statistics, asymmetry
        self.image_format = ImageFormat(*shape[1:], window, fit)
        self.calibration, self.conditions = calibration, tuple(conditions)
        self._batch_size, self.notes, self.enough_images = batch_size, detector.notes, detector.enough_images
        self._variables = (state, dict(detector.frozen))
        self._searcher = LatentSearcher(detector)
        self._vgg16, vgg16 = None, None
        if any(TERMS[name].needs_features for name in formula.weights):
            loaded = pretrained.load_weights(vgg16_weights)
            self._vgg16 = {"params": loaded.params}
            vgg16 = VGG16(_VGG16_LAYERS, loaded.convention, unit_features=unit_features)
        self._names = score_names(detector)
        self._reconstructs = detector.reconstruct is not None
        self._apply_traced = partial(_reconstruct if self._reconstructs else _score_and_map, detector, roi)
        self._compute_traced = partial(_compute_scores, vgg16, formula.reduction, roi)
        self._apply, self._compute_scores = jax.jit(self._apply_traced), jax.jit(self._compute_traced)
        self._compute_asymmetry = jax.jit(asymmetry_score)

    def __repr__(self):
        fields = {"shape": self.shape, "score": self.name, "threshold": self.threshold, "steps": self.steps_trained}
        fields |= {"conditions": self.conditions} if self.conditions else {}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    @property
    def all_statistics(self) -> tuple[PixelStatistics, ...]:
        """The statistics that the calibrated score requires, in the order of `calibrated_score.write_statistics`."""
        return tuple(s for s in (self.statistics, self.asymmetry) if s is not None)

    @property
    def steps_trained(self) -> int:
        """The number of training steps of the detector's state."""
        return int(self._variables[0].step)

    @property
    def _device(self):
        """The device of the detector's state; None if that is on the host."""
        step = self._variables[0].step
        return step.sharding if isinstance(step, jax.Array) and step.committed else None

    @property
    def search_steps(self) -> int:
        """The number of latent search steps per reconstruction; 0 for most models."""
        return self._searcher.steps

    def inside(self, images: UInt8[AnyArray, "*n h w c"]) -> Any:
        """Returns the images as the networks see them: black outside of the region of interest, if there is one."""
        return images if self.formula.roi is None else images * self.formula.roi[:, :, None]

    @no_type_check  # wrong input is reported as a UserError
    def score(
        self, images: UInt8[np.ndarray, "n h w c"], condition: Int[np.ndarray, "n"] | None = None, progress: str = ""
    ) -> Scores:
        """Reconstructs and scores images.

        Args:
          images: of the detector's shape.
          condition: the index of each image's condition; 0 by default.
          progress: the label of a progress bar; none by default.

        Raises:
          UserError: there are no images, their shape or type is wrong, a condition is wrong, or a score is not finite.
        """
        if not len(images):
            raise UserError("there are no images to score.")
        if images.shape[1:] != self.shape or images.dtype != np.uint8:
            shape = ", ".join(map(str, self.shape))
            raise UserError(f"images must be uint8 (n, {shape}) for this detector (got {images.dtype} {images.shape}).")
        condition = _checked_conditions(condition, len(images), self.conditions)
        # All images share a key: an image's position must not affect its result.
        seed = self._variables[0].seed
        scores: dict[str, Any] = {}
        batches = self._batches(len(images))
        bar = progress_bar(
            len(batches) * (self._searcher.steps + 1),
            progress,
            unit="step" if self._searcher.steps else "batch",
            disable=not progress,
            leave=False,
        )
        for indices in batches:
            batch, keys = _make_batch(seed, self.inside(images[indices]), condition[indices])
            batch = self._searcher(*self._variables, batch, keys, bar.update)
            if self._reconstructs:
                reconstruction, native = self._apply(*self._variables, batch, keys)
                batch_scores = {**self._score_batch(batch.image, reconstruction), "native": native}
            else:
                batch_scores = self._apply(*self._variables, self._statistics_or_any(), batch, keys)
            if self.asymmetry:
                batch_scores["asymmetry"] = self._compute_asymmetry(batch.image, self.asymmetry)
            if not scores:
                scores = jax.tree.map(lambda x: np.empty((len(images), *x.shape[1:]), x.dtype), batch_scores)
            for target, values in zip(*map(jax.tree.leaves, (scores, batch_scores)), strict=True):
                target[indices[0] : indices[-1] + 1] = np.asarray(values)[: indices[-1] + 1 - indices[0]]
            bar.update()
        bar.close()
        # NaN reaches no threshold, so it would be called normal.
        if n_invalid := int((~np.isfinite(scores["by_name"][self._names[0]])).sum()):
            raise UserError(
                f"{n_invalid} of {len(images)} images have no finite score: what the networks return is NaN or "
                "infinite. Train again, in float32 or at a lower learning rate."
            )
        if self.statistics is None:
            scores["by_name"].pop(CALIBRATED, None)
        elif self.asymmetry:
            scores["by_name"][CALIBRATED] += scores["asymmetry"]
        return Scores(self.name, **scores)

    def score_and_map(
        self, images: UInt8[Array, "b h w c"], condition: Int[Array, "b"]
    ) -> tuple[Float[Array, "b"], Float[Array, "b h w"]]:
        """Returns the score that decides and the error map of a batch, by operations that JAX can trace and export.

        Unlike `score`, it checks nothing. It is not for detectors with a latent search.
        """
        keys = jnp.broadcast_to(jax.random.key(self._variables[0].seed), images.shape[:1])
        batch, statistics = Batch(self.inside(images) / 255, condition), self._statistics_or_any()
        scores: Any
        if self._reconstructs:
            reconstruction, _ = self._apply_traced(*self._variables, batch, keys)
            compared = batch.image, reconstruction
            scores = self._compute_traced(self._vgg16, self.formula.weights, statistics, *compared)
        else:
            scores = self._apply_traced(*self._variables, statistics, batch, keys)
        score = scores["by_name"][self.name]
        if self.asymmetry and self.name == CALIBRATED:
            score = score + asymmetry_score(batch.image, self.asymmetry)
        return score, scores["error_map"]

    def fit(
        self,
        images: UInt8[np.ndarray, "n h w c"] | LazyImages,
        condition: Int[np.ndarray, "n"],
        standardize: bool,
        refits: Refits | None = None,
        use_asymmetry: bool = False,
    ) -> tuple[dict[str, float], MapMoments]:
        """Fits the scores on training images: what the threshold comes from must be other images.

        Args:
          images: uint8; a fixed draw of them is used.
          standardize: whether the formula divides each term by its standard deviation.
          refits: of a detector that is fitted and reconstructs training images too well: returns states fitted on
            parts of these images, each with the indices of images that score it.
          use_asymmetry: whether the calibrated score of reconstructions includes asymmetry.

        Returns:
          The standard deviation of each term's value, and the moments of the terms' maps.

        Raises:
          UserError: an image has no finite score, or a term to standardize is constant.
        """
        self.statistics, self.asymmetry = None, None
        values, moments = [], MapMoments(())
        if CALIBRATED not in self._names:
            return {}, moments
        chosen = fixed_draw(len(images), _MAX_SEARCHED if self.search_steps else _MAX_FITTED)
        drawn, condition = images[chosen], condition[chosen]
        trained = self._variables
        parts = refits(drawn) if refits else [(trained[0], np.arange(len(drawn)))]
        for state, indices in parts:
            self._variables = state, trained[1]
            # Blocks, with their maps, bound the memory.
            for block in np.array_split(indices, -(-len(indices) // _FITTED_TOGETHER)):
                terms = self.score(drawn[block], condition[block], progress="score statistics").terms
                values.append(terms.value)
                moments = moments if moments.names else MapMoments(list(terms.map), self.formula.roi)
                moments.add(terms.map)
        self._variables = trained
        deviations = anomaly_score.standard_deviations(jax.tree.map(lambda *x: np.concatenate(x), *values))
        if standardize:
            self.formula = self.formula.standardized(deviations)
        self.statistics = moments.statistics(self.formula.weights if self._reconstructs else {MAP: 1.0})
        if use_asymmetry and self._reconstructs:
            self.asymmetry = asymmetry_statistics(images)
        return deviations, moments

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

    def compute_terms(
        self, images: Float[np.ndarray, "n h w c"], reconstructions: Float[np.ndarray, "n h w c"]
    ) -> ScoreTerms:
        """Returns the score terms of reconstructions by another method; both arrays are in [0, 1]."""
        parts = []
        for indices in self._batches(len(images)):
            # Committed to the device as in `score`, or the program would be compiled again.
            compared = jax.device_put((images[indices], reconstructions[indices]), self._device)
            terms = self._score_batch(*compared)["terms"]
            parts.append(jax.tree.map(partial(_first, indices[-1] + 1 - indices[0]), terms))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _batches(self, n_images):
        """Returns the indices of each batch: of the full size, or of one image, as each size compiles the programs.

        A CPU takes as long for images one by one as for a batch of them, so that up to half a batch is not filled up.
        An accelerator takes hardly longer for a full batch than for one image. Filling up repeats the last image.
        """
        size = self._batch_size
        alone = max(1, size // 2) if jax.default_backend() == "cpu" else 1
        rest = n_images % size
        single = rest if rest <= alone else 0
        starts = range(0, n_images - single, size)
        batches = [np.arange(start, start + size).clip(max=n_images - 1) for start in starts]
        return batches + [np.array([index]) for index in range(n_images - single, n_images)]

    def _score_batch(self, images, reconstructions):
        statistics = self._statistics_or_any()
        return self._compute_scores(self._vgg16, self.formula.weights, statistics, images, reconstructions)

    def _statistics_or_any(self):
        """Returns the pixel statistics, or any before they are fitted."""
        return self.statistics or PixelStatistics(*np.stack([np.zeros(self.shape[:2]), np.ones(self.shape[:2])]))


@jax.jit
def _make_batch(seed, images, condition):
    """One program, as each operation outside of one would be compiled by itself."""
    return Batch(images / 255, condition), jnp.broadcast_to(jax.random.key(seed), len(images))


def _range(name, values):
    return f"{len(values)} images, {name} {min(values):.4g} to {max(values):.4g}" if len(values) else "no images"


def _first(n, x):
    return np.asarray(x)[:n]


@no_type_check  # wrong input is reported as a UserError
def _checked_conditions(condition, n_images, names):
    """Returns an index for each image, 0 by default. Raises UserError for a wrong number, type or range."""
    if condition is None:
        condition = np.zeros(n_images, np.int32)
    condition = np.asarray(condition)
    if condition.shape != (n_images,) or not np.issubdtype(condition.dtype, np.integer):
        raise UserError(
            f"condition must be an integer array with one index per image: of shape ({n_images},) "
            f"(got {condition.dtype} {condition.shape})."
        )
    # A model without conditions ignores them, and accepts those of its dataset.
    limit = len(names) or np.iinfo(np.int32).max
    if condition.size and not (condition.min() >= 0 and condition.max() < limit):
        raise UserError(
            f"condition must have indices from 0 to {limit - 1} (got {condition.min()} to {condition.max()}). The "
            f"conditions are: {', '.join(names) or 'none'}."
        )
    return condition.astype(np.int32)


def _reconstruct(detector, roi, state, frozen, batch, keys):
    net = inference_net(detector, state, frozen)
    native = detector.native_score and detector.native_score(net, batch, keys)
    reconstruction = detector.reconstruct(net, batch, keys)
    if roi is not None:
        reconstruction = jnp.where(roi[:, :, None], reconstruction, 0)
    return reconstruction, native


def _score_and_map(detector, roi, state, frozen, statistics, batch, keys):
    """The scores of a detector that does not reconstruct."""
    score, anomaly_map = detector.score_and_map(inference_net(detector, state, frozen), batch, keys)
    anomaly_map = blank_outside(anomaly_map, roi)
    by_name = {NATIVE: score, CALIBRATED: calibrated_score(anomaly_map, statistics, roi)}
    return {
        "by_name": {name: by_name[name] for name in score_names(detector)},
        "terms": ScoreTerms({}, {MAP: anomaly_map}),
        "error_map": anomaly_map,
        "reconstruction": None,
    }


def _compute_scores(vgg16, reduction, roi, vgg16_variables, weights, statistics, image, reconstruction):
    features = vgg16 and (vgg16.apply(vgg16_variables, image), vgg16.apply(vgg16_variables, reconstruction))
    terms = anomaly_score.terms(image, reconstruction, features, roi)
    formula = ScoreFormula(weights, reduction, roi)
    return {
        "by_name": anomaly_score.scores(formula, terms, statistics),
        "terms": terms,
        "error_map": smooth(anomaly_score.combined_map(formula, terms), DISPLAY_SIGMA, roi),
        "reconstruction": jnp.round(reconstruction * 255).astype(jnp.uint8),
    }
