"""How an image that is not square becomes one: stretched, padded or cropped.

Images, masks and error maps use the same geometry, so that they stay aligned.
"""

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

FITS = ("stretch", "pad", "crop")

Box = tuple[int | float, int | float, int | float, int | float]  # left, top, right, bottom in pixels


def source_box(width: int, height: int, fit: str) -> Box:
    """Returns the part of an image that is shown: the central square for "crop", else all of it."""
    if fit != "crop":
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def target_size(width: int, height: int, size: int, fit: str) -> tuple[int, int]:
    """Returns width and height of that part in the square of `size` pixels; "pad" keeps the aspect ratio."""
    if fit != "pad":
        return size, size
    longer = max(width, height)
    return max(1, round(size * width / longer)), max(1, round(size * height / longer))


def target_slices(width: int, height: int, size: int) -> tuple[slice, slice]:
    """Returns the rows and columns that a part of `target_size` takes in the square: its center."""
    left, top = (size - width) // 2, (size - height) // 2
    return slice(top, top + height), slice(left, left + width)


def pad_image(pixels: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """Centers an image in a square that is filled with the median of its border, channel by channel."""
    if pixels.shape[:2] == (size, size):
        return pixels
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = np.empty((size, size, pixels.shape[2]), np.uint8)
    square[:] = np.median(border, axis=0).round()
    square[target_slices(pixels.shape[1], pixels.shape[0], size)] = pixels
    return square


def pad_mask(mask: Bool[np.ndarray, "h w"], size: int) -> Bool[np.ndarray, "size size"]:
    """Centers a mask in a square without defects."""
    square = np.zeros((size, size), bool)
    square[target_slices(mask.shape[1], mask.shape[0], size)] = mask
    return square


def unpad(
    values: Shaped[np.ndarray, "size size"], width: int, height: int, fit: str
) -> Shaped[np.ndarray, "target_height target_width"]:
    """Returns the part of a square map that shows an image of `width` x `height`: all of it, except for "pad"."""
    size = len(values)
    return values[target_slices(*target_size(width, height, size, fit), size)]
