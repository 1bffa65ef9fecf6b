"""GANomaly: an autoencoder whose pictures are encoded again; normal ones give the same code twice.

Akcay et al. 2018, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training", Sec. 3;
reference implementation samet-akcay/ganomaly, lib/networks.py and lib/model.py. Not anomalib's
variant, which matches D's outputs and not its features. 49,515,648 parameters at 128x128x1.

Networks see and make pictures in [-1, 1], as the reference's do: the loss weights belong to that
range. `reconstruct` gives [0, 1]. The reference starts D anew when its loss falls below 1e-5; here
health.py warns long before.
"""

import jax.numpy as jnp
from jax import lax

from bigan_jax.detector import Detector, Objective
from bigan_jax.errors import UserError
from bigan_jax.nn import losses
from bigan_jax.nn.losses import spread_logs
from bigan_jax.nn.networks import DCGANEncoder, DCGANGenerator

_SMALLEST = 4  # pixels a side where the encoder's convolutions end


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: jnp.dtype = jnp.float32,
    latent: int = 100,
    width: int = 64,
    adversarial_weight: float = 1.0,
    reconstruction_weight: float = 50.0,
    code_weight: float = 1.0,
) -> Detector:
    """Two encoders, the generator between them, and a discriminator of the encoders' shape.

    shape: (height, width, channels); height and width the same power of two, 8 or more.
    width: channels of the first convolution; each one doubles them, down to 4x4 pixels.
    adversarial_weight: of the difference of D's features (squared).
    reconstruction_weight: of the difference of pictures (absolute).
    code_weight: of the difference of the two codes (squared).

    Raises UserError for pictures of another shape.
    """
    widths = tuple(width << i for i in range((shape[0] // _SMALLEST).bit_length() - 1))
    if not widths or shape[:2] != (_SMALLEST << len(widths),) * 2:
        raise UserError(
            f"GANomaly halves its pictures down to {_SMALLEST}x{_SMALLEST}: config.data.image_size "
            f"must be 8, 16, 32, 64, 128 or so on, not {shape[0]}"
        )

    def encoder(features):
        # A 4x4 convolution of a 4x4 map, which the reference ends with, is a dense layer.
        return DCGANEncoder(features, widths, use_bias=False, dtype=dtype)

    networks = {
        "encoder": encoder(latent),
        "generator": DCGANGenerator(shape, widths[::-1], use_bias=False, dtype=dtype),
        "second_encoder": encoder(latent),
        "discriminator": encoder(1),
    }

    def through(net, x):
        """(the picture again, its code, the code of the picture again)"""
        code, _ = net("encoder", x)
        again = net("generator", code)
        return again, code, net("second_encoder", again)[0]

    def generator_loss(net, batch, keys):
        x = _signed(batch.image)
        again, code, second_code = through(net, x)
        _, features = net("discriminator", x)
        _, their_features = net("discriminator", again)
        loss, terms = losses.weighted_sum(
            {
                "features": adversarial_weight,
                "mae": reconstruction_weight,
                "code": code_weight,
            },
            {
                "features": losses.mse(features, their_features).mean(),
                "mae": losses.mae(x, again).mean(),
                "code": jnp.square(code - second_code).mean(),
            },
        )
        return loss, terms | spread_logs(again, x)

    def discriminator_loss(net, batch, keys):
        x = _signed(batch.image)
        again = lax.stop_gradient(net("generator", net("encoder", x)[0]))
        real, fake = (net("discriminator", pictures)[0][:, 0] for pictures in (x, again))
        return losses.bce(real, 1) + losses.bce(fake, 0), losses.discriminator_logs(real, fake)

    def reconstruct(net, batch, keys):
        code, _ = net("encoder", _signed(batch.image))
        return (net("generator", code) + 1) / 2

    def native_score(net, batch, keys):
        _, code, second_code = through(net, _signed(batch.image))
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


def _signed(image):
    return 2 * image - 1
