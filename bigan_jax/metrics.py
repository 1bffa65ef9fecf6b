"""How good a detector is: thresholds without labels, image metrics, intervals and pixel metrics.

A score is higher where a picture is more anomalous, a label is True for an anomalous picture, and
"score >= threshold" is the decision. A figure that the data do not define is None, no stand-in.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from bigan_jax.errors import UserError


class Threshold(NamedTuple):
    """A decision threshold, the rule it comes from, and what the reader must know about it."""

    value: float
    rule: str
    note: str | None = None


class Oracle(NamedTuple):
    """The best that any threshold could do on the test labels: a bound, not a result."""

    threshold: float | None
    f1: float | None
    accuracy: float | None


def conformal_threshold(calibration: Float[np.ndarray, "n"], rate: float) -> Threshold:
    """The smallest threshold whose false-alarm probability is at most `rate`, without labels.

    Holds for a new normal picture exchangeable with the calibration ones, on average over
    calibration sets: with k = ceil((n + 1)(1 - rate)), a new score exceeds the k-th smallest
    of n with probability at most 1 - k / (n + 1) (split conformal prediction).

    Args:
      calibration: scores of normal pictures that trained nothing, any finite values.
      rate: the allowed false-alarm rate, in (0, 1).

    Raises:
      UserError: `rate` outside (0, 1), or no calibration picture.
      ValueError: a score that is not finite.
    """
    if not 0 < rate < 1:
        raise UserError(f"the false-alarm rate must lie strictly between 0 and 1, not {rate}.")
    calibration = np.sort(_finite(calibration, "calibration score"))
    n = len(calibration)
    if n == 0:
        raise UserError(
            "no calibration pictures: set some normals aside, or use a manual threshold."
        )
    # The decimal that was typed: in floats 1 - 0.1 can lift an exact product over the next integer.
    exact = Fraction(str(rate))
    k = math.ceil((n + 1) * (1 - exact))
    note = None
    if k > n:
        note = (
            f"A false-alarm rate of at most {rate:.4g} can only be promised with at least "
            f"{math.ceil(1 / exact) - 1} calibration pictures; there are {n}. The threshold lies "
            f"just above their highest score, which promises at most {1 / (n + 1):.3g}."
        )
    # The next value of the scores' own type: a float64 step would vanish beside float32 scores.
    value = float(np.nextafter(calibration[min(k, n) - 1], np.inf, dtype=calibration.dtype))
    return Threshold(value, f"conformal, at most {100 * rate:.4g} % false alarms", note)


def manual_threshold(value: float) -> Threshold:
    """A number that the user chose. Raises UserError if it is not finite."""
    if not math.isfinite(value):
        raise UserError(f"a manual threshold must be a finite number, not {value}.")
    return Threshold(float(value), "manual")


def decide(score: Float[np.ndarray, "n"], threshold: float) -> Bool[np.ndarray, "n"]:
    """Which pictures are called anomalous, compared in float64 so that no rounding moves one."""
    return np.asarray(score, np.float64) >= threshold


def oracle_threshold(score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> Oracle:
    """The threshold with the best F1 on the test labels, the highest of equals.

    It has seen the labels, so it only ever stands beside a result. All None with one class.
    """
    score, label = _finite(score, "score"), np.asarray(label, bool)
    if not _both_classes(label):
        return Oracle(None, None, None)
    value, true, false = _operating_points(score, label)
    f1 = 2 * true / (true + false + label.sum())
    best = int(np.argmax(f1))
    accuracy = (true[best] + (~label).sum() - false[best]) / len(label)
    return Oracle(float(value[best]), float(f1[best]), float(accuracy))


def image_metrics(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], threshold: float
) -> dict[str, float | None]:
    """Ranking and decision metrics of one test set, each in [0, 1] or None where undefined.

    AUROC, average precision and balanced accuracy need both classes; precision, recall and F1
    an anomalous picture; specificity a normal one. Precision is 0 where nothing is called
    anomalous although something is.

    Raises:
      ValueError: a score that is not finite.
    """
    score, label = _finite(score, "score"), np.asarray(label, bool)
    called = decide(score, threshold)
    positive, negative = int(label.sum()), int((~label).sum())
    hit, alarm = int((called & label).sum()), int((called & ~label).sum())
    recall, specificity = _ratio(hit, positive), _ratio(negative - alarm, negative)
    both = positive > 0 and negative > 0
    return {
        "auroc": auroc(score, label),
        "average_precision": float(average_precision_score(label, score)) if both else None,
        "accuracy": _ratio(hit + negative - alarm, len(label)),
        "precision": hit / max(hit + alarm, 1) if positive else None,
        "recall": recall,
        "f1": 2 * hit / (hit + alarm + positive) if positive else None,
        "specificity": specificity,
        "balanced_accuracy": (recall + specificity) / 2 if both else None,
    }


def auroc(score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> float | None:
    """The probability that an anomalous picture outscores a normal one; None with one class."""
    label = np.asarray(label, bool)
    return float(roc_auc_score(label, score)) if _both_classes(label) else None


def auroc_interval(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The bootstrap 95 % interval of the AUROC, from resampling whole groups.

    Pictures of one group (a patient) are alike, so the group is the unit; a picture without one
    is its own. Groups are drawn with replacement within three strata (groups with normals only,
    with anomalous ones only, with both), so that every draw holds both classes.

    None with one class, and where a class comes from a single group: there is then nothing to
    vary, and an interval would only look certain. Perfect separation gives (1, 1): a bootstrap
    cannot see an overlap that the sample does not have.
    """
    score, label = _finite(score, "score"), np.asarray(label, bool)
    names, member = np.unique(np.asarray(group), return_inverse=True)
    positive = np.bincount(member, label, len(names)) > 0
    negative = np.bincount(member, ~label, len(names)) > 0
    if min(positive.sum(), negative.sum()) < 2:
        return None

    rng = np.random.default_rng(seed)
    times = np.zeros((draws, len(names)), np.int64)
    for stratum in (positive & ~negative, negative & ~positive, positive & negative):
        if size := int(stratum.sum()):
            times[:, stratum] = rng.multinomial(size, np.full(size, 1 / size), draws)

    order = np.argsort(score, kind="stable")
    member, label = member[order], label[order]
    ties = np.flatnonzero(np.diff(score[order], prepend=-np.inf))

    def resampled(count: np.ndarray) -> float:
        weight = count[member]
        above = np.add.reduceat(weight * label, ties)
        below = np.add.reduceat(weight * ~label, ties)
        won = above * (np.cumsum(below) - below / 2)
        return won.sum() / (above.sum() * below.sum())

    low, high = np.quantile([resampled(count) for count in times], [0.025, 0.975])
    return float(low), float(high)


