"""Feature maps of a frozen network, averaged to a common grid of cells, for detectors on pretrained features.

The network is VGG16, an exported one from a file, or any Flax module as a `FeatureNetwork`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key
from scipy.ndimage import uniform_filter1d

from bigan_jax.area_average import area_average
from bigan_jax.detector import Detector, Fit, FitPass, Net, Variables
from bigan_jax.nn import exported_network, losses
from bigan_jax.nn.pixel_statistics import Roi
from bigan_jax.nn.resizing import GridCells, resize_linear
from bigan_jax.nn.vgg16 import weights as vgg16
from bigan_jax.nn.vgg16.network import VGG16

NETWORK = "features"  # its name among a detector's networks
_NEIGHBORHOOD = 3  # pixels of a feature map whose average describes the middle one
_SCALE_IMAGES = 128  # training images that the layers' scales come from
_MIN_VARIANCE = 1e-6  # of a layer, over all channels


class FeatureNetwork(NamedTuple):
    """A frozen network from images to feature maps.

    The module is called as `module(images, train=False)` with images [b h w c] in [0, 1], and returns a tuple of maps
    [b h' w' c'].
    """

    module: nn.Module
    variables: Variables


def load_network(
    network: FeatureNetwork | str | None, vgg16_weights: str, layers: Sequence[str], dtype: DTypeLike = jnp.float32
) -> FeatureNetwork:
    """Returns the network that config.model.network names.

    Args:
      network: the network itself, a file of an exported one (`exported_network.load`), or "" or None for VGG16.
      vgg16_weights: as in `load_weights`; used by VGG16 alone, like the further arguments.
      layers: those of VGG16 to return, such as "relu3_3".
      dtype: of VGG16's computations.

    Raises:
      UserError: the file or VGG16's weights are missing or invalid, or a layer is unknown.
    """
    if isinstance(network, FeatureNetwork):
        return network
    if network:
        return FeatureNetwork(*exported_network.load(network))
    return vgg16_network(vgg16_weights, layers, dtype)


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


def grid_features(
    net: Net, images: Float[Array, "b h w c"], grid: int, unit: bool = False
) -> list[Float[Array, "b cells _"]]:
    """Returns each feature map, averaged over 3x3 neighbors and then by area to `grid` x `grid` cells.

    `unit` scales the features of each cell and layer to a mean square of 1.
    """
    maps = [_to_grid(x.astype(jnp.float32), grid) for x in cast(tuple[Array, ...], net(NETWORK, images))]
    maps = losses.unit_features(maps) if unit else maps
    return [x.reshape(x.shape[0], grid * grid, -1) for x in maps]


def random_signs(features: int, components: int) -> Float[np.ndarray, "features components"]:
    """Returns a projection that keeps distances (Achlioptas 2003) and mean squares, and is the same on all machines."""
    signs = np.random.default_rng(0).integers(0, 2, (features, components)) * 2 - 1
    return (signs / np.sqrt(features)).astype(np.float32)


def _to_grid(x: Float[Array, "b h w c"], grid: int) -> Float[Array, "b grid grid c"]:
    """Both averages are one matrix for each side."""
    b, h, w, c = x.shape
    rows, columns = _averages(h, grid), _averages(w, grid)
    low = (rows @ x.reshape(b, h, w * c)).reshape(b, grid, w, c)
    return jnp.matmul(columns, low)


@functools.cache
def _averages(length: int, grid: int) -> np.ndarray:
    """Weights [grid, length] of the average over neighbors, and then over the cells of the grid."""
    neighbors = uniform_filter1d(np.eye(length), _NEIGHBORHOOD, axis=0, mode="nearest")
    return (area_average(length, grid) @ neighbors).astype(np.float32)


class GridFeatures:
    """The features of images on the cells of a grid, by layer, each scaled to a variance over all channels of 1.

    The parameters of the scaling are among those of a fit (`net.fitted`): `init` has them before the first pass, which
    is `scale_pass`.
    """

    def __init__(self, network: FeatureNetwork, shape: tuple[int, int, int], grid: int, roi: Roi = None):
        """Takes the network, the (height, width, channels) of images, the cells per side and the pixels that count."""
        self._cells, self._shape = GridCells(grid, roi), shape
        self.cells = self._cells.count  # those with a pixel that counts
        self.widths = channels(network, shape)
        self._ends = np.cumsum(self.widths)
        self.channels = int(self._ends[-1])

    def init(self) -> dict[str, Array]:
        """Returns the parameters before the first pass."""
        return {"center": jnp.zeros(self.channels), "scale": jnp.ones(len(self.widths))}

    def scale_pass(self) -> FitPass:
        """Returns the pass over a draw of the training images that measures each layer's mean and scale."""

        def sums(net, batch):
            features = jnp.concatenate(self._features(net, batch.image), -1)
            weighted = features * batch.weight[:, None, None]
            return {
                "count": batch.weight.sum(),
                "sum": weighted.mean(1).sum(0),
                "square": (weighted * features).mean(1).sum(0),
            }

        def finish(params, sums):
            mean = sums["sum"] / sums["count"]
            variance = np.split(sums["square"] / sums["count"] - mean**2, self._ends[:-1])
            scale = np.sqrt([max(v.sum(), _MIN_VARIANCE) for v in variance])
            return params | {"center": mean, "scale": scale}

        return FitPass("scales", sums, finish, _SCALE_IMAGES)

    def _features(self, net, images):
        return [self._cells.select(x) for x in grid_features(net, images, self._cells.grid)]

    def layers(self, net: Net, images: Float[Array, "b h w c"]) -> list[Float[Array, "b cells _"]]:
        """Returns the scaled features of each layer."""
        layers = self._features(net, images)
        center = jnp.split(net.fitted["center"], self._ends[:-1])
        return [(x - c) / s for x, c, s in zip(layers, center, net.fitted["scale"], strict=True)]

    def projected(self, net: Net, images: Float[Array, "b h w c"]) -> Float[Array, "b cells d"]:
        """Returns the scaled features of all layers, projected by the fit's parameter "projection"."""
        return jnp.concatenate(self.layers(net, images), -1) @ net.fitted["projection"]

    def to_image_size(self, cells: Float[Array, "b cells"]) -> Float[Array, "b h w"]:
        """Enlarges values of cells linearly to the size of images."""
        return to_image_size(self._cells.fill(cells), self._shape)


def random_projection(key: Key[Array, ""], channels: int, components: int) -> Float[Array, "channels d"]:
    """Returns random orthonormal columns, at most as many as channels."""
    return jnp.linalg.qr(jax.random.normal(key, (channels, min(components, channels))))[0]


def fitted_detector(
    network: FeatureNetwork, score_and_map: Callable, init: Callable, passes: tuple[FitPass, ...]
) -> Detector:
    """Returns a detector that is fitted on the features of a frozen network; see `Detector` and `Fit`."""
    return Detector(
        networks={NETWORK: network.module},
        objectives={},
        frozen={NETWORK: network.variables},
        score_and_map=score_and_map,
        fit=Fit(init, passes),
    )


def top_count(cells: int, share: float) -> int:
    """Returns the number of cells in a share of them, at least one."""
    return max(1, math.ceil(share * cells))


def top_mean(cells: Float[Array, "b cells"], share: float) -> Float[Array, "b"]:
    """Returns the mean over the highest share of the cells, at least one."""
    return lax.top_k(cells, top_count(cells.shape[1], share))[0].mean(1)


def to_image_size(cells: Float[Array, "b cells"], shape: tuple[int, int, int]) -> Float[Array, "b h w"]:
    """Enlarges a square map of cells linearly to the size of images."""
    side = round(cells.shape[1] ** 0.5)
    return resize_linear(cells.reshape(-1, side, side), *shape[:2])
