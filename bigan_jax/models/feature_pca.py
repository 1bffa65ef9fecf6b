"""Principal components of an image's whole map of pretrained features: what they do not explain is anomalous.

The linear form of a network that reconstructs features (Yang et al. 2020, "DFR: Deep Feature Reconstruction for
Unsupervised Anomaly Segmentation"), with the features of all positions together.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, FitPass
from bigan_jax.nn import classical, feature_maps
from bigan_jax.nn.feature_maps import FeatureNetwork
from bigan_jax.nn.pixel_statistics import Roi
from bigan_jax.value_checks import POSITIVE_INTEGER, UNIT, Range

FIELD_RANGES = {
    **dict.fromkeys(("grid", "components", "axes"), POSITIVE_INTEGER),
    "images": Range(
        f"an integer from 1 to {classical.MAX_EXACT}",
        lambda n: POSITIVE_INTEGER.accepts(n) and n <= classical.MAX_EXACT,  # pyright: ignore[reportOperatorIssue]
    ),
    "top": UNIT,
}


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    vgg16_weights: str = "",
    network: FeatureNetwork | str = "",
    feature_layers: tuple[str, ...] = ("relu2_2", "relu3_3", "relu4_3"),
    grid: int = 16,
    components: int = 200,
    axes: int = 128,
    images: int = classical.MAX_EXACT,
    top: float = 0.03,
    roi: Roi = None,
) -> Detector:
    """Creates a PCA of features on a grid.

    The map is the length of each cell's residual, and the score the mean over the cells with the longest ones.

    Args:
      vgg16_weights: a file of weights, or "" for those of the installed package.
      network: an exported network's file or a network, in place of VGG16 and of `feature_layers`; "" for VGG16.
      grid: cells per side.
      components: dimensions that the features of a cell are projected to.
      axes: number of principal axes; at most one less than images.
      images: training images, at most: always the same draw. At the defaults, each takes 0.1 MB in the fit's sums.
      top: share of the cells, those with the longest residuals, whose mean is the score.
      roi: the pixels that count; None for all. Cells without one are left out.

    Raises:
      UserError: the network's file or VGG16's weights are missing or invalid, or a layer is unknown.
    """
    loaded = feature_maps.load_network(network, vgg16_weights, feature_layers, dtype)
    features = feature_maps.GridFeatures(loaded, shape, grid, roi)
    length = features.cells * min(components, features.channels)  # of an image's map

    def init(key):
        return {
            **features.init(),
            "projection": feature_maps.random_projection(key, features.channels, components),
            "mean": jnp.zeros(length),
            "axes": jnp.zeros((axes, length)),
        }

    def keep(net, batch):
        """Keeps the maps as float16, in bytes: integers are added without an array of lost digits."""
        maps = features.projected(net, batch.image).reshape(-1, length)
        values = lax.bitcast_convert_type(maps.astype(jnp.float16), jnp.uint8)
        values = jnp.where(batch.weight[:, None, None] > 0, values, 0)
        kept = jnp.zeros((images, length, 2), jnp.uint8).at[batch.index].add(values)
        return {"maps": kept, "count": (batch.weight > 0).sum()}

    def finish(params, sums):
        maps = np.asarray(sums["maps"][: int(sums["count"])])
        maps = maps.reshape(len(maps), -1).view(np.float16).astype(np.float32)
        mean = maps.mean(0)
        maps -= mean  # in place: up to 0.4 GB
        found = classical.principal_axes(maps, axes)
        padded = np.zeros((axes, length), np.float32)  # fewer images have fewer axes
        padded[: len(found)] = found
        return params | {"mean": mean, "axes": padded}

    def score_and_map(net, batch, keys):
        maps = features.projected(net, batch.image).reshape(-1, length) - net.fitted["mean"]
        residual = maps - maps @ net.fitted["axes"].T @ net.fitted["axes"]
        cells = jnp.sqrt(jnp.square(residual).reshape(maps.shape[0], features.cells, -1).sum(-1))
        return feature_maps.top_mean(cells, top), features.to_image_size(cells)

    passes = features.scale_pass(), FitPass("maps", keep, finish, images)
    return feature_maps.fitted_detector(loaded, score_and_map, init, passes)
