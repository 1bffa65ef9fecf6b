"""Fully connected autoencoder, the paper's FCAE, for images of any shape.

17,124,480 parameters at 128x128x1, nearly all in the first and the last layer: one per pixel and hidden unit.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.blocks import BatchNorm, leaky_relu
from bigan_jax.value_checks import POSITIVE_INTEGER

FIELD_RANGES = {"hidden": POSITIVE_INTEGER}


class DenseStack(nn.Module):
    """Dense layers, all but the last followed by BatchNorm and LeakyReLU."""

    widths: tuple[int, ...]
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n"], train: bool) -> Float[Array, "b m"]:
        for width in self.widths[:-1]:
            x = nn.Dense(width, use_bias=False, dtype=self.dtype)(x)
            x = leaky_relu(BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        return nn.Dense(self.widths[-1], dtype=self.dtype)(x).astype(jnp.float32)


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    hidden: tuple[int, ...] = (512, 256, 128),
) -> Detector:
    """Creates dense layers from pixels to a code and back, trained on the mean squared error.

    `hidden` has the widths of the encoder's layers, the last of which is the code; the decoder has them in reverse.
    """
    networks = {
        "encoder": DenseStack(tuple(hidden), dtype=dtype),
        "decoder": DenseStack((*hidden[-2::-1], math.prod(shape)), dtype=dtype),
    }

    def reconstruct(net, batch, keys):
        code = net("encoder", batch.image.reshape(batch.image.shape[0], -1))
        return nn.sigmoid(net("decoder", code)).reshape(batch.image.shape)

    def reconstruction_loss(net, batch, keys):
        images = reconstruct(net, batch, keys)
        logs = losses.spread_logs(net.train, batch.image, reconstruction=images)
        return losses.mse(batch.image, images).mean(), logs

    return Detector(
        networks=networks,
        objectives={"reconstruction": Objective(("encoder", "decoder"), reconstruction_loss)},
        reconstruct=reconstruct,
    )
