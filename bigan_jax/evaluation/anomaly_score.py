"""Anomaly scores: weighted sums of terms, each with a value and an error map per image.

Every image gets two scores from one reconstruction. The paper's is 0.7 squared error + 0.3 (1 - SSIM) (Sec. III). The
calibrated one compares each pixel of the same map with normal images (calibrated_score.py). A new term is an entry of
TERMS and its weight in configs/common.py.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.evaluation.calibrated_score import MapMoments, PixelStatistics, calibrated_score
from bigan_jax.evaluation.result import CALIBRATED, PAPER, PAPER_WEIGHTS, SCORE_NAMES, ScoreTableRow
from bigan_jax.metrics.image import auroc
from bigan_jax.nn import losses, ssim
from bigan_jax.nn.pixel_statistics import Roi, blank_outside, mean_inside
from bigan_jax.nn.resizing import resize_linear

AnyArray = Array | np.ndarray
Images = Float[Array, "b h w c"]  # in [0, 1]
Values = Float[AnyArray, "b"]
Maps = Float[AnyArray, "b h w"]
Features = tuple[Sequence[Array], Sequence[Array]]  # of images and reconstructions, by VGG16: [b h' w' c'] each


class ScoreTerm(NamedTuple):
    """A term of the score."""

    label: str  # its name in the report
    column: str  # its column of scores.csv
    value_and_map: Callable[[Images, Images, Features | None], tuple[Values, Maps]]  # of images and reconstructions
    needs_features: bool = False  # whether it compares VGG16 features, which may be None otherwise


def _squared_error(image, reconstruction, _features):
    squares = jnp.square(image - reconstruction).mean(-1)
    return squares.mean((1, 2)), squares


def _ssim_error(image, reconstruction, _features):
    """The value is that of dm-pix, over complete windows only; the map extends to the edges."""
    return ssim.ssim_error_and_map(image, reconstruction)


def _perceptual(image, _reconstruction, features):
    """The map averages squared differences over channels and layers, enlarged linearly."""
    layers = []
    for x, y in zip(*features, strict=True):
        error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)).mean(-1)
        layers.append(resize_linear(error, *image.shape[1:3]))
    return losses.perceptual(*features), jnp.stack(layers).mean(0)


TERMS = {
    "mse": ScoreTerm("squared error", "mse", _squared_error),
    "ssim": ScoreTerm("1 - SSIM", "ssim_error", _ssim_error),
    "perceptual": ScoreTerm("VGG16 feature distance", "perceptual", _perceptual, True),
}
SYMMETRY_MODES = ("auto", "on", "off")
REDUCTIONS = ("mean", "max", "top1")  # of the paper's score
_BLOCK = 16  # images whose combined maps are reduced together: they fit into a CPU's cache

TABLE_NOTE = (
    "Each row is another way to score the same reconstructions. To pick the best of them by its AUROC on the test "
    "set is an oracle: it has seen the labels."
)


class ScoreFormula(NamedTuple):
    """The definition of the paper's score, whose weights the calibrated score shares."""

    weights: Mapping[str, float]  # by term; a missing term has no part in the score
    reduction: str = "mean"  # "mean": the weighted sum of the terms' values; or a reduction of the combined map
    roi: Roi = None  # the pixels that count

    def standardized(self, deviations: Mapping[str, float]) -> "ScoreFormula":
        """Returns the formula that divides each term by its standard deviation; raises UserError if one is 0."""
        if constant := [name for name in self.weights if not deviations[name] > 0]:
            raise UserError(
                "config.score.standardize divides by the standard deviation over training images, and that of "
                f"{', '.join(constant)} is 0. Use --config.score.standardize=false."
            )
        weights = {name: weight / deviations[name] for name, weight in self.weights.items()}
        return self._replace(weights=weights)


