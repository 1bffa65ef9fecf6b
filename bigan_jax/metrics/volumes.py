"""Scores of volumes and patients from the scores of their slices."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

TOP_SLICES = 5


class VolumeScores(NamedTuple):
    """One row per group, sorted by name."""

    group: Shaped[np.ndarray, "g"]
    label: Bool[np.ndarray, "g"]  # True: a slice is anomalous
    score: Float[np.ndarray, "g"]


def volume_scores(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], group: Shaped[np.ndarray, "n"], top: int = TOP_SLICES
) -> VolumeScores:
    """Returns a score per group of slices: the mean of its `top` highest scores.

    A lesion shows in few slices, and the mean of all would hide it. A group of fewer slices has the mean of all of
    them.

    Args:
      score: of each slice.
      label: whether each slice counts as anomalous. Without masks, all slices of an anomalous volume do.
      group: the volume or patient of each slice.
      top: the number of slices, at least 1.

    Raises:
      ValueError: `top` is less than 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1 (got {top})")
    names, index = np.unique(group, return_inverse=True)
    order = np.lexsort((-score, index))  # by group, the highest score first
    starts = np.searchsorted(index[order], np.arange(len(names)))
    rank = np.arange(len(order)) - starts[index[order]]
    highest = order[rank < top]
    counts = np.bincount(index[highest], minlength=len(names))
    means = np.bincount(index[highest], weights=score[highest], minlength=len(names)) / counts
    return VolumeScores(names, np.bincount(index[label], minlength=len(names)) > 0, means)
