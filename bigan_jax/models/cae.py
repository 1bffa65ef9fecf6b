"""Convolutional autoencoder: the paper's CNN-AE.

Shape after MedIAnomaly's ae.py (Cai et al. 2024), where the latent size matters more than widths.

5,590,017 parameters at 128x128x1.
"""

import jax.numpy as jnp

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.networks import ConvDecoder, ConvEncoder


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: jnp.dtype = jnp.float32,
    latent: int = 128,
    widths: tuple[int, ...] = (32, 64, 128, 256),
) -> Detector:
    """An encoder of 4x4 stride-2 convolutions, a dense code, and its mirror, trained on MSE.

    shape: (height, width, channels); height and width divisible by 2 ** len(widths).
    """
    networks = {
        "encoder": ConvEncoder(latent, widths, dtype=dtype),
        "decoder": ConvDecoder(shape, widths[-1], widths[-2::-1], dtype=dtype),
    }

    def reconstruct(net, batch, keys):
        return net("decoder", net("encoder", batch.image))

    def reconstruction_loss(net, batch, keys):
        return losses.mse(batch.image, reconstruct(net, batch, keys)).mean(), {}

    return Detector(
        networks=networks,
        objectives={"reconstruction": Objective(("encoder", "decoder"), reconstruction_loss)},
        reconstruct=reconstruct,
    )
