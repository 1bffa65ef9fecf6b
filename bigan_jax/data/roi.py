"""The region of interest (ROI): pixels outside of it count for nothing, in training, calibration and prediction.

They are black in every image that a network sees, and no score, threshold or metric counts them.
"""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from bigan_jax.data.files.fit import pad_mask, source_box, target_size
from bigan_jax.data.files.images import read_whole_mask
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from bigan_jax.errors import UserError


def read_roi(file: str | os.PathLike) -> Bool[np.ndarray, "h w"]:
    """Returns the ROI of a file, which is read as masks are: True inside. Raises UserError if nothing is inside."""
    roi = try_read(str(file), lambda: read_whole_mask(Path(file).expanduser()))
    if isinstance(roi, UnreadableFile):
        raise UserError(f"config.data.roi={file} cannot be read: {roi.reason}.")
    if not roi.any():
        raise UserError(f"config.data.roi={file} is black: make it white where pixels count.")
    return roi


def roi_pixels(file: str | os.PathLike, size: int, fit: str) -> Bool[np.ndarray, "size size"]:
    """Returns which pixels of the networks' images are inside: no pixel outside is mixed into them by resizing.

    Raises UserError if there is none.
    """
    roi = read_roi(file)
    height, width = roi.shape
    outside = Image.fromarray((~roi).astype(np.float32))
    grid, box = target_size(width, height, size, fit), source_box(width, height, fit)
    pixels = pad_mask(np.asarray(outside.resize(grid, Image.Resampling.BILINEAR, box)) == 0, size)
    if not pixels.any():
        raise UserError(
            f"config.data.roi={file} is too narrow: no pixel of the {size}x{size} images is completely inside. Make it "
            "larger, or raise config.data.image_size."
        )
    return pixels


def require_shape_of_images(file: str | os.PathLike, image_size: tuple[int, int]) -> None:
    """Raises UserError if the ROI and an image of (width, height) differ in more than their scale."""
    height, width = read_roi(file).shape
    if abs(width * image_size[1] - height * image_size[0]) > max(width, height, *image_size):
        raise UserError(
            f"config.data.roi={file} has {width}x{height} pixels, and the images {image_size[0]}x{image_size[1]}: draw "
            "it on one of the images."
        )
