"""The anomaly score: a weighted sum of terms, each a number and a map. Pure functions, no network.

A map gives a pixel's error at the picture's resolution. The terms are the squared error, 1 - SSIM
and the squared difference of VGG16's features; the paper takes 0.7 of the first and 0.3 of the
second (Sec. III).
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.metrics.image import auroc
from bigan_jax.nn import losses, ssim

TERMS = ("mse", "ssim", "perceptual")
REDUCTIONS = ("mean", "max", "top1")
_PAPER = {"mse": 0.7, "ssim": 0.3}
_SLICE = 16  # pictures whose combined maps are worked on at once: they fit into a CPU's cache

TABLE_NOTE = (
    "Each row is another way to score the same reconstructions. To pick the best of them by its "
    "AUROC on the test set is an oracle: it has seen the labels."
)


class ScoreFormula(NamedTuple):
    """How terms become a score.

    weights: by term; what is not named has no part.
    reduction: "mean" of the terms, or of the combined map "max" or "top1", the mean of its
      highest hundredth of pixels.
    """

    weights: Mapping[str, float]
    reduction: str = "mean"

    def divided_by(self, spread: Mapping[str, float]) -> "ScoreFormula":
        """The formula of terms that are each divided by their spread first."""
        flat = [name for name in self.weights if not spread[name] > 0]
        if flat:
            raise UserError(
                f"config.score.standardize: {', '.join(flat)} does not vary over the calibration "
                "pictures, so there is nothing to divide by. Set more normal pictures aside."
            )
        weights = {name: weight / spread[name] for name, weight in self.weights.items()}
        return self._replace(weights=weights)


@dataclass(frozen=True)
class ScoreSettings:
    """The fields of `config.score`, checked.

    Attributes:
      weights: by score term; at least one is above 0.
      reduction: one of REDUCTIONS.
      standardize: whether each term is divided by its standard deviation over calibration images.
      unit_features: whether VGG16's features are scaled to unit length before they are compared.

    Raises:
      UserError: an unknown reduction, a negative weight, or no weight above 0.
    """

    weights: Mapping[str, float]
    reduction: str = "mean"
    standardize: bool = False
    unit_features: bool = True

    def __post_init__(self):
        formula(self.weights, self.reduction)

    @property
    def formula(self) -> ScoreFormula:
        """The score definition before any standardization."""
        return formula(self.weights, self.reduction)

    def as_dict(self) -> dict:
        """The settings as `config.score` has them."""
        others = {n: getattr(self, n) for n in ("unit_features", "standardize", "reduction")}
        return {**self.weights, **others}


class ScoreTerms(NamedTuple):
    """What a score is made of, by term."""

    value: dict[str, Float[Array, "b"]]
    map: dict[str, Float[Array, "b h w"]]


def formula(weights: Mapping[str, float], reduction: str) -> ScoreFormula:
    """The formula of those weights, without terms of weight 0.

    Raises UserError for a reduction that there is not, a weight below 0, or none above.
    """
    if reduction not in REDUCTIONS:
        raise unknown_name("config.score.reduction", reduction, REDUCTIONS)
    for name, weight in weights.items():
        if not (weight >= 0 and math.isfinite(weight)):
            raise UserError(f"config.score.{name}={weight}: a weight is a number from 0 up.")
    if not any(weights.values()):
        names = ", ".join(f"config.score.{name}" for name in weights)
        raise UserError(f"every term of the score has weight 0: raise one of {names}.")
    return ScoreFormula({name: float(w) for name, w in weights.items() if w}, reduction)


def terms(
    image: Float[Array, "b h w c"],
    reconstruction: Float[Array, "b h w c"],
    features: tuple[Sequence[Array], Sequence[Array]] | None = None,
) -> ScoreTerms:
    """All terms of pictures in [0, 1]; "perceptual" where VGG16's features of both are given.

    SSIM's value is dm-pix's, over windows that lie wholly inside; its map goes on to the edges.
    """
    squares = jnp.square(image - reconstruction).mean(-1)
    ssim_error, ssim_map = ssim.ssim_error_and_map(image, reconstruction)
    value = {"mse": squares.mean((1, 2)), "ssim": ssim_error}
    maps = {"mse": squares, "ssim": ssim_map}
    if features is not None:
        value["perceptual"] = losses.perceptual(*features)
        maps["perceptual"] = _feature_map(*features, image.shape[1:3])
    return ScoreTerms(value, maps)


def _feature_map(features, others, size):
    """Squared differences, averaged over channels and layers, smoothly enlarged."""
    layers = []
    for x, y in zip(features, others, strict=True):
        error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)).mean(-1)
        layers.append(jax.image.resize(error, (len(error), *size), "linear"))
    return jnp.stack(layers).mean(0)


def score(formula: ScoreFormula, terms: ScoreTerms) -> Float[Array, "b"]:
    """The anomaly score of each picture. Nothing in it depends on the other pictures."""
    if formula.reduction == "mean":
        return _weighted(formula.weights, terms.value)
    return reduce(combined_map(formula, terms), formula.reduction)


def combined_map(formula: ScoreFormula, terms: ScoreTerms) -> Float[Array, "b h w"]:
    """The error map: the terms' maps, combined as the score is."""
    return _weighted(formula.weights, terms.map)


