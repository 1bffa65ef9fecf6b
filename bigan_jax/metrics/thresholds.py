"""Decision thresholds from calibration images or from the user, and the rule that applies them.

A threshold from calibration images has a promise that requires no model of the scores, only that new normal images are
exchangeable with the calibration images. All rates are exact fractions: in floats, 1 - 0.1 can lift an exact product
over the next integer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.metrics.promise import Promise, percent
from bigan_jax.value_checks import COUNT, require, require_finite

MAX_FOLDS = 1000  # each is a training


@dataclass(frozen=True)
class ThresholdSettings:
    """The fields of `config.threshold`; raises UserError for an invalid one."""

    rule: str = "conformal"  # or "manual"
    false_alarm_rate: float = 0.05  # of the conformal rule, in (0, 1)
    pixel_rate: float = 0.05  # share of a new normal image's pixels that may be marked, in (0, 1); under either rule
    folds: int = 0  # of the conformal rule; 0: calibrate on images held out of training; from 2 on: cross-conformal
    value: float = 0.0  # the threshold of the manual rule

    def __post_init__(self):
        if self.rule not in ("conformal", "manual"):
            raise unknown_name("config.threshold.rule", self.rule, ["conformal", "manual"])
        if self.rule == "conformal" and self.value:
            usage = "is for --config.threshold.rule=manual: set that rule, or leave the value out."
            raise UserError(f"config.threshold.value={self.value} {usage}")
        if self.rule == "manual" and not self.value > 0:
            raise UserError(f"config.threshold.value={self.value}: the manual rule requires a score above 0.")
        if self.rule == "manual":
            manual_threshold(self.value)
        require("threshold.folds", self.folds, COUNT)
        if self.folds == 1 or self.folds > MAX_FOLDS:
            raise UserError(
                f"config.threshold.folds must be 0 (none) or at least 2 and at most {MAX_FOLDS} (got {self.folds})."
            )
        if self.folds and self.rule == "manual":
            raise UserError(
                f"config.threshold.folds={self.folds} is for the conformal rule: leave it out, or set "
                "--config.threshold.rule=conformal."
            )
        _exact_rate("false_alarm_rate", self.false_alarm_rate)
        _exact_rate("pixel_rate", self.pixel_rate)


class Threshold(NamedTuple):
    """A decision threshold, the rule it comes from with the rate that holds, and its promise (None if manual)."""

    value: float
    rule: str
    promise: Promise | None = None


def choose_threshold(
    settings: ThresholdSettings,
    calibration: Float[np.ndarray, "n"],
    groups: Shaped[np.ndarray, "n"] | None = None,
    fold: Int[np.ndarray, "n"] | None = None,
) -> Threshold:
    """Returns the threshold by the settings' rule; with folds, `calibration` are out-of-fold scores."""
    if settings.rule == "manual":
        return manual_threshold(settings.value)
    if fold is not None:
        return cross_conformal_threshold(calibration, fold, settings.false_alarm_rate, groups)
    return conformal_threshold(calibration, settings.false_alarm_rate, groups)


def conformal_threshold(
    calibration: Float[np.ndarray, "n"], rate: float, groups: Shaped[np.ndarray, "n"] | None = None
) -> Threshold:
    """Returns the smallest threshold with a false-alarm probability of at most `rate`, or the lowest possible one.

    No label is used. The probability is that of a new normal image, on average over calibration sets.

    With k = ceil((n + 1)(1 - rate)), a new score exceeds the k-th smallest of n exchangeable ones with probability at
    most 1 - k / (n + 1) (split conformal prediction). If k > n, the threshold lies just above the highest score, and
    1 / (n + 1) is promised.

    Images of one group (patient, camera block) are alike. With G >= 1 / rate - 1 groups, each of them has the weight
    1 / (G + 1), divided equally among its images, and the threshold lies just above the smallest score at which the
    cumulative weight reaches 1 - rate. This holds for an image of a new group, if groups are exchangeable (Dunn,
    Wasserman & Ramdas 2022; hierarchical conformal prediction, Lee, Barber & Willett 2023). With fewer groups, all
    images count alike, and the promise is for new images of the same groups only.

    Args:
      calibration: scores of normal images that had no part in training, nor in a scaling of the scores: dividing two
        terms by their standard deviations on the calibration images turns 5 % into 6 to 7 % with 19 images.
      rate: in (0, 1).
      groups: the group of each image; None if each is its own.

    Raises:
      UserError: `rate` is outside (0, 1), or there is no calibration image.
      ValueError: a score is not finite.
    """
    value, promise = _calibrate(calibration, "calibration score", _exact_rate("false_alarm_rate", rate), groups, None)
    return Threshold(value, f"conformal, at most {percent(promise.holds)} false alarms", promise)


