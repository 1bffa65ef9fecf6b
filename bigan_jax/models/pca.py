"""Principal components of the training images: the projection on the first ones is the reconstruction.

The optimal linear autoencoder (Baldi and Hornik 1989).
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, Fit, FitPass
from bigan_jax.nn import classical
from bigan_jax.value_checks import POSITIVE_INTEGER

FIELD_RANGES = {"components": POSITIVE_INTEGER, "images": POSITIVE_INTEGER}


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    components: int = 64,
    images: int = classical.MAX_EXACT,
) -> Detector:
    """Creates a PCA with `components` axes, of at most `images` training images: always the same draw."""
    pixels = math.prod(shape)

    def init(key):
        return {"mean": jnp.zeros(pixels), "axes": jnp.zeros((components, pixels))}

    def finish(params, sums):
        flat = classical.stored_images(sums) / np.float32(255)
        mean = flat.mean(0)
        axes = np.zeros((components, pixels), np.float32)  # fewer images have fewer axes
        found = classical.principal_axes(flat - mean, components)
        axes[: len(found)] = found
        return {"mean": mean, "axes": axes}

    def reconstruct(net, batch, keys):
        flat = batch.image.reshape(len(batch.image), -1)
        projected = jnp.asarray(classical.project(flat, net.fitted["mean"], net.fitted["axes"]))
        return projected.reshape(batch.image.shape)

    fit = Fit(init, (FitPass("images", classical.store_images(images), finish, images),))
    return Detector({}, {}, reconstruct, fit=fit)