def reduce(maps: Float[Array, "b h w"], reduction: str) -> Float[Array, "b"]:
    """The "max", or the mean of the highest hundredth of pixels ("top1"), of each map."""
    flat = maps.reshape(len(maps), -1)
    if reduction == "max":
        return flat.max(1)
    count = math.ceil(flat.shape[1] / 100)
    if isinstance(flat, np.ndarray):  # a tenth of the time, and nothing to compile
        return _mean_of_highest(flat, count)
    return lax.top_k(flat, count)[0].mean(1)


def _mean_of_highest(rows, count):
    """The mean of the `count` highest values of each row, which is longer."""
    # So many columns' maxima are values of the row: it has as many at least as high.
    width = min(4 * count, rows.shape[1])
    columns = rows[:, : rows.shape[1] // width * width].reshape(len(rows), -1, width)
    least = np.partition(columns.max(1), -count, axis=1)[:, -count]
    high = (row[row >= bound] for row, bound in zip(rows, least, strict=True))
    highest = (np.partition(values, -count)[-count:] for values in high)
    return np.array([values.sum() / count for values in highest], rows.dtype)


def _weighted(weights, values):
    parts = (weight * values[name] for name, weight in weights.items())
    return functools.reduce(operator.add, parts)  # `sum` would add a zero to every pixel


def spread(terms: ScoreTerms) -> dict[str, float]:
    """Each term's standard deviation over pictures: over the calibration normals, a unit for it."""
    return {name: float(np.std(np.asarray(v, np.float64))) for name, v in terms.value.items()}


def score_table(
    terms: ScoreTerms,
    label: Bool[np.ndarray, "n"],
    spread: Mapping[str, float],
    used: ScoreFormula,
    standardized: bool,
) -> list[dict]:
    """The AUROC of every score that costs no further reconstruction.

    Each term alone, the paper's sum and the one in use, the sums with standardized terms as well,
    each by every reduction.

    terms: of the test pictures. spread: of each term over the calibration normals.
    used, standardized: what the evaluation goes by; weights as they were before.
    """
    in_use = dict(used.weights) if len(used.weights) > 1 else dict.fromkeys(used.weights, 1.0)
    sums = [_PAPER] if in_use == _PAPER or len(in_use) == 1 else [_PAPER, in_use]
    ways = [({name: 1.0}, False) for name in terms.value]
    for weights in sums:
        varied = all(spread[name] > 0 for name in weights)
        ways += [(weights, flag) for flag in (False, True) if varied or not flag]
    standardized = standardized and len(in_use) > 1  # one term is ranked alike by any unit
    rows = []
    for weights, flag in ways:
        formula = ScoreFormula(weights).divided_by(spread) if flag else ScoreFormula(weights)
        scores = {"mean": score(formula, terms), **_peaks(formula, terms)}
        for reduction in REDUCTIONS:
            asked = weights, flag, reduction
            rows.append(
                {
                    "score": _words(weights),
                    "standardize": flag,
                    "reduction": reduction,
                    "auroc": auroc(np.asarray(scores[reduction]), label),
                    "paper": asked == (_PAPER, False, "mean"),
                    "used": asked == (in_use, standardized, used.reduction),
                }
            )
    return rows


def _peaks(formula, terms):
    """The reductions that look at the combined map, a slice of pictures at a time."""
    parts = {name: [] for name in REDUCTIONS if name != "mean"}
    for start in range(0, len(terms.map["mse"]), _SLICE):
        maps = {name: m[start : start + _SLICE] for name, m in terms.map.items()}
        combined = _weighted(formula.weights, maps)
        for name, part in parts.items():
            part.append(reduce(combined, name))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _words(weights):
    if len(weights) == 1:
        return next(iter(weights))
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
