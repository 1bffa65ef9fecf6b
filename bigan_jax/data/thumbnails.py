"""TODO docstring."""

import numpy as np
from jaxtyping import Float


def thumbnails(
    images: Float[np.ndarray, "n h w c"], size: int = 16
) -> Float[np.ndarray, "n features"]:
    """Pictures averaged by area to `size` x `size`, flattened; any picture size will do."""
    rows, columns = (_area_average(length, size) for length in images.shape[1:3])
    count, height, width, channels = images.shape
    low = rows @ images.reshape(count, height, width * channels)
    low = low.reshape(count, size, width, channels)
    return np.einsum("niwc,jw->nijc", low, columns, optimize=True).reshape(count, -1)


def corners(images: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n features"]:
    """The mean of each corner, a sixteenth of the picture long (8x8 at 128x128), flattened."""
    height, width = (max(1, length // 16) for length in images.shape[1:3])
    top_bottom, left_right = (
        (slice(height), slice(-height, None)),
        (slice(width), slice(-width, None)),
    )
    means = [images[:, y, x].mean((1, 2)) for y in top_bottom for x in left_right]
    return np.concatenate(means, axis=1)


def _area_average(length: int, size: int) -> Float[np.ndarray, "size length"]:
    """Rows that average `length` pixels to `size` cells, sharing pixels that straddle an edge."""
    edge = np.arange(size + 1) * length / size
    pixel = np.arange(length)
    overlap = np.minimum(edge[1:, None], pixel + 1) - np.maximum(edge[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * size / length).astype(np.float32)
