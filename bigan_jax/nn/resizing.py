"""Linear resizing of maps by one matrix for each side, which every device runs and every converter knows."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_linear(maps: Float[Array, "b h w"], height: int, width: int) -> Float[Array, "b height width"]:
    """Resizes maps as `jax.image.resize` does with "linear": smoothed first where they become smaller."""
    rows, columns = _weights(height, maps.shape[1]), _weights(width, maps.shape[2])
    return jnp.matmul(jnp.matmul(rows, maps, precision="highest"), columns.T, precision="highest")


@functools.cache
def _weights(size: int, old_size: int) -> np.ndarray:
    """The weight of each old pixel in each new one, [size, old_size]."""
    scale = old_size / size
    centers = (np.arange(size) + 0.5) * scale - 0.5
    distance = np.abs(centers[:, None] - np.arange(old_size)) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
