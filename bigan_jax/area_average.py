"""The weights that average pixels by area."""

import numpy as np
from jaxtyping import Float


def area_average(length: int, size: int) -> Float[np.ndarray, "size length"]:
    """Returns the weights that average `length` pixels to `size` cells, of which an edge may divide a pixel."""
    edge = np.arange(size + 1) * length / size
    pixel = np.arange(length)
    overlap = np.minimum(edge[1:, None], pixel + 1) - np.maximum(edge[:-1, None], pixel)
    return np.clip(overlap, 0, None) * size / length
