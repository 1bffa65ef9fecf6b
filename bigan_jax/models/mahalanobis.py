"""The Mahalanobis distance of small thumbnails, with the covariance of Ledoit and Wolf (2004)."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from bigan_jax.data.thumbnails import thumbnails
from bigan_jax.detector import Detector, Fit, FitPass
from bigan_jax.nn import classical
from bigan_jax.nn.pixel_statistics import Roi
from bigan_jax.nn.resizing import GridCells, resize_linear
from bigan_jax.value_checks import POSITIVE_INTEGER

FIELD_RANGES = {"size": POSITIVE_INTEGER}
_CENTER = 0.5  # subtracted before sums of powers, which lose digits far from 0


def create(
    *, shape: tuple[int, int, int], conditions: int = 1, dtype: DTypeLike = jnp.float32, size: int = 16, roi: Roi = None
) -> Detector:
    """Creates a Gaussian of thumbnails of `size` x `size` pixels.

    The score is the squared distance, and the map its parts by pixel of the thumbnail, enlarged. With `roi`, the pixels
    that count, the thumbnail has no others.
    """
    cells = GridCells(size, roi)
    features = cells.count * shape[-1]

    def init(key):
        return classical.Gaussian(jnp.zeros(features), jnp.zeros((features, features)))

    def features_of(images):
        small = thumbnails(images, size).reshape(images.shape[0], size * size, -1)
        return cells.select(small).reshape(images.shape[0], -1) - _CENTER

    def sums(net, batch):
        return classical.moment_sums(features_of(batch.image), batch.weight)

    def score_and_map(net, batch, keys):
        squares = jnp.square(classical.whitened(features_of(batch.image), net.fitted))
        by_cell = cells.fill(squares.reshape(-1, cells.count, shape[-1]).sum(-1))
        return squares.sum(1), resize_linear(by_cell.reshape(-1, size, size), *shape[:2])

    fit = Fit(init, (FitPass("moments", sums, lambda params, sums: classical.ledoit_wolf(sums)[0]),))
    return Detector({}, {}, score_and_map=score_and_map, fit=fit)