@dataclass(frozen=True)
class ScoreSettings:
    """The fields of `config.score`; raises UserError for an invalid one, as `formula` does."""

    weights: Mapping[str, float]  # by score term
    name: str = CALIBRATED  # the score that decides, one of SCORE_NAMES
    reduction: str = "mean"
    standardize: bool = False  # whether each term is divided by its standard deviation over training images
    unit_features: bool = True  # whether VGG16's features are scaled to unit length before they are compared
    symmetry: str = "auto"  # whether the calibrated score includes asymmetry: where images are symmetric, or on or off

    def __post_init__(self):
        if self.name not in SCORE_NAMES:
            raise unknown_name("config.score.name", self.name, SCORE_NAMES)
        if self.symmetry not in SYMMETRY_MODES:
            raise unknown_name("config.score.symmetry", self.symmetry, SYMMETRY_MODES)
        formula(self.weights, self.reduction)

    @property
    def formula(self) -> ScoreFormula:
        """The score definition before any standardization."""
        return formula(self.weights, self.reduction)


class ScoreTerms(NamedTuple):
    """The values and error maps of images, by term."""

    value: dict[str, Values]
    map: dict[str, Maps]


def formula(weights: Mapping[str, float], reduction: str) -> ScoreFormula:
    """Returns the formula of these weights, without those of 0; raises UserError unless it is valid."""
    if reduction not in REDUCTIONS:
        raise unknown_name("config.score.reduction", reduction, REDUCTIONS)
    for name, weight in weights.items():
        if not (weight >= 0 and math.isfinite(weight)):
            raise UserError(f"config.score.{name} must be a number of at least 0 (got {weight}).")
    if not any(weights.values()):
        names = ", ".join(f"config.score.{name}" for name in weights)
        raise UserError(f"every term of the score has weight 0: raise one of {names}.")
    return ScoreFormula({name: float(w) for name, w in weights.items() if w}, reduction)


def terms(image: Images, reconstruction: Images, features: Features | None = None, roi: Roi = None) -> ScoreTerms:
    """Returns all terms of images; without features, those that need them are left out.

    With a region of interest, maps are 0 outside, and a term's value is the mean of its map inside.
    """
    values, maps = {}, {}
    for name, term in TERMS.items():
        if features is not None or not term.needs_features:
            values[name], maps[name] = term.value_and_map(image, reconstruction, features)
            if roi is not None:
                values[name], maps[name] = mean_inside(maps[name], roi), blank_outside(maps[name], roi)
    return ScoreTerms(values, maps)


def scores(formula: ScoreFormula, terms: ScoreTerms, statistics: PixelStatistics) -> dict[str, Values]:
    """Returns both anomaly scores of each image by SCORE_NAMES. They do not depend on the other images."""
    calibrated = calibrated_score(combined_map(formula, terms), statistics, formula.roi)
    return {PAPER: paper_score(formula, terms), CALIBRATED: calibrated}


def paper_score(formula: ScoreFormula, terms: ScoreTerms) -> Values:
    """Returns the score that the formula defines."""
    if formula.reduction == "mean":
        return _weighted_sum(formula.weights, terms.value)
    return reduce(combined_map(formula, terms), formula.reduction, formula.roi)


def combined_map(formula: ScoreFormula, terms: ScoreTerms) -> Maps:
    """Returns the error maps: the weighted sum of the terms' maps."""
    return _weighted_sum(formula.weights, terms.map)


def reduce(maps: Maps, reduction: str, roi: Roi = None) -> Values:
    """Returns the "max" of each map, or the mean of its highest hundredth of pixels ("top1").

    With a region of interest, maps are 0 outside and not negative.
    """
    flat = maps.reshape(maps.shape[0], -1)
    if reduction == "max":
        return flat.max(1)
    count = math.ceil((flat.shape[1] if roi is None else int(roi.sum())) / 100)
    if isinstance(flat, np.ndarray):  # takes a tenth of the time, and compiles nothing
        return _mean_of_highest(flat, count)
    return lax.top_k(flat, count)[0].mean(1)