def predict_all(label: Bool[np.ndarray, "n"]) -> dict[str, float | None]:
    """F1 and accuracy of calling every picture anomalous: the floor for any detector."""
    label = np.asarray(label, bool)
    positive = int(label.sum())
    return {
        "f1": 2 * positive / (positive + len(label)) if positive else None,
        "accuracy": _ratio(positive, len(label)),
    }


def pixel_metrics(
    maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"], limit: float = 0.3
) -> dict[str, float | None]:
    """Pixel AUROC, pixel average precision and AUPRO of error maps, each in [0, 1].

    AUPRO is the area under the mean overlap of the defect regions (8-connected, each counting
    the same whatever its size) over the false-positive rate from 0 to `limit`, divided by
    `limit` (Bergmann et al., MVTec AD). Normal pictures take part with an empty mask; the caller
    leaves out anomalous ones without a mask. All None unless there are defect and other pixels.

    Raises:
      ValueError: an error that is not finite.
    """
    maps, masks = _finite(maps, "error map"), np.asarray(masks, bool)
    if not _both_classes(masks):
        return {"auroc": None, "average_precision": None, "aupro": None}
    within_a_picture = np.zeros((3, 3, 3), bool)
    within_a_picture[1] = True
    region, regions = ndimage.label(masks, within_a_picture)
    size = np.bincount(region.ravel())
    share = np.concatenate([[0.0], 1 / (regions * size[1:])])

    defect = masks.ravel()
    _, true, false, overlap = _operating_points(maps.ravel(), defect, share[region.ravel()])
    recall, alarms = (np.append(0.0, count / count[-1]) for count in (true, false))
    overlap = np.append(0.0, overlap)
    inside = alarms < limit
    alarms_inside = np.append(alarms[inside], limit)
    overlap_inside = np.append(overlap[inside], np.interp(limit, alarms, overlap))
    return {
        "auroc": float(np.trapezoid(recall, alarms)),
        "average_precision": float(np.sum(np.diff(recall) * (true / (true + false)))),
        "aupro": float(np.trapezoid(overlap_inside, alarms_inside) / limit),
    }


def _operating_points(score, label, *weights):
    """Distinct scores from high to low; at or above each: positives, negatives, weight sums."""
    order = np.argsort(-score, kind="stable")
    score = score[order]
    last_of_equals = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    true = np.cumsum(label[order])[last_of_equals]
    sums = (np.cumsum(weight[order])[last_of_equals] for weight in weights)
    return score[last_of_equals], true, last_of_equals + 1 - true, *sums


def _both_classes(label) -> bool:
    return bool(label.any() and not label.all())


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _finite(values, what: str) -> np.ndarray:
    values = np.asarray(values)
    values = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{bad} of {values.size} values of the {what} are not finite.")
    return values
