"""GANomaly: an autoencoder with a second encoder of its reconstructions.

The score is the difference of the two codes, which is small for normal images.

Akcay et al. 2018, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training", Sec. 3; reference
implementation samet-akcay/ganomaly, lib/networks.py and lib/model.py. Unlike anomalib's variant, it compares the
features of the discriminator D, not its outputs. 49,515,648 parameters at 128x128x1.

The networks take and return images in [-1, 1], as in the reference: the loss weights are for that range. The
reference reinitializes D when its loss falls below 1e-5; here training/health.py warns long before.
"""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, Objective
from bigan_jax.errors import UserError
from bigan_jax.nn import losses
from bigan_jax.nn.losses import spread_logs
from bigan_jax.nn.networks import DCGANEncoder, DCGANGenerator, to_signed
from bigan_jax.value_checks import POSITIVE_INTEGER

FIELD_RANGES = {"latent": POSITIVE_INTEGER, "width": POSITIVE_INTEGER}

_SMALLEST = 4  # pixels; side of the encoder's last feature map


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    latent: int = 100,
    width: int = 64,
    adversarial_weight: float = 1.0,
    reconstruction_weight: float = 50.0,
    code_weight: float = 1.0,
) -> Detector:
    """Creates two encoders, the generator between them, and a discriminator of the same shape.

    Args:
      shape: height and width are the same power of two, 8 or more.
      width: channels of the first convolution; each further one doubles them, down to 4x4 pixels.
      adversarial_weight: weight of the squared difference of D's features.
      reconstruction_weight: weight of the absolute difference of images.
      code_weight: weight of the squared difference of the two codes.

    Raises:
      UserError: the shape is another.
    """
    widths = tuple(width << i for i in range((shape[0] // _SMALLEST).bit_length() - 1))
    if not widths or shape[:2] != (_SMALLEST << len(widths),) * 2:
        raise UserError(
            "config.data.image_size must be a power of two from 8 on for GANomaly, which halves "
            f"images down to {_SMALLEST}x{_SMALLEST} pixels (got {shape[0]})."
        )

    def encoder(features):
        # The reference ends with a 4x4 convolution of a 4x4 map, which is a dense layer.
        return DCGANEncoder(features, widths, use_bias=False, dtype=dtype)

    networks = {
        "encoder": encoder(latent),
        "generator": DCGANGenerator(shape, widths[::-1], use_bias=False, dtype=dtype),
        "second_encoder": encoder(latent),
        "discriminator": encoder(1),
    }

    def autoencode(net, x):
        """Returns the reconstruction, the code, and the code of the reconstruction."""
        code, _ = net("encoder", x)
        reconstruction = net("generator", code)
        return reconstruction, code, net("second_encoder", reconstruction)[0]

    def generator_loss(net, batch, keys):
        x = to_signed(batch.image)
        reconstruction, code, second_code = autoencode(net, x)
        _, features = net("discriminator", x)
        _, reconstruction_features = net("discriminator", reconstruction)
        loss, terms = losses.weighted_sum(
            {"features": adversarial_weight, "mae": reconstruction_weight, "code": code_weight},
            {
                "features": losses.mse(features, reconstruction_features).mean(),
                "mae": losses.mae(x, reconstruction).mean(),
                "code": jnp.square(code - second_code).mean(),
            },
        )
        return loss, terms | spread_logs(net.train, x, reconstruction=reconstruction)

    def discriminator_loss(net, batch, keys):
        x = to_signed(batch.image)
        reconstruction = lax.stop_gradient(net("generator", net("encoder", x)[0]))
        real, fake = (net("discriminator", y)[0][:, 0] for y in (x, reconstruction))
        return losses.bce(real, 1) + losses.bce(fake, 0), losses.discriminator_logs(real, fake)

    def reconstruct(net, batch, keys):
        code, _ = net("encoder", to_signed(batch.image))
        return (net("generator", code) + 1) / 2

    def native_score(net, batch, keys):
        _, code, second_code = autoencode(net, to_signed(batch.image))
        return jnp.square(code - second_code).mean(1)

    return Detector(
        networks=networks,
        objectives={
            "generator": Objective(("encoder", "generator", "second_encoder"), generator_loss),
            "discriminator": Objective(("discriminator",), discriminator_loss),
        },
        reconstruct=reconstruct,
        native_score=native_score,
    )
