"""The mean training image as every image's reconstruction: the least that a detector must beat."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, Fit, FitPass

FIELD_RANGES = {}


def create(*, shape: tuple[int, int, int], conditions: int = 1, dtype: DTypeLike = jnp.float32) -> Detector:
    """Creates a detector that reconstructs every image by the mean over the training images."""

    def sums(net, batch):
        return {"image": jnp.tensordot(batch.weight, batch.image, 1), "count": batch.weight.sum()}

    def finish(params, sums):
        return {"mean": sums["image"] / sums["count"]}

    def reconstruct(net, batch, keys):
        return jnp.broadcast_to(net.fitted["mean"], batch.image.shape)

    fit = Fit(lambda key: {"mean": jnp.zeros(shape)}, (FitPass("mean", sums, finish),))
    return Detector({}, {}, reconstruct, fit=fit)