def cross_conformal_threshold(
    scores: Float[np.ndarray, "n"],
    fold: Int[np.ndarray, "n"],
    rate: float,
    groups: Shaped[np.ndarray, "n"] | None = None,
) -> Threshold:
    """Returns a threshold for the minimum of a new image's scores by K detectors, each fitted without one fold.

    No normal image is lost to calibration, at the price of K fits. With n images in K equal folds of m, and c
    out-of-fold scores above the threshold, a new normal image reaches it with probability at most

        (c + m) / (n + m)  and at most  (2 c + K) / (n + K),

    and c is the highest number for which one of the two is at most `rate`. With c = 0, 1 / (1 + max(K, m)) is promised.
    There are detectors for which this is exact; (c + 1) / (n + 1) would be wrong. `_cross_bounds` has the proofs. The
    first bound is that of the jackknife-minmax (Barber, Candes, Ramdas & Tibshirani 2021) for folds of one image.

    With groups, folds divide groups: n and m count groups, c counts an image of a group of s images as 1 / s, and the
    promise is for images of new groups. If the folds are not equal, the second bound alone holds.

    The first bound requires detectors that treat training images alike, for example by a new shuffle for each fit. Both
    require that a detector takes nothing from its own fold: no scaling of scores, no early stopping. Images in no fold,
    which train all K detectors, may be any.

    Args:
      scores: of normal images, each by the detector fitted without its fold.
      fold: the fold of each image, as `assign_folds` returns it, without the images in no fold.
      rate: in (0, 1).
      groups: the group of each image; None if each is its own.

    Raises:
      UserError: `rate` is outside (0, 1), or there is no image.
      ValueError: a score is not finite, there are fewer than 2 folds, or a fold divides a group.
    """
    value, promise = _calibrate(scores, "out-of-fold score", _exact_rate("false_alarm_rate", rate), groups, fold)
    rule = f"cross-conformal, {promise.folds} folds, at most {percent(promise.holds)} false alarms"
    return Threshold(value, rule, promise)