def _mean_of_highest(rows, count):
    """Returns the mean of the `count` highest values of each row."""
    # The count-th highest of the column maxima bounds the result: at least `count` values of the row are as high.
    width = min(4 * count, rows.shape[1])
    columns = rows[:, : rows.shape[1] // width * width].reshape(len(rows), -1, width)
    bounds = np.partition(columns.max(1), -count, axis=1)[:, -count]
    candidates = (row[row >= bound] for row, bound in zip(rows, bounds, strict=True))
    highest = (np.partition(values, -count)[-count:] for values in candidates)
    return np.array([values.sum() / count for values in highest], rows.dtype)


def _weighted_sum(weights, values):
    # `sum` would add a zero to every pixel.
    return functools.reduce(operator.add, (weight * values[name] for name, weight in weights.items()))


def standard_deviations(values: Mapping[str, Values]) -> dict[str, float]:
    """Returns the standard deviation of each term's value over images."""
    return {name: float(np.std(np.asarray(v, np.float64))) for name, v in values.items()}


def score_table(
    terms: ScoreTerms,
    label: Bool[np.ndarray, "n"],
    deviations: Mapping[str, float],
    moments: MapMoments,
    used: ScoreSettings,
    asymmetry: Values | None = None,
) -> list[ScoreTableRow]:
    """Returns the AUROC of every score that needs no further reconstruction.

    The scores are each term alone, the paper's sum and the sum in use, both sums with standardized terms as well, and
    each of these by every reduction and as a calibrated score. `deviations` are the terms' standard deviations over
    training images, `moments` those of their maps, and `used` are the settings of the evaluation. All calibrated scores
    include `asymmetry`.
    """
    weights_used = used.formula.weights
    in_use = dict(weights_used) if len(weights_used) > 1 else dict.fromkeys(weights_used, 1.0)
    standardized = used.standardize and len(in_use) > 1  # the unit of a single term ranks nothing
    reduction_used = CALIBRATED if used.name == CALIBRATED else used.reduction
    sums = [PAPER_WEIGHTS]
    if len(in_use) > 1 and in_use != PAPER_WEIGHTS:
        sums.append(in_use)
    definitions = [({name: 1.0}, False) for name in terms.value]
    for weights in sums:
        can_standardize = all(deviations[name] > 0 for name in weights)
        definitions += [(weights, flag) for flag in (False, True) if can_standardize or not flag]
    rows = []
    for weights, flag in definitions:
        formula = ScoreFormula(weights, roi=moments.roi)
        formula = formula.standardized(deviations) if flag else formula
        for reduction, values in _all_scores(formula, terms, moments, asymmetry).items():
            definition = weights, flag, reduction
            row = ScoreTableRow(
                score=next(iter(weights))
                if len(weights) == 1
                else " + ".join(f"{w:g} {n}" for n, w in weights.items()),
                standardize=flag,
                reduction=reduction,
                auroc=auroc(values, label),
                paper=definition == (PAPER_WEIGHTS, False, "mean"),
                used=definition == (in_use, standardized, reduction_used),
            )
            rows.append(row)
    return rows


def _all_scores(formula, terms, moments, asymmetry):
    """Returns the scores by all reductions, and the calibrated one."""
    statistics, roi = moments.statistics(formula.weights), formula.roi
    parts = {name: [] for name in (*REDUCTIONS, CALIBRATED) if name != "mean"}
    for start in range(0, len(next(iter(terms.map.values()))), _BLOCK):
        maps = {name: np.asarray(m[start : start + _BLOCK]) for name, m in terms.map.items()}
        combined = _weighted_sum(formula.weights, maps)
        for name, part in parts.items():
            part.append(
                calibrated_score(combined, statistics, roi) if name == CALIBRATED else reduce(combined, name, roi)
            )
    reduced = {name: np.concatenate(part) for name, part in parts.items()}
    if asymmetry is not None:
        reduced[CALIBRATED] = reduced[CALIBRATED] + asymmetry
    return {"mean": np.asarray(_weighted_sum(formula.weights, terms.value)), **reduced}
