"""Decision thresholds from calibration images or from the user, and the rule that applies them."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.value_checks import require_finite


@dataclass(frozen=True)
class ThresholdSettings:
    """The fields of `config.threshold`; raises UserError for an invalid one."""

    rule: str = "conformal"  # or "manual"
    false_alarm_rate: float = 0.05  # of the conformal rule, in (0, 1); of the pixel threshold under either rule
    value: float = 0.0  # the threshold of the manual rule
    pixel_rate: float = 0.05

    def __post_init__(self):
        if self.rule not in ("conformal", "manual"):
            raise unknown_name("config.threshold.rule", self.rule, ["conformal", "manual"])
        if self.rule == "conformal" and self.value:
            usage = "is for --config.threshold.rule=manual: set that rule, or leave the value out."
            raise UserError(f"config.threshold.value={self.value} {usage}")
        if self.rule == "manual" and not self.value > 0:
            raise UserError(f"config.threshold.value={self.value}: the manual rule requires a score above 0.")
        choose_threshold(self, np.zeros(1), None)


@dataclass(frozen=True)
class Promise:
    rate: float
    n: int

    @property
    def sentence(self):
        return f"At most {100 * self.rate:.3g} % of new normal images ({self.n} calibration images)."


class Threshold(NamedTuple):
    """A decision threshold, the rule it comes from, and a caveat for the reader, if any."""

    value: float
    rule: str
    promise: Promise | None = None


def choose_threshold(settings: ThresholdSettings, calibration: Float[np.ndarray, "c"], groups) -> Threshold:
    """Returns the threshold by the settings' rule, from scores as `conformal_threshold` takes them."""
    if settings.rule == "manual":
        return manual_threshold(settings.value)
    return conformal_threshold(calibration, settings.false_alarm_rate, groups)


def conformal_threshold(calibration: Float[np.ndarray, "n"], rate: float, groups=None) -> Threshold:
    """Returns the smallest threshold with a false-alarm probability of at most `rate`.

    No label is used. The bound holds for a new normal image that is exchangeable with the calibration images, on
    average over calibration sets: with k = ceil((n + 1)(1 - rate)), a new score exceeds the k-th smallest of n with
    probability at most 1 - k / (n + 1) (split conformal prediction).

    Args:
      calibration: scores of normal images that had no part in training.
      rate: in (0, 1).
      groups: the number of groups (patients, camera blocks) of these images, if known: few weaken the bound.

    Raises:
      UserError: `rate` is outside (0, 1), or there is no calibration image.
      ValueError: a score is not finite.
    """
    if not 0 < rate < 1:
        raise UserError(f"config.threshold.false_alarm_rate must lie strictly between 0 and 1 (got {rate}).")
    calibration = np.sort(require_finite(calibration, "calibration score"))
    n = len(calibration)
    if n == 0:
        raise UserError(
            "the conformal threshold requires calibration images, and there are none: raise config.data."
            "calibration_fraction, or use config.threshold.rule=manual."
        )
    # The decimal as typed: in floats, 1 - 0.1 can lift an exact product over the next integer.
    exact_rate = Fraction(str(rate))
    k = math.ceil((n + 1) * (1 - exact_rate))
    required = math.ceil(1 / exact_rate) - 1
    # The next value of the scores' own type: a float64 step would vanish next to float32 scores.
    value = float(np.nextafter(calibration[min(k, n) - 1], np.inf, dtype=calibration.dtype))
    return Threshold(value, f"conformal, at most {100 * rate:.4g} % false alarms", Promise(rate, n))


def manual_threshold(value: float) -> Threshold:
    """Returns a threshold chosen by the user; raises UserError if it is not finite."""
    if not math.isfinite(value):
        raise UserError(f"config.threshold.value must be a finite number (got {value}).")
    return Threshold(float(value), "manual")


def pixel_threshold(normal_maps: Float[np.ndarray, "n h w"], rate: float, groups=None) -> Threshold:
    """Returns the error from which on a pixel is called defective.

    At most a fraction `rate` of a new normal image's pixels is called defective, on average over images exchangeable
    with the n calibration images. Conformal risk control (Angelopoulos et al. 2022, Sec. 2) allows the fraction r
    among the calibration pixels where (n r + 1) / (n + 1) <= rate. If n is too small for any r, the threshold lies
    just above the highest calibration error. A value that is not finite raises ValueError.
    """
    maps = require_finite(normal_maps, "error map")
    fraction = ((len(maps) + 1) * Fraction(str(rate)) - 1) / len(maps)
    allowed = min(max(math.floor(fraction * maps.size), 0), maps.size - 1)
    index = maps.size - 1 - allowed
    highest_normal = np.partition(maps.ravel(), index)[index]
    return Threshold(float(np.nextafter(highest_normal, np.inf, dtype=maps.dtype)), "", Promise(rate, len(maps)))


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