def folds_that_promise(n: int, rate: float) -> int:
    """Returns the smallest number of folds of n normal images with which the rate can be promised; 0 if none can."""
    exact = _exact_rate("false_alarm_rate", rate)
    for folds in range(2, min(n, MAX_FOLDS) + 1):
        bounds = _cross_bounds(np.arange(n // folds * folds) // (n // folds))
        if min(bound.lowest(n // folds * folds) for bound in bounds) <= exact:
            return folds
    return 0


def exceeds_promise(calibration: Float[np.ndarray, "n"], normal: Float[np.ndarray, "m"], threshold: float) -> float:
    """Returns the probability of as many false alarms among normal test images, if they were like the calibration ones.

    If all n + m scores are exchangeable, the number of test images above the k-th highest calibration score is
    beta-binomial with the parameters k and n + 1 - k (Marques 2023, "On the universal distribution of the coverage in
    split conformal prediction", Theorem 1). Here k is one more than the number of calibration images at or above the
    threshold.
    """
    from scipy.stats import betabinom  # takes a second to import, and settings are checked before

    n, k = len(calibration), 1 + int((calibration >= threshold).sum())
    alarms = int((normal >= threshold).sum())
    return float(betabinom.sf(alarms - 1, len(normal), min(k, n), n + 1 - min(k, n)))


def assign_folds(groups: Sequence[str] | Shaped[np.ndarray, "n"], folds: int) -> Int[np.ndarray, "n"]:
    """Assigns groups to folds with equally many groups each, by a hash of their names alone.

    Args:
      groups: the group of each image, or its own name; groups are never divided.
      folds: their number, from 2 on.

    Returns:
      The fold of each image, from 0 on; -1 for images in no fold, whose groups are left over and train all detectors.

    Raises:
      UserError: there are fewer groups than folds.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < folds:
        raise UserError(
            f"config.threshold.folds={folds} requires at least {folds} groups of normal images (patients, camera "
            f"blocks, or single images), and there are {len(names)}: lower it, or add images."
        )
    hashes = [blake2b(f"fold/{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    fold_of_group = np.full(len(names), -1)
    size = len(names) // folds
    fold_of_group[sorted(range(len(names)), key=hashes.__getitem__)[: folds * size]] = np.arange(folds * size) // size
    return fold_of_group[group]


def manual_threshold(value: float) -> Threshold:
    """Returns a threshold chosen by the user; raises UserError if it is not finite."""
    if not math.isfinite(value):
        raise UserError(f"config.threshold.value must be a finite number (got {value}).")
    return Threshold(float(value), "manual")


def pixel_threshold(
    normal_maps: Float[np.ndarray, "n h w"],
    rate: float,
    groups: Shaped[np.ndarray, "n"] | None = None,
    fold: Int[np.ndarray, "n"] | None = None,
) -> tuple[float, Promise]:
    """Returns the error from which on a pixel is marked, and what it promises.

    At most a fraction `rate` of a new normal image's pixels is marked, on average over images and calibration sets.
    Conformal risk control (Angelopoulos et al. 2022, Sec. 2) allows the fraction r among the calibration pixels where
    (n r + 1) / (n + 1) <= rate. If n is too small for any r, the threshold lies just above the highest calibration
    error, and 1 / (n + 1) is promised.

    The fraction of marked pixels is the probability that a pixel drawn from the image is marked, so the pixels of an
    image are a group. Groups of images and folds therefore count as in the thresholds of scores. With folds, an error
    map is the minimum over the K detectors, pixel by pixel.

    Args:
      normal_maps: error maps of calibration images; with folds, of normal images by the detectors fitted without them.
      rate: in (0, 1).
      groups: the group of each image; None if each is its own.
      fold: the fold of each image, if there are folds.

    Raises:
      UserError: `rate` is outside (0, 1), or there is no image.
      ValueError: a value is not finite, or the folds are invalid.
    """
    return _calibrate(normal_maps, "error map", _exact_rate("pixel_rate", rate), groups, fold, "pixels")


def _exact_rate(field: str, rate: float) -> Fraction:
    """Returns the decimal as typed, or raises UserError if it is no rate."""
    if not 0 < rate < 1:
        raise UserError(f"config.threshold.{field} must lie strictly between 0 and 1 (got {rate}).")
    return Fraction(str(rate))


class _Bound(NamedTuple):
    """The bound (slope * c + extra) / (n + extra) of the rate, for c of n calibration scores above the threshold."""

    slope: int
    extra: int

    def allowed(self, rate: Fraction, n: int) -> Fraction:
        """Returns the highest c that keeps the rate; below 0 if none does."""
        return (rate * (n + self.extra) - self.extra) / self.slope

    def lowest(self, n: int) -> Fraction:
        """Returns the bound for c = 0."""
        return Fraction(self.extra, n + self.extra)


_SPLIT = _Bound(slope=1, extra=1)


def _cross_bounds(fold_of_group: Int[np.ndarray, "g"]) -> list[_Bound]:
    """Returns the bounds that hold for cross-conformal thresholds.

    (c + m) / (n + m), for K equal folds of m images: add m - 1 hypothetical images to the new one, as fold K + 1. Let
    r_i be the minimum over b of image i's score by the detector fitted without its own fold and fold b. For the new
    image, r is its score; for the others, it is at most the out-of-fold score, where b = K + 1. So an alarm requires
    that at least n - c values lie strictly below the new image's r. At most (n + m) - (n - c) of the n + m images can
    have as many below, and each is equally likely to be the new one: swapping folds, or images within them, changes
    no probability. Ties only help.

    (2 c + K) / (n + K), for any K folds of m_j images: an alarm requires that in each fold j, at most c_j images reach
    the new image's score by the same detector, where c_j counts those above the threshold, and the sum of all c_j is
    c. With the conformal p-values p_j, this reads: the sum of (m_j + 1) p_j is at most c + K. Where an event has the
    probability q, (m_j + 1) p_j contributes at least q ((m_j + 1) q + 1) / 2 to its expectation, as p_j is at best
    uniform on the multiples of 1 / (m_j + 1). The sum over j gives q ((n + K) q + K) / 2 <= q (c + K).

    With groups, n, m and m_j count groups. An image of a group of s counts as 1 / s in the first proof. In
    the second, draw one image of each group for p_j: the expected counts are then the sums of 1 / s.
    """
    per_fold = np.unique(fold_of_group, return_counts=True)[1]
    any_folds = _Bound(slope=2, extra=len(per_fold))
    return [any_folds, _Bound(slope=1, extra=int(per_fold[0]))] if np.ptp(per_fold) == 0 else [any_folds]


def _calibrate(
    values: Float[np.ndarray, "n *pixels"],
    name: str,
    rate: Fraction,
    groups: Shaped[np.ndarray, "n"] | None,
    fold: Int[np.ndarray, "n"] | None,
    share_of: Literal["images", "pixels"] = "images",
) -> tuple[float, Promise]:
    """Returns the lowest threshold with at most `rate` false alarms, or with the lowest rate that can be promised."""
    values = require_finite(values, name)
    n = len(values)
    if n == 0:
        raise UserError(
            "a threshold requires calibration images, and there are none: raise config.data.calibration_fraction."
        )
    _, first, group, sizes = np.unique(
        np.arange(n) if groups is None else groups, return_index=True, return_inverse=True, return_counts=True
    )
    n_groups = len(sizes)
    bounds = [_SPLIT]
    if fold is not None:
        if not (fold == fold[first][group]).all():
            raise ValueError("Folds must not divide groups.")
        if len(np.unique(fold)) < 2 or fold.min() < 0:
            raise ValueError("There must be at least 2 folds, numbered from 0 on.")
        bounds = _cross_bounds(fold[first])
    by_group = fold is not None or _SPLIT.allowed(rate, n_groups) >= 0
    units = n_groups if by_group else n
    allowed = max(*(bound.allowed(rate, units) for bound in bounds), Fraction(0))
    promise = Promise(
        share_of=share_of,
        requested=float(rate),
        holds=float(max(rate, min(bound.lowest(units) for bound in bounds))),
        n_images=n,
        n_groups=n_groups,
        holds_for="images" if n_groups == n else "groups" if by_group else "known groups",
        required=math.ceil(1 / rate) - 1,
        folds=0 if fold is None else len(np.unique(fold)),
    )
    highest_normal = _lowest_level(values, sizes[group] if by_group else np.ones(n, int), allowed)
    # The next value of the scores' own type: a float64 step would vanish next to float32 scores.
    return float(np.nextafter(highest_normal, np.inf, dtype=values.dtype)), promise


def _lowest_level(
    values: Float[np.ndarray, "n *pixels"], sizes: Int[np.ndarray, "n"], allowed: Fraction
) -> np.floating:
    """Returns the lowest of the values with at most `allowed` above it.

    A value of an image with p pixels, in a group of s images, counts as 1 / (s p). Bisection takes no sorted or
    converted copy of a large array, and stops at neighboring floats.
    """
    images_by_size = [(size, values[sizes == size]) for size in np.unique(sizes).tolist()]
    common = math.lcm(*(size for size, _ in images_by_size))  # counts are exact integers, in units of 1 / (common p)
    budget = math.floor(allowed * common * values[0].size)

    def is_allowed(level: np.floating) -> bool:
        return sum(common // size * int(np.count_nonzero(images > level)) for size, images in images_by_size) <= budget

    low, high = values.min(), values.max()
    if is_allowed(low):
        return low
    while low < (middle := low / 2 + high / 2) < high:
        low, high = (low, middle) if is_allowed(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Oracle:
    """The threshold with the best F1 on the test labels: an upper bound, not a result. None with one class."""

    threshold: float | None
    f1: float | None
    accuracy: float | None


def oracle_threshold(score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> Oracle:
    """Returns the highest of the thresholds with the best F1; raises ValueError if a score is not finite."""
    score = require_finite(score, "score")
    if label.all() or not label.any():
        return Oracle(None, None, None)
    order = np.argsort(-score, kind="stable")
    score = score[order]
    last_of_equals = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    true_positives = np.cumsum(label[order])[last_of_equals]
    called = last_of_equals + 1
    f1 = 2 * true_positives / (called + label.sum())
    best = int(np.argmax(f1))
    true_negatives = (~label).sum() - (called - true_positives)[best]
    accuracy = (true_positives[best] + true_negatives) / len(label)
    return Oracle(float(score[last_of_equals[best]]), float(f1[best]), float(accuracy))


def decide(score: Num[np.ndarray, "*n"], threshold: float) -> Bool[np.ndarray, "*n"]:
    """Returns which images, or pixels, are anomalous: score >= threshold, exactly.

    The comparison runs in the scores' own type, so that millions of pixels need no float64 copy. The threshold is
    rounded up to that type, which changes no decision.
    """
    if not np.issubdtype(score.dtype, np.floating):
        return score >= threshold
    rounded = score.dtype.type(threshold)
    if float(rounded) < threshold:
        rounded = np.nextafter(rounded, np.inf, dtype=score.dtype)
    return score >= rounded
