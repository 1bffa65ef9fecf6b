"""Pixel-level metrics of error maps: how well they locate defects. The table is PIXEL_METRICS.

scikit-learn's curves sort every pixel together with its label, and a thousand images have 16 million pixels. Here
pixels are counted by the first 16 bits of their error, which takes a twentieth of the time, and only the few defect
pixels are sorted. Errors that agree in these bits are ties; this changes a metric by about 0.000001.

A new metric is an entry of PIXEL_METRICS: evaluation.json, bootstrap intervals, the report and comparisons go over
the entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped
from scipy import ndimage

from bigan_jax.metrics.thresholds import decide
from bigan_jax.validation import require_finite

LEVELS = 1 << 20  # distinct levels of error
_BLOCK = 128  # images per step: allocating memory for more takes longer than the work itself


@dataclass(frozen=True)
class PixelCurve:
    """Cumulative pixel counts at falling levels of error.

    Attributes:
      normal_above: the number of normal pixels above each level.
      normal: the number of normal pixels at or above each level.
      defect: the number of defect pixels at or above each level.
      overlap: the sum of the `region_weights` of these defect pixels.
      n_normal: the number of all normal pixels.
      limit: the false-positive rate up to which AUPRO is taken.
    """

    normal_above: Num[np.ndarray, "k"]
    normal: Num[np.ndarray, "k"]
    defect: Num[np.ndarray, "k"]
    overlap: Float[np.ndarray, "k"]
    n_normal: float
    limit: float = 0.3

    @cached_property
    def false_positive_rate(self) -> Float[np.ndarray, "2k+2"]:
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
    area = np.trapezoid(np.append(y[:beyond], y_limit), np.append(x[:beyond], limit))
    return float(area / limit)


PIXEL_METRICS = {
    "auroc": PixelMetric("AUROC", _auroc),
    "average_precision": PixelMetric("average precision", _average_precision),
    "aupro": PixelMetric("AUPRO", _aupro),
}


def region_weights(masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "d"]:
    """Returns the weight of each defect pixel in the mean overlap of the defect regions.

    Regions are 8-connected within an image, and all have the same weight, whatever their size. The weights are in the
    order of `masks` and sum to 1.
    """
    masks = masks[masks.any((1, 2))]
    neighbors = np.zeros((3, 3, 3), bool)
    neighbors[1] = True
    region, n_regions = ndimage.label(masks, neighbors)
    region = region[masks]
    return 1 / (n_regions * np.bincount(region)[region])


def pixel_metrics(
    maps: Num[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    limit: float = 0.3,
    weights: Float[np.ndarray, "d"] | None = None,
) -> dict[str, float | None]:
    """Returns pixel AUROC, pixel average precision and AUPRO of error maps, each in [0, 1].

    AUPRO is the area under the mean overlap of the defect regions over the false-positive rate from 0 to `limit`,
    divided by `limit` (Bergmann et al., MVTec AD).

    Args:
      maps: finite errors. Include normal images; leave out anomalous images without a mask.
      masks: True for defect pixels.
      limit: of AUPRO.
      weights: `region_weights` of the masks, if known.

    Returns:
      PIXEL_METRICS by name; all None unless there are both defect and normal pixels.

    Raises:
      ValueError: an error is not finite.
    """
    maps, masks = np.asarray(maps), np.asarray(masks, bool)
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
        normal_above, normal_above + normal[level], np.cumsum(defect), np.cumsum(overlap), cumulative[-1], limit
    )
    return {name: metric.value(curve) for name, metric in PIXEL_METRICS.items()}


def dice(maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"], threshold: float) -> float | None:
    """Returns the Dice coefficient (pixel F1) at a threshold, over the pixels of all images.

    The result is None without a defect pixel.
    """
    n_defect = np.count_nonzero(masks)
    if not n_defect:
        return None
    called = decide(maps, threshold)
    n_called = np.count_nonzero(called)
    return float(2 * np.count_nonzero(called & masks) / (n_called + n_defect))


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


def _shifted(counts: Shaped[np.ndarray, "k"]) -> Shaped[np.ndarray, "k"]:
    return np.append(0, counts[:-1])


def _curve(before, at):
    """Returns the points of a curve from its start to its end, two for each level."""
    return np.concatenate([[0], np.stack([before, at], 1).ravel(), [at[-1]]])
