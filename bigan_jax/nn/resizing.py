"""Linear resizing of maps by one matrix for each side, which every device runs and every converter knows; grids."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.ndimage import distance_transform_edt

from bigan_jax.nn.pixel_statistics import Roi


class GridCells:
    """The cells of a square grid over images that count: all, or those with a pixel of the region of interest."""

    def __init__(self, grid: int, roi: Roi = None):
        self.grid, self.count, self._index, self._nearest = grid, grid * grid, None, None
        if roi is not None:
            pixels = zip(roi.nonzero(), roi.shape, strict=True)
            counts = np.zeros((grid, grid), bool)
            counts[tuple((2 * place + 1) * grid // (2 * side) for place, side in pixels)] = True
            self._index, self.count = np.flatnonzero(counts), int(counts.sum())
            nearest: Any = distance_transform_edt(~counts, return_distances=False, return_indices=True)
            self._nearest = (counts.cumsum() - 1)[(nearest[0] * grid + nearest[1]).ravel()]

    def select(self, cells: Float[Array, "b all *_"]) -> Float[Array, "b count *_"]:
        """Returns the cells that count, of all cells."""
        return cells if self._index is None else cells[:, self._index]

    def fill(self, cells: Float[Array, "b count"]) -> Float[Array, "b all"]:
        """Returns all cells: one that does not count has the value of the nearest one that does."""
        return cells if self._index is None else cells[:, self._nearest]


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
