"""A memory bank of normal patches: the distance of each patch to the nearest one is its anomaly.

PatchCore (Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection") with a random projection of the
features, and with the mean over the most distant patches as the score.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, FitPass
from bigan_jax.nn import classical, feature_maps
from bigan_jax.nn.coreset import k_center_greedy
from bigan_jax.nn.feature_maps import FeatureNetwork
from bigan_jax.nn.pixel_statistics import Roi
from bigan_jax.value_checks import POSITIVE_INTEGER, UNIT

FIELD_RANGES = {**dict.fromkeys(("grid", "components", "candidates", "bank"), POSITIVE_INTEGER), "top": UNIT}

_CORESET_DIMENSIONS = 64  # of a random projection that keeps distances to about a tenth


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    vgg16_weights: str = "",
    network: FeatureNetwork | str = "",
    feature_layers: tuple[str, ...] = ("relu2_2", "relu3_3", "relu4_3"),
    grid: int = 16,
    components: int = 256,
    candidates: int = 50_000,
    bank: int = 5_000,
    top: float = 0.03,
    roi: Roi = None,
) -> Detector:
    """Creates a memory bank of the patches of training images, the cells of a grid.

    The map is the distance of each cell to the nearest one of the bank, and the score the mean over the most distant
    cells.

    Args:
      vgg16_weights: a file of weights, or "" for those of the installed package.
      network: an exported network's file or a network, in place of VGG16 and of `feature_layers`; "" for VGG16.
      grid: cells per side.
      components: dimensions that the features of a cell are projected to.
      candidates: cells that the bank is chosen from, at most; as many of each training image, always the same draw.
        Each takes `components` numbers: 50 MB at the defaults, and about 0.5 GB while the bank is chosen.
      bank: cells that are kept, at most. They are chosen so that the others are near them. Time to choose them and to
        score an image is proportional to their number.
      top: share of the cells, the most distant ones, whose mean distance is the score.
      roi: the pixels that count; None for all. Cells without one are left out.

    Raises:
      UserError: the network's file or VGG16's weights are missing or invalid, or a layer is unknown.
    """
    loaded = feature_maps.load_network(network, vgg16_weights, feature_layers, dtype)
    features = feature_maps.GridFeatures(loaded, shape, grid, roi)
    cells, components = features.cells, min(components, features.channels)
    bank = min(bank, candidates)

    def init(key):
        return {
            **features.init(),
            "projection": feature_maps.random_projection(key, features.channels, components),
            "bank": jnp.zeros((bank, components)),
            "count": jnp.zeros((), jnp.int32),  # rows of the bank that are in use
        }

    def draw(net, batch):
        """Keeps the same number of random cells of each image."""
        per_image = (candidates // batch.count).clip(1, cells)
        rank = jax.vmap(_random_ranks, (0, None))(batch.index, cells)
        slot = batch.index[:, None] * per_image + rank
        slot = jnp.where((rank < per_image) & (batch.weight[:, None] > 0), slot, candidates)
        kept = jnp.zeros((candidates, components))
        kept = kept.at[slot.ravel()].set(features.projected(net, batch.image).reshape(-1, components), mode="drop")
        return {"cells": kept, "count": (slot < candidates).sum()}

    def finish(params, sums):
        points = sums["cells"][: int(sums["count"])].astype(np.float32)
        chosen = points[_coreset(points, bank)]
        padded = np.zeros((bank, components), np.float32)
        padded[: len(chosen)] = chosen
        return params | {"bank": padded, "count": np.int32(len(chosen))}

    def score_and_map(net, batch, keys):
        is_used = jnp.arange(bank) < net.fitted["count"]
        among = classical.neighbors(net.fitted["bank"], jnp.zeros(components), is_used)
        # Image by image: the distances of a batch's cells to the bank would take hundreds of megabytes.
        distance = lax.map(lambda x: classical.nearest_distance(x, among), features.projected(net, batch.image))
        return feature_maps.top_mean(distance, top), features.to_image_size(distance)

    passes = features.scale_pass(), FitPass("cells", draw, finish, candidates)
    return feature_maps.fitted_detector(loaded, score_and_map, init, passes)


def _random_ranks(index, cells):
    """Returns a permutation that depends on the image's index alone."""
    return jax.random.permutation(jax.random.fold_in(jax.random.key(0), index), cells)


def _coreset(points, count):
    """Returns the indices of a coreset, chosen by distances in a random projection, as in PatchCore."""
    if len(points) <= count:
        return np.arange(len(points))
    directions = np.random.default_rng(0).standard_normal((points.shape[1], _CORESET_DIMENSIONS), np.float32)
    return k_center_greedy(points @ directions, count)
