"""The nearest training image by L2 as each image's reconstruction."""

import math

import jax.numpy as jnp
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, Fit, FitPass
from bigan_jax.nn import classical
from bigan_jax.value_checks import POSITIVE_INTEGER

FIELD_RANGES = {"images": POSITIVE_INTEGER}


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    images: int = classical.MAX_EXACT,
) -> Detector:
    """Creates a detector that keeps at most `images` training images: always the same draw."""
    pixels = math.prod(shape)

    def init(key):
        kept = jnp.zeros((images, pixels), jnp.uint8)
        return {"images": kept, "count": jnp.zeros((), jnp.int32), "mean": jnp.zeros(pixels)}

    def finish(params, sums):
        return {"images": sums["images"], "count": sums["count"], "mean": classical.stored_images(sums).mean(0) / 255}

    def reconstruct(net, batch, keys):
        kept = net.fitted["images"].astype(jnp.float32) / 255
        among = classical.neighbors(kept, net.fitted["mean"], jnp.arange(images) < net.fitted["count"])
        flat = batch.image.reshape(batch.image.shape[0], -1)
        return kept[classical.nearest(flat, among)].reshape(batch.image.shape)

    fit = Fit(init, (FitPass("images", classical.store_images(images), finish, images),))
    return Detector({}, {}, reconstruct, fit=fit)
