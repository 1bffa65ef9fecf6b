"""Finds duplicate images: with the same pixels, or re-encoded, scaled or brightened."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bigan_jax.data.audit.fingerprints import normalize_rows
from bigan_jax.data.layouts.grouping import group_by_camera
from bigan_jax.data.records import ImageRecord

# Measured at 128x128: JPEG at quality 50, half and a third of the size, and a contrast of 85 % have distances below
# 0.012 on bottle and below 0.004 on the brains and on plant. Two different bottles of MVTec have 0.028 or more, two
# slices of different patients 0.05, two views of one leaf 0.11.
MAX_DISTANCE = 0.015
MAX_RELATIVE_DISTANCE = 0.1  # and near duplicates are ten times closer than other images of the set
MAX_DISTANCES = 2**23  # distances in memory
MIN_TRAIN_IMAGES = 10  # of a condition; with fewer, the mean over all conditions is used


class Pairs(NamedTuple):
    """Pairs of rows, `first` < `second`, and their distances."""

    first: Int[np.ndarray, "p"]
    second: Int[np.ndarray, "p"]
    distance: Float[np.ndarray, "p"]

    def select(self, selected: Bool[np.ndarray, "p"]) -> "Pairs":
        """Returns the pairs for which `selected` is True."""
        return Pairs(*(field[selected] for field in self))


def across_splits(pairs: Pairs, split: Shaped[np.ndarray, "n"]) -> Pairs:
    """Returns the pairs of rows in two splits."""
    return pairs.select(split[pairs.first] != split[pairs.second])


def signatures(
    thumbnail: Float[np.ndarray, "n d"], condition: Int[np.ndarray, "n"], train: Bool[np.ndarray, "n"]
) -> Float[np.ndarray, "n d"]:
    """Subtract the mean training thumbnail of its condition from each, and normalize.

    Images of parts under a fixed camera all look alike, also to a perceptual hash; they differ in their deviation from
    the mean. The product of two rows is their correlation. Blank images become zero, which is similar to nothing.
    """
    signature = np.empty_like(thumbnail)
    for c in np.unique(condition):
        rows = condition == c
        reference = rows & train if np.count_nonzero(rows & train) >= MIN_TRAIN_IMAGES else train
        mean = thumbnail[reference].mean(0) if reference.any() else 0.0
        signature[rows] = normalize_rows(thumbnail[rows] - mean)
    return signature * thumbnail.any(axis=1, keepdims=True)


def exact_duplicates(pixel_hash: Shaped[np.ndarray, "n"], split: Shaped[np.ndarray, "n"]) -> Pairs:
    """Pair each row with the first row of every split that has the same hash."""
    first_rows, pairs = defaultdict(dict), set()
    for row, (value, name) in enumerate(zip(pixel_hash.tolist(), split.tolist(), strict=True)):
        first_rows[value].setdefault(name, row)
    for row, value in enumerate(pixel_hash.tolist()):
        pairs |= {(min(row, k), max(row, k)) for k in first_rows[value].values() if k != row}
    first, second = np.array(sorted(pairs), int).reshape(-1, 2).T
    return Pairs(first, second, np.zeros(len(pairs)))


def near_duplicates(
    signature: Float[np.ndarray, "n d"], max_distance: float = MAX_DISTANCE, max_relative: float = MAX_RELATIVE_DISTANCE
) -> Pairs:
    """Find pairs with a small distance (1 - correlation), absolutely and for this set.

    A distance is small for the set if it is at most `max_relative` of the distance from either image to its k-th
    nearest, where k is the square root of n. This avoids false alarms in a set of images that all look alike; more
    than k duplicates of one image count as the look of the set. No labels are used. Mirrored, rotated and cropped
    images are not duplicates. Pairs are sorted by distance.
    """
    n = len(signature)
    k = min(int(np.ceil(np.sqrt(n))), n - 1)
    candidates = []
    step = max(1, MAX_DISTANCES // max(1, n))
    for start in range(0, n if k else 0, step):
        distance = 1 - signature[start : start + step] @ signature.T
        rows = np.arange(len(distance))
        distance[rows, rows + start] = np.inf
        rows = np.flatnonzero(distance.min(1) <= max_distance)
        distance = distance[rows]
        kth_nearest = np.partition(distance, k - 1, axis=1)[:, k - 1 : k]
        i, j = np.nonzero(distance <= np.minimum(max_distance, max_relative * kth_nearest))
        candidates.append(np.stack([rows[i] + start, j, distance[i, j]]))
    first, second, distance = np.concatenate(candidates, 1) if candidates else np.zeros((3, 0))
    key = np.minimum(first, second) * n + np.maximum(first, second)
    _, index, count = np.unique(key, return_index=True, return_counts=True)
    mutual = index[count == 2]  # candidates from both sides
    mutual = mutual[np.argsort(distance[mutual], kind="stable")]
    low, high = (f(first[mutual], second[mutual]).astype(int) for f in (np.minimum, np.maximum))
    return Pairs(low, high, distance[mutual].clip(0))


def file_number_neighbors(paths: Sequence[str], max_difference: int = 2) -> Pairs:
    """Finds pairs of files whose names differ only in the last number, by at most `max_difference`.

    Such files often show the same object. The distance is the difference of the numbers.
    """
    cameras = [group_by_camera(ImageRecord(path, False, path)).camera for path in paths]
    numbers = [(*camera, row) for row, camera in enumerate(cameras) if camera]
    pairs = [
        (min(i, j), max(i, j), b - a)
        for (sequence, a, i), (other, b, j) in pairwise(sorted(numbers))
        if sequence == other and b - a <= max_difference
    ]
    first, second, distance = np.array(pairs, int).reshape(-1, 3).T
    return Pairs(first, second, distance)
