"""Fully connected autoencoder: the paper's FCAE.

17,124,480 parameters at 128x128x1, nearly all in the first layer and the last: one weight for each
pair of pixel and hidden unit.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.blocks import BatchNorm, leaky_relu


class DenseStack(nn.Module):
    """Dense layers with BatchNorm and LeakyReLU after all but the last: [b, n] -> [b, widths[-1]].

    Computes in `dtype`, returns float32.
    """

    widths: tuple[int, ...]
    dtype: jnp.dtype | None = None

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
    dtype: jnp.dtype = jnp.float32,
    hidden: tuple[int, ...] = (512, 256, 128),
) -> Detector:
    """Dense layers down to a code and back to pixels, trained on MSE.

    shape: (height, width, channels), any.
    hidden: widths on the way down; the last is the code's.
    """
    networks = {
        "encoder": DenseStack(tuple(hidden), dtype=dtype),
        "decoder": DenseStack((*hidden[-2::-1], math.prod(shape)), dtype=dtype),
    }

    def reconstruct(net, batch, keys):
        code = net("encoder", batch.image.reshape(len(batch.image), -1))
        return nn.sigmoid(net("decoder", code)).reshape(batch.image.shape)

    def reconstruction_loss(net, batch, keys):
        return losses.mse(batch.image, reconstruct(net, batch, keys)).mean(), {}

    return Detector(
        networks=networks,
        objectives={"reconstruction": Objective(("encoder", "decoder"), reconstruction_loss)},
        reconstruct=reconstruct,
    )
