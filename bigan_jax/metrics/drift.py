"""Drift: whether new images that look normal are still like the calibration images, by their scores.

If new normal images are exchangeable with the n calibration images, the conformal p-value of each,
p = (1 + number of calibration scores of at least its score) / (n + 1), is uniform on 1 / (n + 1), ..., 1 or larger.
The p-values of a batch are not independent, since all of them depend on the same calibration images: comparing them
with a uniform distribution, as a one-sample test or a martingale would, finds drift where there is none. Their joint
distribution is that of ranks, so that the largest difference of the two distribution functions, which depends on ranks
alone, has the distribution of the two-sample Kolmogorov-Smirnov test.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from bigan_jax.metrics.thresholds import decide

LEVEL = 0.001  # of the test: batches are many, and a false alarm is expected once in a thousand
MIN_IMAGES = 15  # independent ones on both sides; fewer get no verdict
_UNKNOWN_RECALL = 0.5
_MIN_MOSTLY = 5  # images, from which on most of them being anomalous is worth a remark


@dataclass(frozen=True)
class Drift:
    """The comparison of the scores of new images with those of calibration images, below the threshold."""

    verdict: Literal["higher", "lower", "none", "undecided"]  # how the new scores differ
    p_value: float | None  # if the new normal images were like the calibration images; None if nothing was compared
    n_images: int
    n_anomalous: int  # score at or above the threshold; not compared
    n_possibly_missed: int  # of the others, the highest, which were left out of the comparison
    n_compared: int
    n_independent: int  # the number of independent images that the compared ones count as
    n_calibration: int  # calibration images below the threshold
    n_independent_calibration: int

    @property
    def found(self) -> bool:
        """Whether the new images differ from the calibration images."""
        return self.verdict in ("higher", "lower")

    @property
    def sentence(self) -> str:
        """The verdict in words, with what to do."""
        if self.found:
            causes = {
                "higher": "camera, light and preprocessing, or calibrate with such images; many weak defects below the "
                "threshold have the same effect",
                "lower": "that the camera still sees the objects: repeated, empty, blurred and training images have "
                "low scores",
            }[self.verdict]
            return (
                f"Drift: new images below the threshold score {self.verdict} than the calibration images "
                f"(p = {self.p_value:.1g} if they were alike). The threshold's promise does not hold for such images. "
                f"Check {causes}."
            )
        missed = ""
        if self.n_possibly_missed:
            missed = f", without the {self.n_possibly_missed:,} highest, which may be missed defects"
        if self.verdict == "none":
            return (
                f"No drift found: {self.n_compared:,} new images below the threshold score like {self.n_calibration:,} "
                f"calibration images (p = {self.p_value:.2g}){missed}."
            )
        outlook = ""
        if 2 * self.n_anomalous > self.n_images >= _MIN_MOSTLY:
            outlook = (
                f" {self.n_anomalous:,} of {self.n_images:,} images are called anomalous: if most of them are not "
                "defective, new images are no longer like the calibration images."
            )
        if self.n_independent_calibration < MIN_IMAGES:
            images, available = "calibration images", f"{self.n_independent_calibration}"
        else:
            images, available = "new images", f"{self.n_independent}{missed}"
        return (
            f"No verdict on drift: it requires {MIN_IMAGES} independent {images} below the threshold, and there are "
            f"{available}.{outlook}"
        )


def find_drift(
    calibration: Float[np.ndarray, "n"],
    scores: Float[np.ndarray, "m"],
    threshold: float,
    *,
    n_calibration_groups: int | None = None,
    groups: Shaped[np.ndarray, "m"] | None = None,
    recall: float | None = None,
    lowest_of_folds: bool = False,
) -> Drift:
    """Compares new scores with calibration scores, one-sided in both directions, at the level LEVEL.

    Anomalous images must not count as drift. Both samples are therefore truncated at the highest calibration score
    below the threshold: if the images below are normal, their scores have the same conditional distribution, exactly.
    Defects that the threshold misses score higher than most normal images. As many as the recall lets expect are
    removed from the new images before the search for higher scores, those with the highest scores: then the test holds
    for any scores of theirs. Lower scores cannot come from defects, and the search for them uses all images.

    With sizes n and m, the p-value of a difference D is exp(-2 D^2 n m / (n + m)), and twice that for both directions.
    From MIN_IMAGES images on and below 0.05 it is never smaller than the exact one. Images of one group (slices of a
    volume) are alike: n and m count groups, as if the images of a group were copies. Near-duplicates without a known
    group, such as frames of a video, make the p-value too small.

    Args:
      calibration: the calibration scores.
      scores: of new images, normal and anomalous.
      threshold: the decision threshold.
      n_calibration_groups: the number of groups of the calibration images; None if each image is its own. New images
        are assumed to be in groups of the same mean size, unless `groups` has larger ones.
      groups: the group of each new image; None if it is its own.
      recall: of anomalous test images; None if unknown, which counts as 0.5: as many defects are missed as found.
      lowest_of_folds: whether each new score is the lowest of several detectors', and each calibration score that of
        one detector. Lower scores are then no drift and not searched.
    """
    calibration, scores = np.sort(calibration.astype(np.float64)), scores.astype(np.float64)
    groups = np.arange(len(scores)) if groups is None else groups
    images_per_group = len(calibration) / (n_calibration_groups or len(calibration))
    below = calibration[calibration < threshold]
    # The threshold comes from this score, which thus belongs to neither sample.
    cut = below[-1] if below.size else -math.inf
    reference = below[below < cut]
    order = np.argsort(scores, kind="stable")
    order = order[scores[order] < cut]
    sample, groups = scores[order], groups[order]
    recall = _UNKNOWN_RECALL if recall is None else recall
    above = len(scores) - len(sample)
    missed = min(len(sample), math.ceil(above * (1 - recall) / recall)) if recall else len(sample)
    kept = len(sample) - missed

    n_reference = len(reference) / images_per_group
    sizes = {
        "higher": min(_independent(groups[:kept]), kept / images_per_group),
        "lower": min(_independent(groups), len(sample) / images_per_group),
    }
    differences = {"higher": _excess(reference, sample[:kept]), "lower": _excess(sample, reference)}
    tested = {
        direction: math.exp(-2 * differences[direction] ** 2 * n_reference * size / (n_reference + size))
        for direction, size in sizes.items()
        if min(size, n_reference) >= MIN_IMAGES and not (direction == "lower" and lowest_of_folds)
    }
    verdict: Literal["higher", "lower", "none", "undecided"] = "none" if "higher" in tested else "undecided"
    p_value = min(1.0, len(tested) * min(tested.values())) if tested else None
    if p_value is not None and p_value < LEVEL:
        verdict = "higher" if min(tested, key=tested.__getitem__) == "higher" else "lower"
    # What the sentence is about: all images below the threshold, or those without the highest.
    without_highest = verdict != "lower" and min(sizes["lower"], n_reference) >= MIN_IMAGES
    return Drift(
        verdict=verdict,
        p_value=p_value,
        n_images=len(scores),
        n_anomalous=int(decide(scores, threshold).sum()),
        n_possibly_missed=missed if without_highest else 0,
        n_compared=kept if without_highest else len(sample),
        n_independent=int(sizes["higher" if without_highest else "lower"]),
        n_calibration=len(reference),
        n_independent_calibration=int(n_reference),
    )


def _excess(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "m"]) -> float:
    """Returns the largest excess of the first sample's distribution function over the second's; both are sorted."""
    if not (len(first) and len(second)):
        return 0.0
    own = np.searchsorted(first, first, "right") / len(first)
    return max(0.0, float((own - np.searchsorted(second, first, "right") / len(second)).max()))


def _independent(groups: Shaped[np.ndarray, "m"]) -> float:
    """Returns how many independent images these are worth if images of a group are copies (Kish's effective size)."""
    counts = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / np.square(counts).sum()) if len(counts) else 0.0
