"""How well error maps tell where a defect is.

scikit-learn's curves sort every pixel together with its label; a thousand pictures have 16 million.
Here normal pixels are sorted as bare numbers, several times as fast, and only the few defect pixels
carry more. The results are the same, ties included.
"""

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

from bigan_jax.metrics import decide, finite

NOTHING = {"auroc": None, "average_precision": None, "aupro": None}


def pixel_metrics(
    maps: Num[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"], limit: float = 0.3
) -> dict[str, float | None]:
    """Pixel AUROC, pixel average precision and AUPRO of error maps, each in [0, 1].

    AUPRO is the area under the mean overlap of the defect regions (8-connected, each counting
    the same whatever its size) over the false-positive rate from 0 to `limit`, divided by
    `limit` (Bergmann et al., MVTec AD). Normal pictures take part with an empty mask; the caller
    leaves out anomalous ones without a mask. All None unless there are defect and other pixels.

    Raises:
      ValueError: an error that is not finite.
    """
    maps, masks = np.asarray(maps), np.asarray(masks, bool)
    if np.issubdtype(maps.dtype, np.floating):
        finite(maps, "error map")
    if masks.all() or not masks.any():
        return dict(NOTHING)
    normal = np.sort(maps[~masks])
    share = _region_shares(masks)
    falling = np.argsort(maps[masks])[::-1]
    value, share = maps[masks][falling], share[falling]

    # At each distinct error of a defect pixel: what is called by it, and what was called before.
    last = np.flatnonzero(np.append(value[1:] != value[:-1], True))
    value, found, overlap = value[last], last + 1, np.cumsum(share)[last]
    alarms = len(normal) - np.searchsorted(normal, value, "left")
    precision = found / (found + alarms)
    average_precision = np.sum(np.diff(found, prepend=0) * precision) / found[-1]

    rate = _curve(len(normal) - np.searchsorted(normal, value, "right"), alarms) / len(normal)
    rate[-1] = 1.0
    recall, overlap = (_curve(_before(part), part) / part[-1] for part in (found, overlap))
    return {
        "auroc": float(np.trapezoid(recall, rate)),
        "average_precision": float(average_precision),
        "aupro": float(_area_to(limit, rate, overlap) / limit),
    }


def pixel_threshold(normal_maps: Float[np.ndarray, "n h w"], rate: float) -> float:
    """The error from which a pixel is called defective, without labels or defects.

    Of a new normal picture's pixels it calls a share of at most `rate`, on average over pictures
    exchangeable with these n calibration normals: conformal risk control (Angelopoulos et al. 2022,
    Sec. 2) allows the share r among theirs where (n r + 1) / (n + 1) <= rate. Where n is too small
    for any, it lies just above their highest error.

    Raises:
      ValueError: an error that is not finite.
    """
    maps = finite(normal_maps, "error map")
    share = ((len(maps) + 1) * Fraction(str(rate)) - 1) / len(maps)
    allowed = min(max(math.floor(share * maps.size), 0), maps.size - 1)
    place = maps.size - 1 - allowed
    highest_passed = np.partition(maps.ravel(), place)[place]
    return float(np.nextafter(highest_passed, np.inf, dtype=maps.dtype))


def dice(
    maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"], threshold: float
) -> float | None:
    """Dice's coefficient (pixel F1) of the pixels that reach the threshold, over all pictures
    together; None without a defect pixel."""
    size = int(masks.sum())
    if not size:
        return None
    called = decide(maps, threshold)
    return 2 * int((called & masks).sum()) / (int(called.sum()) + size)


def _region_shares(masks):
    """Of each defect pixel its share in the mean overlap of regions."""
    within_a_picture = np.zeros((3, 3, 3), bool)
    within_a_picture[1] = True
    region, regions = ndimage.label(masks, within_a_picture)
    region = region[masks]
    return 1 / (regions * np.bincount(region)[region])


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
