"""Pixel-level metrics of error maps: how well they locate defects. A new metric is an entry of PIXEL_METRICS.

Pixels are counted by the first 16 bits of their error, which takes a twentieth of the time of scikit-learn's curves.
Errors that agree in these bits are ties, which changes a metric by about 0.000001.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import ndimage

from bigan_jax.metrics.thresholds import decide
from bigan_jax.value_checks import require_finite

LEVELS = 1 << 20  # distinct levels of error
_BLOCK = 128  # images per step: allocating memory for more takes longer than the work itself


@dataclass(frozen=True)
class PixelCurve:
    """Cumulative pixel counts at falling levels of error."""

    normal_above: Num[np.ndarray, "k"]  # normal pixels above each level
    normal: Num[np.ndarray, "k"]  # normal pixels at or above each level
    defect: Num[np.ndarray, "k"]  # defect pixels at or above each level
    overlap: Float[np.ndarray, "k"]  # the sum of their `region_weights`
    n_normal: float  # all normal pixels
    limit: float = 0.3  # the false-positive rate up to which AUPRO is taken

    @cached_property
    def false_positive_rate(self) -> Float[np.ndarray, "points"]:
        """The x coordinates of the curve, from 0 to 1: two for each level."""
        rate = _curve(self.normal_above, self.normal) / self.n_normal
        rate[-1] = 1.0
        return rate


class PixelMetric(NamedTuple):
    """A metric of error maps, in [0, 1]: its title in tables, and its value."""

    title: str
    value: Callable[[PixelCurve], float]


def _auroc(curve: PixelCurve) -> float:
    recall = _curve(_shifted(curve.defect), curve.defect) / curve.defect[-1]
    return float(np.trapezoid(recall, curve.false_positive_rate))


def _average_precision(curve: PixelCurve) -> float:
    precision = curve.defect / np.maximum(curve.defect + curve.normal, 1)
    return float(np.sum(np.diff(curve.defect, prepend=0) * precision) / curve.defect[-1])


def _aupro(curve: PixelCurve) -> float:
    """The area under the mean overlap up to the limit, where a jump at the limit is excluded."""
    x, limit = curve.false_positive_rate, curve.limit
    y = _curve(_shifted(curve.overlap), curve.overlap) / curve.overlap[-1]
    beyond = np.searchsorted(x, limit)
    y_limit = np.interp(limit, x[beyond - 1 : beyond + 1], y[beyond - 1 : beyond + 1])
    return float(np.trapezoid(np.append(y[:beyond], y_limit), np.append(x[:beyond], limit)) / limit)


PIXEL_METRICS = {
    "auroc": PixelMetric("AUROC", _auroc),
    "average_precision": PixelMetric("average precision", _average_precision),
    "aupro": PixelMetric("AUPRO", _aupro),
}


def region_weights(masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "d"]:
    """Returns the weight of each defect pixel, in the order of `masks`, in the mean overlap of the defect regions.

    Regions are 8-connected within an image, and all have the same weight. The weights sum to 1.
    """
    masks = masks[masks.any((1, 2))]
    neighbors = np.zeros((3, 3, 3), bool)
    neighbors[1] = True
    regions = np.empty(masks.shape, np.int32)
    ndimage.label(masks, neighbors, output=regions)
    region = regions[masks]
    return 1 / (region.max(initial=1) * np.bincount(region)[region])


def pixel_metrics(
    maps: Num[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    limit: float = 0.3,
    weights: Float[np.ndarray, "d"] | None = None,
) -> dict[str, float | None]:
    """Returns PIXEL_METRICS of error maps by name; all None unless there are both defect and normal pixels.

    AUPRO is the area under the mean overlap of the defect regions over the false-positive rate from 0 to `limit`,
    divided by `limit` (Bergmann et al., MVTec AD). `weights` are the `region_weights` of the masks, if known. An error
    that is not finite raises ValueError.
    """
    if np.issubdtype(maps.dtype, np.floating):
        require_finite(maps, "error map")
    if masks.all() or not masks.any():
        return dict.fromkeys(PIXEL_METRICS)
    normal, defect_levels = _histograms(maps, masks)
    weights = region_weights(masks) if weights is None else weights
    level = np.flatnonzero(np.bincount(defect_levels))[::-1]
    defect, overlap = (np.bincount(defect_levels, w)[level] for w in (None, weights))
    cumulative = np.cumsum(normal)
    normal_above = cumulative[-1] - cumulative[level]
    curve = PixelCurve(
        normal_above, normal_above + normal[level], np.cumsum(defect), np.cumsum(overlap), float(cumulative[-1]), limit
    )
    return {name: metric.value(curve) for name, metric in PIXEL_METRICS.items()}


def dice(maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"], threshold: float) -> float | None:
    """Returns the Dice coefficient (pixel F1) over the pixels of all images; None without a defect pixel."""
    called, n_defect = decide(maps, threshold), np.count_nonzero(masks)
    if not n_defect:
        return None
    return float(2 * np.count_nonzero(called & masks) / (np.count_nonzero(called) + n_defect))


def _histograms(maps, masks):
    """Returns the number of normal pixels at each level, and the level of each defect pixel."""
    level_of = levels(maps)
    pixels, defect = np.zeros(LEVELS, np.int64), []
    for start in range(0, len(maps), _BLOCK):
        block = slice(start, start + _BLOCK)
        level = level_of(maps[block])
        pixels += np.bincount(level.ravel(), minlength=LEVELS)
        defect.append(level[masks[block]])
    defect = np.concatenate(defect)
    return pixels - np.bincount(defect, minlength=LEVELS), defect


def levels(maps: Num[np.ndarray, "n h w"]) -> Callable[[Num[np.ndarray, "..."]], Int[np.ndarray, "..."]]:
    """Returns a function from errors of these maps to levels, integers from 0 to LEVELS - 1.

    A level is the first 16 bits of an error above the lowest one. Errors below the highest one by more than a factor
    of 2^32 share the lowest level. Integers in a narrow range are levels as they are.
    """
    least, highest = maps.min(), maps.max()
    if np.issubdtype(maps.dtype, np.integer) and int(highest) - int(least) < LEVELS:
        return lambda errors: np.subtract(errors, least, dtype=np.int32)

    def bits(errors):  # the bits of a non-negative float rise with its value
        return np.subtract(errors, least, dtype=np.float32).view(np.int32) >> 8

    lowest = max(int(bits(highest)) - LEVELS + 1, 0)
    return lambda errors: np.maximum(bits(errors) - lowest, 0)


def _shifted(counts):
    return np.append(0, counts[:-1])


def _curve(before, at):
    """Returns the points of a curve from its start to its end, two for each level."""
    return np.concatenate([[0], np.stack([before, at], 1).ravel(), [at[-1]]])
