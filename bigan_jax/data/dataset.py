"""A loaded dataset: arrays of equal length for training, calibration and test images."""

from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Shaped, UInt8

from bigan_jax.data.streaming import LazyImages


class Images(NamedTuple):
    """`n` decoded images; every field has one row per image."""

    image: UInt8[np.ndarray, "n h w c"] | LazyImages  # 0 to 255
    label: Bool[np.ndarray, "n"]  # True: anomalous
    group: Shaped[np.ndarray, "n"]  # patient, camera block, or the image's own path
    condition: Int32[np.ndarray, "n"]  # index into Dataset.conditions
    defect_type: Shaped[np.ndarray, "n"]  # "good" for normal images
    path: Shaped[np.ndarray, "n"]  # relative to the data folder, forward slashes
    mask: Bool[np.ndarray, "n h w"]  # defect pixels
    has_mask: Bool[np.ndarray, "n"]  # normal (mask empty), or anomalous with a known mask

    def select(self, indices: Int[np.ndarray, "m"] | Bool[np.ndarray, "n"] | slice) -> "Images":
        """Returns the rows at `indices` in that order; lazy images stay lazy."""
        if not isinstance(self.image, LazyImages):
            return Images._make(field[indices] for field in self)
        image = self.image.subset(indices)
        others = {name: field[indices] for name, field in self._asdict().items() if name not in ("image", "mask")}
        # Lazy images are training images, without defects; this view takes no memory.
        return Images(image=image, mask=np.broadcast_to(False, (len(image), *self.mask.shape[1:])), **others)


class Dataset(NamedTuple):
    """Normal images for training and calibration of the threshold; test images of both classes."""

    train: Images
    calibration: Images
    test: Images
    conditions: tuple[str, ...]  # such as ("bottle", "pill")
    notes: tuple[str, ...]  # messages to the user
    open: Callable[[str], BinaryIO] | None = None  # the encoded image of a path; None if drawn
