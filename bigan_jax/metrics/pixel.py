"""How well error maps tell where a defect is.

scikit-learn's curves sort every pixel together with its label; a thousand pictures have 16 million.
Here pixels are counted by the first 16 bits of their error, in a twentieth of the time, and only
the few defect pixels are sorted. Errors that agree in these bits are ties, as equal ones are: that
moves a figure by some 0.000001.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import ndimage

from bigan_jax.metrics.thresholds import decide
from bigan_jax.validation import require_finite

LEVELS = 1 << 20  # of error that are told apart
_TOGETHER = 128  # pictures at a time: new memory takes longer than what is done in it
NOTHING = {"auroc": None, "average_precision": None, "aupro": None}


def region_shares(masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "d"]:
    """Of each defect pixel, in the masks' order, its share in the mean overlap of the defect
    regions: 8-connected, each counting the same whatever its size."""
    masks = masks[masks.any((1, 2))]
    within_a_picture = np.zeros((3, 3, 3), bool)
    within_a_picture[1] = True
    region, regions = ndimage.label(masks, within_a_picture)
    region = region[masks]
    return 1 / (regions * np.bincount(region)[region])


def pixel_metrics(
    maps: Num[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    limit: float = 0.3,
    shares: Float[np.ndarray, "d"] | None = None,
) -> dict[str, float | None]:
    """Pixel AUROC, pixel average precision and AUPRO of error maps, each in [0, 1].

    AUPRO is the area under the mean overlap of the defect regions over the false-positive rate
    from 0 to `limit`, divided by `limit` (Bergmann et al., MVTec AD). Normal pictures take part
    with an empty mask; the caller leaves out anomalous ones without a mask. All None unless there
    are defect and other pixels.

    shares: what `region_shares` made of the masks, where several maps share them.

    Raises:
      ValueError: an error that is not finite.
    """
    maps, masks = np.asarray(maps), np.asarray(masks, bool)
    if np.issubdtype(maps.dtype, np.floating):
        require_finite(maps, "error map")
    if masks.all() or not masks.any():
        return dict(NOTHING)
    normal, defect = _histograms(maps, masks)
    shares = region_shares(masks) if shares is None else shares
    value = np.flatnonzero(np.bincount(defect))
    found, overlap = (np.bincount(defect, weights)[value] for weights in (None, shares))
    passed = np.cumsum(normal)

    # At each error of a defect pixel, from high to low: what is called from it on, and before it.
    value, found, overlap = value[::-1], np.cumsum(found[::-1]), np.cumsum(overlap[::-1])
    before = passed[-1] - passed[value]
    return curve_areas(before, before + normal[value], found, overlap, passed[-1], limit)


def curve_areas(
    before: Num[np.ndarray, "k"],
    alarms: Num[np.ndarray, "k"],
    found: Num[np.ndarray, "k"],
    overlap: Float[np.ndarray, "k"],
    normal: float,
    limit: float = 0.3,
) -> dict[str, float]:
    """Pixel AUROC, pixel average precision and AUPRO from counts at falling levels of error.

    before, alarms: the normal pixels above each level, and from it on. found: the defect pixels
    from it on. overlap: their shares (`region_shares`). normal: how many normal pixels there are.
    """
    precision = found / np.maximum(found + alarms, 1)
    average_precision = np.sum(np.diff(found, prepend=0) * precision) / found[-1]

    rate = _curve(before, alarms) / normal
    rate[-1] = 1.0
    recall, overlap = (_curve(_before(part), part) / part[-1] for part in (found, overlap))
    return {
        "auroc": float(np.trapezoid(recall, rate)),
        "average_precision": float(average_precision),
        "aupro": float(_area_to(limit, rate, overlap) / limit),
    }


def dice(
    maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"], threshold: float
) -> float | None:
    """Dice's coefficient (pixel F1) of the pixels that reach the threshold, over all pictures
    together; None without a defect pixel."""
    size = np.count_nonzero(masks)
    if not size:
        return None
    called = decide(maps, threshold)
    return 2 * np.count_nonzero(called & masks) / (np.count_nonzero(called) + size)


def _histograms(maps, masks):
    """How many normal pixels there are at each level of error, and each defect pixel's level."""
    level_of = levels(maps)
    normal, defect = np.zeros(LEVELS, np.int64), []
    for start in range(0, len(maps), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        level = level_of(maps[part])
        normal += np.bincount(level.ravel(), minlength=LEVELS)
        defect.append(level[masks[part]])
    defect = np.concatenate(defect)
    return normal - np.bincount(defect, minlength=LEVELS), defect


def levels(
    maps: Num[np.ndarray, "n h w"],
) -> Callable[[Num[np.ndarray, "..."]], Int[np.ndarray, "..."]]:
    """What gives some of the maps' errors their levels, numbers below LEVELS.

    A level is what the first 16 bits of errors above the least have in common. Those below the
    highest error by a factor of 2^32 share the lowest. Whole numbers are levels as they are.
    """
    least, highest = maps.min(), maps.max()
    if np.issubdtype(maps.dtype, np.integer) and int(highest) - int(least) < LEVELS:
        return lambda errors: np.subtract(errors, least, dtype=np.int32)

    def bits(errors):  # of a float: they rise with it, from 0 on
        return np.subtract(errors, least, dtype=np.float32).view(np.int32) >> 8

    lowest = max(int(bits(highest)) - LEVELS + 1, 0)
    return lambda errors: np.maximum(bits(errors) - lowest, 0)


def _before(counts):
    return np.append(0, counts[:-1])


def _curve(before, at):
    """Points of a curve from its start to its end, two at each value: before it and at it."""
    return np.concatenate([[0], np.stack([before, at], 1).ravel(), [at[-1]]])


def _area_to(limit, x, y):
    """The area under a curve up to x = limit, where a jump at the limit itself does not count."""
    beyond = np.searchsorted(x, limit)
    y_limit = np.interp(limit, x[beyond - 1 : beyond + 1], y[beyond - 1 : beyond + 1])
    return np.trapezoid(np.append(y[:beyond], y_limit), np.append(x[:beyond], limit))
