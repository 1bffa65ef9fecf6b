"""Small summaries of images: thumbnails, and the means of their corners."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from bigan_jax.area_average import area_average

AnyArray = Array | np.ndarray


def thumbnails(images: Float[AnyArray, "n h w c"], size: int = 16) -> Any:
    """Averages images by area to `size` x `size` pixels, of which theirs need not be multiples, and flattens them.

    NumPy or JAX arrays. Returns [n features].
    """
    rows, columns = (area_average(length, size).astype(np.float32) for length in images.shape[1:3])
    n, height, width, channels = images.shape
    low = (rows @ images.reshape(n, height, width * channels)).reshape(n, size, width, channels)
    return (columns @ low).reshape(n, -1)


def corners(images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n features"]:
    """Returns the means of the four corners, each a sixteenth of the sides (8x8 at 128x128)."""
    height, width = (max(1, length // 16) for length in images.shape[1:3])
    rows, columns = (slice(height), slice(-height, None)), (slice(width), slice(-width, None))
    means = [images[:, y, x].mean((1, 2)) for y in rows for x in columns]
    return np.concatenate(means, axis=1)
