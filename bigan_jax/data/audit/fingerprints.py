"""One pass over the images: a hash, a thumbnail and possible shortcut features of each."""

import os
from collections.abc import Callable
from hashlib import blake2b
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from bigan_jax.data.dataset import Images
from bigan_jax.data.files.images import map_in_threads
from bigan_jax.data.thumbnails import corners, thumbnails

BLOCK_SIZE = 64  # images in memory as floats


class Fingerprints(NamedTuple):
    """What the audit needs of `n` images, in their order."""

    pixel_hash: Shaped[np.ndarray, "n"]  # hexadecimal; equal if all pixels are
    thumbnail: Float[np.ndarray, "n 256"]  # gray, of mean 0 and norm 1 (0 for blank images)
    features: dict[str, Float[np.ndarray, "n"]]


def fingerprint(images: Images) -> Fingerprints:
    """Computes fingerprints block by block, so that `images.image` may be decoded on demand.

    Features are in [0, 1] and of the gray image, except for saturation (mean of max - min over the channels). The
    corner contrast is the largest difference between two corners; sharpness is that of neighboring pixels (mean).
    """

    def process_block(start: int) -> tuple:
        rows = np.arange(start, min(start + BLOCK_SIZE, len(images.path)))
        image = np.ascontiguousarray(images.image[rows])
        channels = np.moveaxis(image, -1, 0)
        gray = (sum(channels, np.zeros((), np.float32)) / (255 * len(channels)))[..., None]
        hashes = [blake2b(pixels, digest_size=16).hexdigest() for pixels in image]
        return hashes, normalize_rows(thumbnails(gray)), _features(image, gray)

    blocks = map_in_threads(process_block, range(0, len(images.path), BLOCK_SIZE), "leak audit")
    if not blocks:
        return Fingerprints(np.zeros(0, str), np.zeros((0, 256), np.float32), {})
    hashes, normalized, features = zip(*blocks, strict=True)
    features = {name: np.concatenate([f[name] for f in features]) for name in features[0]}
    return Fingerprints(np.concatenate(hashes), np.concatenate(normalized), features)


def normalize_rows(values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Subtracts the mean of each row and scales it to length 1; a constant row becomes 0."""
    centered = values - values.mean(1, keepdims=True)
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    return centered / np.where(length > 1e-4, length, np.inf)


def _features(image, gray):
    corner = corners(gray)
    features = {
        "mean intensity": gray.mean((1, 2, 3)),
        "standard deviation": gray.std((1, 2, 3)),
        "corner mean": corner.mean(1),
        "corner contrast": np.ptp(corner, axis=1),
        "sharpness": sum(np.abs(np.diff(gray, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)),
    }
    if image.shape[-1] == 3:
        red, green, blue = np.moveaxis(image, -1, 0)
        high, low = (f(f(red, green), blue) for f in (np.maximum, np.minimum))
        features["saturation"] = (high - low).mean((1, 2)) / 255
    return features


def header_features(
    open_file: Callable[[str], BinaryIO], paths: Shaped[np.ndarray, "n"]
) -> dict[str, Shaped[np.ndarray, "n"]]:
    """Read features of files from their headers; {} if a file cannot be read.

    Sizes are as stored, `JPEG quantization` is the sum of the tables (0 for other formats), and `encoding` is a string
    such as "JPEG RGB".
    """

    def read(path):
        try:
            file = open_file(path)
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with Image.open(file) as image:
                tables = getattr(image, "quantization", {}).values()
                encoding = f"{image.format} {image.mode}"
                return *image.size, size, sum(map(sum, tables)), encoding
        except Exception:  # decoders raise nearly any exception for a corrupt file
            return None

    rows = map_in_threads(read, list(paths), "file headers")
    if not rows or None in rows:
        return {}
    width, height, size, quantization, encoding = map(np.array, zip(*rows, strict=True))
    return {
        "width": width,
        "height": height,
        "aspect ratio": width / height,
        "file size": size / 1e6,
        "bits per pixel": 8 * size / (width * height),
        "JPEG quantization": quantization,
        "encoding": encoding,
    }


def frequency_encode(values: Shaped[np.ndarray, "n"], reference: Shaped[np.ndarray, "m"]) -> Float[np.ndarray, "n"]:
    """Replace each value by its relative frequency in the reference, to make strings numeric."""
    unique, counts = np.unique(reference, return_counts=True)
    frequency = dict(zip(unique.tolist(), counts / max(1, len(reference)), strict=True))
    return np.array([frequency.get(value, 0.0) for value in values.tolist()])
