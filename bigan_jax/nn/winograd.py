"""3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), which takes a fourth of the multiplications.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks". Each 4x4 pixels of the result come from 6x6
pixels of the image. Linear maps transform these and the kernel to 6x6 values, whose products over channels are 36
matrix products. The maps are matrix products too, which compile faster than sums (docs/development/speed-cpu.md).
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_SIDE = 4  # pixels of a tile's result
_TO_TILE = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_OF_KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
_FROM_TILE = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32)
_MIN_CHANNELS = 64  # on both sides; with fewer, the maps take longer than the products save
_MIN_PRODUCT = 64 * 128  # channels times depth
_EXPORTED_BATCH = 8  # of graphs for any number of images
_MIN_PIXELS = 2048  # over the batch; with fewer, the same holds for the map of the kernel


def is_faster(image: Array | np.ndarray, kernel: Array | np.ndarray) -> bool:
    """Returns whether `convolve` is faster than XLA's convolution on a CPU, and exact enough."""
    channels, depth = kernel.shape[2:]
    large = min(channels, depth) >= _MIN_CHANNELS and channels * depth >= _MIN_PRODUCT
    batch, height, width, _ = image.shape
    batch = batch if isinstance(batch, int) else _EXPORTED_BATCH
    return large and batch * height * width >= _MIN_PIXELS and image.dtype == kernel.dtype == jnp.float32


def convolve(image: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Convolution with one pixel of zero padding, image by image, so that its tiles stay in the cache."""
    transformed = _both_axes(_OF_KERNEL, kernel)
    return lax.map(lambda x: _convolve_image(x, transformed), image)


def _convolve_image(image, kernel):
    height, width, channels = image.shape
    rows, columns = -(-height // _SIDE), -(-width // _SIDE)
    border = [(1, _SIDE * n - size + 1) for n, size in ((rows, height), (columns, width))]
    padded = jnp.pad(image, (*border, (0, 0)))
    # Rows first, then columns: 12 slices compile in a third of the time of 36.
    by_row = jnp.stack([padded[i : i + _SIDE * (rows - 1) + 1 : _SIDE] for i in range(6)])
    by_both = [by_row[:, :, j : j + _SIDE * (columns - 1) + 1 : _SIDE] for j in range(6)]
    tiles = _both_axes(_TO_TILE, jnp.stack(by_both, 1).reshape(6, 6, -1, channels))
    result = _both_axes(_FROM_TILE, tiles @ kernel).reshape(_SIDE, _SIDE, rows, columns, -1)
    return result.transpose(2, 0, 3, 1, 4).reshape(_SIDE * rows, _SIDE * columns, -1)[:height, :width]


def _both_axes(matrix, x):
    """Applies a matrix to the two leading axes: [n, n, a, b] -> [m, m, a, b]."""
    m, (n, _, *shape) = len(matrix), x.shape
    return (np.kron(matrix, matrix) @ x.reshape(n * n, -1)).reshape(m, m, *shape)
