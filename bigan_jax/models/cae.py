"""Convolutional autoencoder, the paper's CNN-AE: 5,590,017 parameters at 128x128x1.

The architecture follows MedIAnomaly's ae.py (Cai et al. 2024), where the latent size matters more than the widths.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.networks import ConvDecoder, ConvEncoder
from bigan_jax.value_checks import POSITIVE_INTEGER

FIELD_RANGES = {"latent": POSITIVE_INTEGER, "widths": POSITIVE_INTEGER}


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    latent: int = 128,
    widths: tuple[int, ...] = (32, 64, 128, 256),
) -> Detector:
    """Creates an encoder of 4x4 convolutions with stride 2, a dense code, and a mirrored decoder.

    The loss is the mean squared error. `widths` are the encoder's channels; the decoder has them in reverse.
    """
    networks = {
        "encoder": ConvEncoder(latent, widths, dtype=dtype),
        "decoder": ConvDecoder(shape, widths[-1], widths[-2::-1], dtype=dtype),
    }

    def reconstruct(net, batch, keys):
        return net("decoder", net("encoder", batch.image))

    def reconstruction_loss(net, batch, keys):
        images = reconstruct(net, batch, keys)
        logs = losses.spread_logs(net.train, batch.image, reconstruction=images)
        return losses.mse(batch.image, images).mean(), logs

    return Detector(
        networks=networks,
        objectives={"reconstruction": Objective(("encoder", "decoder"), reconstruction_loss)},
        reconstruct=reconstruct,
    )
