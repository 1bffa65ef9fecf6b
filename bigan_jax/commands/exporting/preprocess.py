"""Reads an image file for the exported graph, as in training. Requires NumPy and Pillow only.

Images of 8 bits, and gray ones of 16 bits. 16-bit color, 12-bit TIFF, JPEG 2000 at several sizes, DICOM and NIfTI
require bigan_jax.
"""

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps


def read_image(source: str | Path | BinaryIO | io.BytesIO, image_format: dict[str, Any]) -> np.ndarray:
    """Returns an image as uint8 [size size channels]; `image_format` is "image" of metadata.json."""
    size, channels, window, fit = (image_format[name] for name in ("size", "channels", "window", "fit"))
    with Image.open(source) as image:
        image.draft(None, (4 * size, 4 * size))  # decodes a large JPEG at a part of its size
        image.load()
        exif = image.info.get("exif")
        pixels = _to_eight_bits(image, window)
    pixels = pixels.convert("L" if channels == 1 else "RGB")
    width, height = pixels.size
    box, target = (0, 0, width, height), (size, size)
    if fit == "crop":  # the central square
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = left, top, left + side, top + side
    if fit == "pad":  # keeps the aspect ratio
        longer = max(width, height)
        target = max(1, round(size * width / longer)), max(1, round(size * height / longer))
    pixels = pixels.resize(target, Image.Resampling.BILINEAR, box)
    if exif:
        pixels.info["exif"] = exif
    upright = np.asarray(ImageOps.exif_transpose(pixels))
    return _pad(upright.reshape(*upright.shape[:2], channels), size)


def _to_eight_bits(image, window):
    """Returns gray or RGB with white in place of transparency."""
    if image.mode.startswith("I"):  # 16 bits
        values = np.asarray(image)
        if not window:
            return Image.fromarray(np.round(values / 257).astype(np.uint8))
    else:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
        if not window:
            return image
        values = np.asarray(image)
    low, high = np.percentile(values, (1, 99))
    if not high > low:
        return Image.fromarray(np.zeros(values.shape, np.uint8))
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def _pad(pixels, size):
    """Centers an image in a square that is filled with the median of its border."""
    height, width = pixels.shape[:2]
    if height == width == size:
        return pixels
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = np.empty((size, size, pixels.shape[2]), np.uint8)
    square[:] = np.median(border, axis=0).round()
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
