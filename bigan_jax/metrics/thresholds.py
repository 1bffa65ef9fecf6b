"""TODO docstring."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.validation import require_finite


class Threshold(NamedTuple):
    """A decision threshold, the rule it comes from, and what the reader must know about it."""

    value: float
    rule: str
    note: str | None = None


def conformal_threshold(
    calibration: Float[np.ndarray, "n"], rate: float, groups: int | None = None
) -> Threshold:
    """The smallest threshold whose false-alarm probability is at most `rate`, without labels.

    Holds for a new normal picture exchangeable with the calibration ones, on average over
    calibration sets: with k = ceil((n + 1)(1 - rate)), a new score exceeds the k-th smallest
    of n with probability at most 1 - k / (n + 1) (split conformal prediction).

    Args:
      calibration: scores of normal pictures that trained nothing, any finite values.
      rate: the allowed false-alarm rate, in (0, 1).
      groups: how many patients, camera blocks and the like the pictures come from, where that is
        known: pictures of one are alike, so the promise holds for a picture of a new group only as
        far as the groups are many.

    Raises:
      UserError: `rate` outside (0, 1), or no calibration picture.
      ValueError: a score that is not finite.
    """
    if not 0 < rate < 1:
        raise UserError(
            f"threshold.false_alarm_rate must lie strictly between 0 and 1, not {rate}."
        )
    calibration = np.sort(require_finite(calibration, "calibration score"))
    n = len(calibration)
    if n == 0:
        raise UserError(
            "no calibration pictures: set some normals aside, or use a manual threshold."
        )
    # The decimal that was typed: in floats 1 - 0.1 can lift an exact product over the next integer.
    exact = Fraction(str(rate))
    k = math.ceil((n + 1) * (1 - exact))
    need = math.ceil(1 / exact) - 1
    note = None
    if k > n:
        note = (
            f"A false-alarm rate of at most {rate:.4g} can only be promised with at least "
            f"{need} calibration pictures; there are {n}. The threshold lies "
            f"just above their highest score, which promises at most {1 / (n + 1):.3g}."
        )
    elif groups is not None and groups < min(n, need):
        note = (
            f"The {n} calibration pictures come from {groups} groups only (patients, camera "
            f"blocks), and pictures of one group are alike: for a new group the false-alarm rate "
            f"may well exceed {rate:.4g}. Fewer than {need} groups cannot promise it."
        )
    # The next value of the scores' own type: a float64 step would vanish beside float32 scores.
    value = float(np.nextafter(calibration[min(k, n) - 1], np.inf, dtype=calibration.dtype))
    return Threshold(value, f"conformal, at most {100 * rate:.4g} % false alarms", note)


def manual_threshold(value: float) -> Threshold:
    """A number that the user chose. Raises UserError if it is not finite."""
    if not math.isfinite(value):
        raise UserError(f"threshold.value must be a finite number, not {value}.")
    return Threshold(float(value), "manual")


def decide(score: Float[np.ndarray, "*n"], threshold: float) -> Bool[np.ndarray, "*n"]:
    """Which pictures, or pixels, are called anomalous. No rounding of the threshold moves one."""
    score = np.asarray(score)
    if not np.issubdtype(score.dtype, np.floating):
        return score >= threshold
    least = score.dtype.type(threshold)  # of the scores' own type: millions need no copy in float64
    if float(least) < threshold:
        least = np.nextafter(least, np.inf, dtype=score.dtype)
    return score >= least


def pixel_threshold(normal_maps: Float[np.ndarray, "n h w"], rate: float) -> float:
    """The error from which a pixel is called defective, without labels or defects.

    Of a new normal picture's pixels it calls a share of at most `rate`, on average over pictures
    exchangeable with these n calibration normals: conformal risk control (Angelopoulos et al. 2022,
    Sec. 2) allows the share r among theirs where (n r + 1) / (n + 1) <= rate. Where n is too small
    for any, it lies just above their highest error.

    Raises:
      ValueError: an error that is not finite.
    """
    maps = require_finite(normal_maps, "error map")
    share = ((len(maps) + 1) * Fraction(str(rate)) - 1) / len(maps)
    allowed = min(max(math.floor(share * maps.size), 0), maps.size - 1)
    place = maps.size - 1 - allowed
    highest_passed = np.partition(maps.ravel(), place)[place]
    return float(np.nextafter(highest_passed, np.inf, dtype=maps.dtype))


@dataclass(frozen=True)
class ThresholdSettings:
    """The fields of `config.threshold`, checked.

    Attributes:
      rule: "conformal" or "manual".
      false_alarm_rate: the rate of the conformal rule, strictly between 0 and 1. The pixel
        threshold uses it under either rule.
      value: the threshold of the manual rule; 0 under the conformal one.

    Raises:
      UserError: an unknown rule, or a value that the rule does not accept.
    """

    rule: str = "conformal"
    false_alarm_rate: float = 0.05
    value: float = 0.0

    def __post_init__(self):
        if self.rule not in ("conformal", "manual"):
            raise unknown_name("config.threshold.rule", self.rule, ["conformal", "manual"])
        if self.rule == "conformal" and self.value:
            raise UserError(
                f"config.threshold.value={self.value} is for --config.threshold.rule=manual: set "
                "that rule, or leave the value out"
            )
        if self.rule == "manual" and not self.value > 0:
            raise UserError(
                f"config.threshold.value={self.value}: the manual rule requires a score above 0, "
                "from which on an image is anomalous"
            )
        choose_threshold(self, np.zeros(1), 1)


def choose_threshold(
    settings: ThresholdSettings, calibration: Float[np.ndarray, "c"], groups: int
) -> Threshold:
    """Returns the threshold by the settings' rule.

    Args:
      settings: the rule and its value.
      calibration: scores of normal images that had no part in training.
      groups: the number of groups (patients, camera blocks) that these images come from.
    """
    if settings.rule == "manual":
        return manual_threshold(settings.value)
    return conformal_threshold(calibration, settings.false_alarm_rate, groups)
