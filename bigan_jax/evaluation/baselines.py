"""Training-free baselines: how well simple statistics of an image detect anomalies, by the models' split and score."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, UInt8

from bigan_jax.data.streaming import LazyImages, fixed_draw
from bigan_jax.data.thumbnails import corners, thumbnails
from bigan_jax.errors import UserError
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.anomaly_score import ScoreFormula, ScoreTerms
from bigan_jax.evaluation.calibrated_score import MapMoments, PixelStatistics
from bigan_jax.evaluation.result import CALIBRATED, PAPER
from bigan_jax.metrics.image import auroc
from bigan_jax.nn import classical

ComputeTerms = Callable[[Float[np.ndarray, "m h w c"], Float[np.ndarray, "m h w c"]], ScoreTerms]
Reconstructions = dict[str, Float[np.ndarray, "m f"]]  # flattened, by baseline
BaselineScores = dict[str, Float[np.ndarray, "m"]]

BLOCK = 64  # test images per step, which fit into a CPU's cache
MAX_STREAMED = 2048  # training images that are read if the complete set does not fit into memory
SIGN_FREE = ("mean_intensity", "corner_pixels")  # either sign of a brightness may separate the classes
THUMBNAIL_CENTER = np.float32(0.5)  # subtracted before sums of powers, which lose digits far from 0
_FOLDS = 5
_MAX_CROSS_FITTED = 512  # training images that the pixel statistics of the calibrated score come from

TrainingImages = UInt8[np.ndarray, "n h w c"] | LazyImages


def fitting_images(train: TrainingImages) -> UInt8[np.ndarray, "m h w c"]:
    """Returns the training images to fit on: all, or a fixed draw of MAX_STREAMED LazyImages."""
    if isinstance(train, np.ndarray) or len(train) <= MAX_STREAMED:
        return train[:]
    return train[fixed_draw(len(train), MAX_STREAMED)]


def fitting_note(train: TrainingImages) -> tuple[str, ...]:
    """Returns a note for the report if `fitting_images` leaves images out."""
    if isinstance(train, np.ndarray) or len(train) <= MAX_STREAMED:
        return ()
    return (f"the baselines were fitted on {MAX_STREAMED} of the {len(train)} training images",)


def baseline_scores(
    train: UInt8[np.ndarray, "n h w c"],
    test: UInt8[np.ndarray, "m _ _ _"],
    compute_terms: ComputeTerms,
    formula: ScoreFormula,
    asymmetry: Float[np.ndarray, "m"] | None = None,
) -> dict[str, BaselineScores]:
    """Returns anomaly scores of the test images by seven baselines, fitted on `train` alone.

    `mean_image`, `pca_8`, `pca_64` and `nearest_neighbor` reconstruct an image by the mean training image, the
    projection on the first principal components (fewer if there are fewer images) clipped to [0, 1], and the nearest
    training image by L2; they have the models' scores. `mahalanobis_16` is the squared Mahalanobis distance
    (Ledoit-Wolf) of 16x16 thumbnails. `mean_intensity` and `corner_pixels` are the mean of the image and of its
    corners, in [0, 1].

    Args:
      compute_terms: returns the score terms of images and reconstructions in [0, 1]; called with about BLOCK images.
      formula: of the models' scores.
      asymmetry: of the test images, if the models' calibrated score includes it.

    Returns:
      The scores by SCORE_NAMES and baseline.

    Raises:
      UserError: there are fewer than two training images or no test image, or shapes differ.
    """
    if len(train) < 2:
        raise UserError(f"the baselines require at least two training images (got {len(train)}).")
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"training and test images must have one shape (got {train.shape[1:]} and {test.shape[1:]}).")
    if len(test) == 0:
        raise UserError("the baselines require at least one test image (got none).")
    unit_train = _unit(train)
    statistics = _cross_fitted_statistics(unit_train, compute_terms, formula)
    reconstruct = _fit_reconstructions(unit_train)
    small = thumbnails(unit_train).astype(np.float64) - THUMBNAIL_CENTER
    normal, _ = classical.ledoit_wolf(classical.moment_sums(small, np.ones(len(small))))
    parts: dict[str, list[BaselineScores]] = {PAPER: [], CALIBRATED: []}
    for images in map(_unit, _blocks(test)):
        same = {
            "mahalanobis_16": np.square(classical.whitened(thumbnails(images) - THUMBNAIL_CENTER, normal)).sum(1),
            "mean_intensity": images.mean((1, 2, 3)),
            "corner_pixels": corners(images).mean(1),
        }
        by_baseline = {
            name: anomaly_score.scores(formula, compute_terms(images, x.reshape(images.shape)), statistics[name])
            for name, x in reconstruct(images).items()
        }
        for score, part in parts.items():
            part.append({name: np.asarray(values[score]) for name, values in by_baseline.items()} | same)
    scores = {
        score: {name: np.concatenate([block[name] for block in part]) for name in part[0]}
        for score, part in parts.items()
    }
    if asymmetry is not None:
        scores[CALIBRATED] |= {name: scores[CALIBRATED][name] + asymmetry for name in statistics}
    return scores


def _fit_reconstructions(train: Float[np.ndarray, "n h w c"]) -> Callable[[np.ndarray], Reconstructions]:
    """Fits the baselines that reconstruct; returns a function of further images."""
    flat_train = train.reshape(len(train), -1)
    mean = flat_train.mean(0)
    among = classical.neighbors(flat_train, mean)
    axes = classical.principal_axes(flat_train - mean, 64)

    def reconstruct(images: np.ndarray) -> Reconstructions:
        flat = images.reshape(len(images), -1)
        return {
            "mean_image": np.broadcast_to(mean, flat.shape),
            "pca_8": np.asarray(classical.project(flat, mean, axes[:8])),
            "pca_64": np.asarray(classical.project(flat, mean, axes)),
            "nearest_neighbor": flat_train[classical.nearest(flat, among)],
        }

    return reconstruct


def _cross_fitted_statistics(
    train: Float[np.ndarray, "n h w c"], compute_terms: ComputeTerms, formula: ScoreFormula
) -> dict[str, PixelStatistics]:
    """Returns the pixel statistics of each baseline that reconstructs.

    The maps of a fold come from baselines that were fitted on the other folds: those that know an image reconstruct it
    too well, and the nearest image of a training image is itself. Folds are contiguous, since neighbors in the order of
    names may be slices or frames of one thing.
    """
    train = train[fixed_draw(len(train), _MAX_CROSS_FITTED)]
    moments: dict[str, MapMoments] = {}
    fold = np.arange(len(train)) * _FOLDS // len(train)
    for k in np.unique(fold):
        reconstruct = _fit_reconstructions(train[fold != k])
        for images in _blocks(train[fold == k]):
            for name, x in reconstruct(images).items():
                maps = compute_terms(images, x.reshape(images.shape)).map
                moments.setdefault(name, MapMoments(list(maps), formula.roi)).add(maps)
    return {name: m.statistics(formula.weights) for name, m in moments.items()}


def _blocks(images: np.ndarray) -> list[np.ndarray]:
    """Cuts images into blocks of nearly one size: a small last one would make the score compile again."""
    return np.array_split(images, -(-len(images) // BLOCK))


def with_better_sign(scores: Mapping[str, Float[np.ndarray, "m"]], label: Bool[np.ndarray, "m"]) -> BaselineScores:
    """Returns the scores of each baseline; those in SIGN_FREE have the sign of the higher AUROC on these labels."""

    def ranks_backward(name, score):
        area = auroc(score, label) if name in SIGN_FREE else None
        return area is not None and area < 0.5

    return {name: -score if ranks_backward(name, score) else score for name, score in scores.items()}


def baseline_aurocs(
    scores: Mapping[str, Float[np.ndarray, "m"]], label: Bool[np.ndarray, "m"]
) -> dict[str, float | None]:
    """Returns the AUROC of each baseline; None with one class.

    Those in SIGN_FREE get the better sign by the test labels, which favors the baseline over a model.
    """
    return {name: auroc(score, label) for name, score in with_better_sign(scores, label).items()}


def _unit(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    return np.divide(images, np.float32(255), dtype=np.float32)
