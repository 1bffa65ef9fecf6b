"""What a loaded set is: arrays of equal length, in three parts."""

from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Shaped, UInt8

from bigan_jax.data.streaming import LazyImages


class Images(NamedTuple):
    """`n` decoded pictures; every field has one row for each."""

    image: UInt8[np.ndarray, "n h w c"] | LazyImages  # 0 to 255
    label: Bool[np.ndarray, "n"]  # True: anomalous
    group: Shaped[np.ndarray, "n"]  # patient, camera block, or the picture's own path
    condition: Int32[np.ndarray, "n"]  # index into Dataset.conditions
    defect_type: Shaped[np.ndarray, "n"]  # "good" for normal pictures
    path: Shaped[np.ndarray, "n"]  # relative to the data folder, forward slashes
    mask: Bool[np.ndarray, "n h w"]  # defect pixels
    has_mask: Bool[np.ndarray, "n"]  # normal (mask empty), or anomalous with a known mask

    def select(self, indices: Int[np.ndarray, "m"] | Bool[np.ndarray, "n"] | slice) -> "Images":
        """The rows at `indices` (integers, a boolean mask or a slice), in that order.

        Pictures that are decoded on demand stay so; only those that train are, without defects.
        """
        image, *others, mask, has_mask = self
        if not isinstance(image, LazyImages):
            return Images(*(field[indices] for field in self))
        image = image.subset(indices)
        nothing = np.broadcast_to(False, (len(image), *mask.shape[1:]))  # takes no memory
        return Images(image, *(field[indices] for field in others), nothing, has_mask[indices])


class Dataset(NamedTuple):
    """Normal pictures to train on and to set the threshold with; a test of both kinds."""

    train: Images
    calibration: Images
    test: Images
    conditions: tuple[str, ...]  # such as ("bottle", "pill")
    notes: tuple[str, ...]  # what a user should know of this load
    open: Callable[[str], BinaryIO] | None = None  # the encoded picture of a path; None if drawn
