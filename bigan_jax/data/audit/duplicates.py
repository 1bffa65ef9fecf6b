"""Pictures that are there twice: pixel for pixel, or encoded, scaled or brightened anew."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bigan_jax.data.audit.fingerprints import unit
from bigan_jax.data.layouts.grouping import group_by_camera
from bigan_jax.data.records import ImageRecord

# Measured at 128x128: JPEG at quality 50, half and a third of the size, a contrast of 85 % lie
# below 0.012 on bottle and below 0.004 on the brains and on plant; two different bottles of MVTec
# come as near as 0.028, two slices of different patients 0.05, two views of one leaf 0.11.
MAX_BITS = 0.015
OF_USUAL = 0.1  # and a copy is at least ten times nearer than pictures of this set are as a rule
ENTRIES = 2**23  # distances held at a time
FEW = 10  # training pictures of a condition, below which their mean says little


class Pairs(NamedTuple):
    """Pairs of rows, `first` < `second`, and how far apart they are."""

    first: Int[np.ndarray, "p"]
    second: Int[np.ndarray, "p"]
    distance: Float[np.ndarray, "p"]

    def where(self, chosen: Bool[np.ndarray, "p"]) -> "Pairs":
        """The chosen pairs."""
        return Pairs(*(field[chosen] for field in self))


def signatures(
    thumbnail: Float[np.ndarray, "n d"],
    condition: Int[np.ndarray, "n"],
    train: Bool[np.ndarray, "n"],
) -> Float[np.ndarray, "n d"]:
    """Thumbnails less the mean training thumbnail of their condition, of length 1.

    Parts under a fixed camera all look alike, to a perceptual hash as well: what tells one from
    another is how it differs from their mean. The product of two rows is their correlation.
    """
    signature = np.empty_like(thumbnail)
    for c in np.unique(condition):
        own = condition == c
        known = own & train if np.count_nonzero(own & train) >= FEW else train
        mean = thumbnail[known].mean(0) if known.any() else 0.0
        signature[own] = unit(thumbnail[own] - mean)
    return signature * thumbnail.any(axis=1, keepdims=True)  # a blank picture is like no other


def exact_duplicates(digest: Shaped[np.ndarray, "n"], part: Shaped[np.ndarray, "n"]) -> Pairs:
    """Each row, paired with the first row that has its digest in every part."""
    firsts, found = defaultdict(dict), set()
    for row, (value, where) in enumerate(zip(digest.tolist(), part.tolist(), strict=True)):
        firsts[value].setdefault(where, row)
    for row, value in enumerate(digest.tolist()):
        found |= {(min(row, k), max(row, k)) for k in firsts[value].values() if k != row}
    first, second = np.array(sorted(found), int).reshape(-1, 2).T
    return Pairs(first, second, np.zeros(len(found)))


def near_duplicates(
    signature: Float[np.ndarray, "n d"], near: float = MAX_BITS, of_usual: float = OF_USUAL
) -> Pairs:
    """Pairs whose distance (1 - correlation) is at most `near`, and small for this set.

    Small means: at most `of_usual` of the distance from either picture to its k-th nearest, k
    the square root of n, so that a set of pictures that are all alike does not drown in false
    alarms. It needs no label. More than k copies of one picture are therefore taken for the way
    the set looks. Mirrored, turned and cropped pictures are no copies.
    """
    n = len(signature)
    k = min(int(np.ceil(np.sqrt(n))), n - 1)
    forth = []
    step = max(1, ENTRIES // max(1, n))
    for start in range(0, n if k else 0, step):
        distance = 1 - signature[start : start + step] @ signature.T
        rows = np.arange(len(distance))
        distance[rows, rows + start] = np.inf
        rows = np.flatnonzero(distance.min(1) <= near)
        distance = distance[rows]
        usual = np.partition(distance, k - 1, axis=1)[:, k - 1 : k]
        i, j = np.nonzero(distance <= np.minimum(near, of_usual * usual))
        forth.append(np.stack([rows[i] + start, j, distance[i, j]]))
    first, second, distance = np.concatenate(forth, 1) if forth else np.zeros((3, 0))
    key = np.minimum(first, second) * n + np.maximum(first, second)
    _, where, times = np.unique(key, return_index=True, return_counts=True)
    both = where[times == 2]  # near, seen from either side
    both = both[np.argsort(distance[both], kind="stable")]
    low, high = (pick(first[both], second[both]).astype(int) for pick in (np.minimum, np.maximum))
    return Pairs(low, high, distance[both].clip(0))


def file_number_neighbors(paths: Sequence[str], within: int = 2) -> Pairs:
    """Pairs of files that differ in the last number of their names alone, by at most `within`.

    Cameras and scanners count: such files often show one thing twice. The distance is the
    difference of the numbers.
    """
    numbers = [
        (*camera, row)
        for row, path in enumerate(paths)
        if (camera := group_by_camera(ImageRecord(path, False, path)).camera)
    ]
    found = [
        (min(i, j), max(i, j), b - a)
        for (sequence, a, i), (other, b, j) in pairwise(sorted(numbers))
        if sequence == other and b - a <= within
    ]
    first, second, distance = np.array(found, int).reshape(-1, 3).T
    return Pairs(first, second, distance)
