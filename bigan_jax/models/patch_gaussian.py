"""Gaussians of pretrained features: one per position for local changes, one per layer for diffuse ones.

The first is PaDiM (Defard et al. 2021, "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization") with a random projection in place of a random choice of channels. The second is a Gaussian of each
layer's mean features (Rippel et al. 2021, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for
Anomaly Detection").
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float

from bigan_jax.detector import Detector, FitPass
from bigan_jax.nn import classical, feature_maps
from bigan_jax.nn.feature_maps import FeatureNetwork
from bigan_jax.nn.pixel_statistics import Roi
from bigan_jax.value_checks import POSITIVE_INTEGER, UNIT

FIELD_RANGES = {"grid": POSITIVE_INTEGER, "components": POSITIVE_INTEGER, "shrinkage": UNIT, "top": UNIT}

_FOLDS = 5  # of the training images, for scores by Gaussians that do not know an image
_ENOUGH_IMAGES = 100  # for the covariances of the cells; AUROC on industrial parts rises up to about this number
_KEPT = 64  # training images whose scores standardize the two parts
_MIN_VARIANCE = 1e-6  # of features whose variance over all channels is 1


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
    shrinkage: float = 0.05,
    top: float = 0.03,
    roi: Roi = None,
) -> Detector:
    """Creates the Gaussians of features on a grid.

    The score is the larger of the two parts, each as the standardized logarithm of a Mahalanobis distance: the mean
    over the most distant cells, and the distance of the image's mean features. The map shows the cells' distances.

    Args:
      vgg16_weights: a file of weights, or "" for those of the installed package.
      network: an exported network's file or a network, in place of VGG16 and of `feature_layers`; "" for VGG16.
      grid: cells per side. Memory of the fit grows with its square: 0.5 GB at 16.
      components: dimensions that the features of a cell are projected to.
      shrinkage: share of a multiple of the identity in each cell's covariance.
      top: share of the cells, the most distant ones, whose mean distance is the local part.
      roi: the pixels that count; None for all. Cells without one are left out.

    Raises:
      UserError: the network's file or VGG16's weights are missing or invalid, or a layer is unknown.
    """
    loaded = feature_maps.load_network(network, vgg16_weights, feature_layers, dtype)
    features = feature_maps.GridFeatures(loaded, shape, grid, roi)
    cells, components = features.cells, min(components, features.channels)

    def init(key):
        return {
            **features.init(),
            "projection": feature_maps.random_projection(key, features.channels, components),
            "cell_mean": jnp.zeros((cells, components)),
            "cell_whitening": jnp.zeros((cells, components, components)),
            "layers": [classical.Gaussian(jnp.zeros(n), jnp.zeros((n, n))) for n in features.widths],
            "log_mean": jnp.zeros(2),
            "log_deviation": jnp.ones(2),
        }

    def cells_and_means(net, images):
        layers = features.layers(net, images)
        return jnp.concatenate(layers, -1) @ net.fitted["projection"], [x.mean(1) for x in layers]

    def sum_moments(net, batch):
        projected, means = cells_and_means(net, batch.image)
        folds = batch.fold(_FOLDS).T
        kept = jnp.minimum(batch.count, _KEPT)
        slot = batch.index * kept // batch.count
        is_kept = (batch.weight > 0) & ((batch.index == 0) | ((batch.index - 1) * kept // batch.count < slot))

        def keep(x):
            x = jnp.where(is_kept.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
            return jnp.zeros((_KEPT, *x.shape[1:]), x.dtype).at[slot].add(x)

        def cell_moments(weight):
            weighted = projected * weight[:, None, None]
            return weighted.sum(0), jnp.einsum("bpi,bpj->pij", weighted, projected)

        cell_sum, cell_outer = lax.map(cell_moments, folds)
        return {
            "count": folds.sum(1),
            "cell_sum": cell_sum,
            "cell_outer": cell_outer,
            "layers": [jax.vmap(classical.moment_sums, (None, 0))(mean, folds) for mean in means],
            "kept": {"cells": keep(projected), "means": [keep(mean) for mean in means]},
            "kept_fold": keep(batch.index * _FOLDS // batch.count + 1),  # 0: none
        }

    def finish_moments(params, sums):
        cell_mean, covariance = _cell_gaussians(sums, np.ones(_FOLDS), shrinkage)
        params = params | {
            "cell_mean": cell_mean,
            "cell_whitening": np.linalg.inv(np.linalg.cholesky(covariance)),
            "layers": [classical.ledoit_wolf(jax.tree.map(lambda x: x.sum(0), layer))[0] for layer in sums["layers"]],
        }
        logs = np.concatenate([_held_out_logs(sums, fold, shrinkage, top) for fold in range(_FOLDS)])
        deviation = logs.std(0) if len(logs) > 1 else np.ones(2)
        return params | {"log_mean": logs.mean(0), "log_deviation": np.maximum(deviation, _MIN_VARIANCE)}

    def score_and_map(net, batch, keys):
        fitted = net.fitted
        projected, means = cells_and_means(net, batch.image)
        white = jnp.einsum("bpj,pij->bpi", projected - fitted["cell_mean"], fitted["cell_whitening"])
        distance = jnp.sqrt(jnp.square(white).sum(-1))
        layers = zip(means, fitted["layers"], strict=True)
        squared = sum(jnp.square(classical.whitened(mean, layer)).sum(1) for mean, layer in layers)
        logs = _logs(feature_maps.top_mean(distance, top), squared)
        score = ((logs - fitted["log_mean"]) / fitted["log_deviation"]).max(1)
        return score, features.to_image_size(distance)

    passes = (features.scale_pass(), FitPass("moments", sum_moments, finish_moments))
    detector = feature_maps.fitted_detector(loaded, score_and_map, init, passes)
    return detector._replace(enough_images=_ENOUGH_IMAGES)


def _logs(local, squared):
    """Returns the logarithms of the local part and of the global part, a squared distance: [n 2]."""
    xp = np if isinstance(local, np.ndarray) else jnp
    return xp.stack([xp.log(local + 1e-12), xp.log(squared + 1e-12)], 1)


def _cell_gaussians(sums, folds: Float[np.ndarray, "k"], shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the shrunk covariance of each cell, over the folds with a weight of 1."""
    total = folds @ sums["count"]
    mean = np.tensordot(folds, sums["cell_sum"], 1) / total
    covariance = np.tensordot(folds, sums["cell_outer"], 1) / total - mean[:, :, None] * mean[:, None]
    d = mean.shape[1]
    average = np.trace(covariance, axis1=1, axis2=2) / d
    covariance *= 1 - shrinkage
    covariance[:, np.arange(d), np.arange(d)] += shrinkage * average[:, None] + _MIN_VARIANCE
    return mean, covariance


def _held_out_logs(sums, fold: int, shrinkage: float, top: float) -> Float[np.ndarray, "n 2"]:
    """Returns the logarithms of both parts of the kept images of a fold, by Gaussians of the other folds."""
    chosen = sums["kept_fold"] == fold + 1
    others = (np.arange(_FOLDS) != fold).astype(float)
    if not chosen.any() or not others @ sums["count"]:
        return np.empty((0, 2))
    mean, covariance = _cell_gaussians(sums, others, shrinkage)
    offset = np.moveaxis(sums["kept"]["cells"][chosen] - mean, 0, -1)  # [cells, components, images]
    distance = np.sqrt((offset * np.linalg.solve(covariance, offset)).sum(1)).T
    squared = np.zeros(len(distance))
    for layer, means in zip(sums["layers"], sums["kept"]["means"], strict=True):
        normal, _ = classical.ledoit_wolf(jax.tree.map(lambda x: np.tensordot(others, x, 1), layer))
        squared += np.square(classical.whitened(means[chosen], normal)).sum(1)
    count = feature_maps.top_count(distance.shape[1], top)
    return np.asarray(_logs(np.sort(distance, axis=1)[:, -count:].mean(1), squared))
