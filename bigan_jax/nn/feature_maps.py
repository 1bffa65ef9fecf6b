"""Feature maps of a frozen network, averaged to a common grid of cells.

The network is VGG16. Any other function from images to feature maps can take its place as a `FeatureNetwork`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from scipy.ndimage import uniform_filter1d

from bigan_jax.detector import Net, Variables
from bigan_jax.nn.vgg16 import weights as vgg16
from bigan_jax.nn.vgg16.network import VGG16

NETWORK = "features"  # its name among a detector's networks
_NEIGHBORHOOD = 3  # pixels of a feature map whose average describes the middle one


class FeatureNetwork(NamedTuple):
    """A frozen network from images to feature maps.

    The module is called as `module(images, train=False)` with images [b h w c] in [0, 1], and returns a tuple of maps
    [b h' w' c'].
    """

    module: nn.Module
    variables: Variables


def vgg16_network(weights: str, layers: Sequence[str], dtype: DTypeLike = jnp.float32) -> FeatureNetwork:
    """Returns VGG16 up to the deepest of some layers, such as "relu3_3".

    `weights` are as in `load_weights`. Raises UserError if they are missing or a layer is unknown.
    """
    loaded = vgg16.load_weights(weights, layers)
    return FeatureNetwork(VGG16(tuple(layers), loaded.convention, dtype=dtype), {"params": loaded.params})


def channels(network: FeatureNetwork, shape: tuple[int, int, int]) -> list[int]:
    """Returns the number of channels of each feature map for images of a shape (height, width, channels)."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    maps = jax.eval_shape(lambda v, x: network.module.apply(v, x, train=False), network.variables, images)
    return [feature_map.shape[-1] for feature_map in maps]


def grid_features(net: Net, images: Float[Array, "b h w c"], grid: int) -> list[Float[Array, "b cells _"]]:
    """Returns each feature map, averaged over 3x3 neighbors and then by area to `grid` x `grid` cells."""
    maps = cast(tuple[Array, ...], net(NETWORK, images))
    return [_to_grid(x.astype(jnp.float32), grid).reshape(len(x), grid * grid, -1) for x in maps]


def _to_grid(x: Float[Array, "b h w c"], grid: int) -> Float[Array, "b grid grid c"]:
    """Both averages are one matrix for each side."""
    b, h, w, c = x.shape
    rows, columns = _averages(h, grid), _averages(w, grid)
    low = (rows @ x.reshape(b, h, w * c)).reshape(b, grid, w, c)
    return jnp.matmul(columns, low)


@functools.cache
def _averages(length: int, grid: int) -> np.ndarray:
    """Weights [grid, length] of the average over neighbors, and then over the cells of the grid."""
    edge = np.arange(grid + 1) * length / grid
    pixel = np.arange(length)
    overlap = np.clip(np.minimum(edge[1:, None], pixel + 1) - np.maximum(edge[:-1, None], pixel), 0, None)
    neighbors = uniform_filter1d(np.eye(length), _NEIGHBORHOOD, axis=0, mode="nearest")
    return (overlap * grid / length @ neighbors).astype(np.float32)


def to_image_size(cells: Float[Array, "b cells"], shape: tuple[int, int, int]) -> Float[Array, "b h w"]:
    """Enlarges a square map of cells linearly to the size of images."""
    side = round(cells.shape[1] ** 0.5)
    return jax.image.resize(cells.reshape(-1, side, side), (len(cells), *shape[:2]), "linear")
