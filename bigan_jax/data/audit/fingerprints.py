"""One pass over the pictures: what identifies each, and trivial facts that might tell its label."""

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

BLOCK = 64  # pictures held as floats at a time


class Fingerprints(NamedTuple):
    """What the audit keeps of `n` pictures, rows in their order."""

    digest: Shaped[np.ndarray, "n"]  # equal where all pixels are equal, hexadecimal
    thumbnail: Float[np.ndarray, "n 256"]  # gray, without brightness and contrast: norm 1 or 0
    facts: dict[str, Float[np.ndarray, "n"]]


def fingerprint(pictures: Images) -> Fingerprints:
    """Reads `pictures.image` block by block, so that it may be decoded on demand.

    Facts, in [0, 1]: the mean and the standard deviation of a picture, the mean over its four
    corners and the largest difference between two of them, sharpness (the mean absolute
    difference of neighboring pixels), all of gray, and in color saturation (mean max - min).
    """

    def block(start: int) -> tuple:
        rows = np.arange(start, min(start + BLOCK, len(pictures.path)))
        image = np.ascontiguousarray(pictures.image[rows])
        channels = np.moveaxis(image, -1, 0)
        gray = (sum(channels, np.float32(0)) / (255 * len(channels)))[..., None]
        digests = [blake2b(picture, digest_size=16).hexdigest() for picture in image]
        return digests, unit(thumbnails(gray)), _facts(image, gray)

    blocks = map_in_threads(block, range(0, len(pictures.path), BLOCK), "leak audit")
    if not blocks:
        return Fingerprints(np.zeros(0, str), np.zeros((0, 256), np.float32), {})
    digests, small, facts = zip(*blocks, strict=True)
    return Fingerprints(
        np.concatenate(digests),
        np.concatenate(small),
        {name: np.concatenate([f[name] for f in facts]) for name in facts[0]},
    )


def unit(thumbnail: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows less their mean, of length 1; a row of one value stays 0."""
    centered = thumbnail - thumbnail.mean(1, keepdims=True)
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    return centered / np.where(length > 1e-4, length, np.inf)


def _facts(image, gray):
    corner = corners(gray)
    facts = {
        "mean intensity": gray.mean((1, 2, 3)),
        "spread": gray.std((1, 2, 3)),
        "corner mean": corner.mean(1),
        "corner contrast": np.ptp(corner, axis=1),
        "sharpness": sum(np.abs(np.diff(gray, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)),
    }
    if image.shape[-1] == 3:
        red, green, blue = np.moveaxis(image, -1, 0)
        most, least = (of(of(red, green), blue) for of in (np.maximum, np.minimum))
        facts["saturation"] = (most - least).mean((1, 2)) / 255
    return facts


def headers(
    opened: Callable[[str], BinaryIO], paths: Shaped[np.ndarray, "n"]
) -> dict[str, Shaped[np.ndarray, "n"]]:
    """What the files tell before they are decoded: `opened(path)` gives each.

    Width, height and aspect ratio as stored, megabytes, bits a pixel, the sum of the JPEG
    quantization tables (0 for other formats) and `encoding`, a word such as "JPEG RGB". Empty
    where a file cannot be read.
    """

    def read(path):
        try:
            file = opened(path)
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with Image.open(file) as picture:
                tables = getattr(picture, "quantization", {}).values()
                encoding = f"{picture.format} {picture.mode}"
                return *picture.size, size, sum(map(sum, tables)), encoding
        except Exception:  # decoders of broken files raise nearly anything
            return None

    found = map_in_threads(read, list(paths), "file headers")
    if not found or None in found:
        return {}
    width, height, size, quantization, encoding = map(np.array, zip(*found, strict=True))
    return {
        "width": width,
        "height": height,
        "aspect ratio": width / height,
        "file size": size / 1e6,
        "bits a pixel": 8 * size / (width * height),
        "JPEG quantization": quantization,
        "encoding": encoding,
    }


def rarity(
    values: Shaped[np.ndarray, "n"], reference: Shaped[np.ndarray, "m"]
) -> Float[np.ndarray, "n"]:
    """The share of the reference that has the same value: a number for a word."""
    names, counts = np.unique(reference, return_counts=True)
    share = dict(zip(names.tolist(), counts / max(1, len(reference)), strict=True))
    return np.array([share.get(value, 0.0) for value in values.tolist()])
