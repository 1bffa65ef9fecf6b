"""BiGAN: encoder E and generator G are trained only to fool a discriminator of pairs.

Donahue et al. 2016, "Adversarial Feature Learning", Sec. 3; for anomaly detection Zenati et al. 2018, "Efficient
GAN-Based Anomaly Detection", Sec. 3, and their reference implementation
houssamzenati/Efficient-GAN-Anomaly-Detection, bigan/mnist_utilities.py. Its initial weights from N(0, 0.02) and its
dropout in D keep the training stable. Sizes are those of the Improved BiGAN, so that the two differ only in the
improvements. 42,248,514 parameters at 128x128x1.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.losses import discriminator_logs, spread_logs, standard_normal
from bigan_jax.nn.networks import ConvDecoder, ConvEncoder, JointDiscriminator
from bigan_jax.value_checks import DECAY, POSITIVE_INTEGER, UNIT

FIELD_RANGES = {
    **dict.fromkeys(("latent", "widths", "discriminator_widths", "discriminator_hidden"), POSITIVE_INTEGER),
    "discriminator_dropout": DECAY,
    "feature_weight": UNIT,
    "averaging": DECAY,
}


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    latent: int = 256,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    discriminator_widths: tuple[int, ...] = (64, 128, 256, 512),
    discriminator_hidden: int = 512,
    discriminator_dropout: float = 0.5,
    feature_weight: float = 0.1,
    averaging: float = 0.999,
) -> Detector:
    """Creates encoder E, generator G and discriminator D(x, z).

    Args:
      widths: channels of E's convolutions; G has them in reverse.
      discriminator_hidden: size of D's dense layers.
      discriminator_dropout: dropout rate of every layer of D in training, as in the reference implementation. Without
        dropout, D memorizes some hundred images within a few epochs.
      feature_weight: weight of the difference of D's features in the model's own score, from 0 to 1; the difference
        of images has the rest.
      averaging: decay of the moving average of weights that is used for scoring; 0 uses the last weights.
    """
    init = {"dtype": dtype, "kernel_init": nn.initializers.normal(0.02)}  # DCGAN's
    networks = {
        "encoder": ConvEncoder(latent, widths, **init),
        "generator": ConvDecoder(shape, widths[-1], widths[-2::-1], **init),
        "discriminator": JointDiscriminator(discriminator_widths, discriminator_hidden, discriminator_dropout, **init),
    }

    def pairs(net, batch, keys):
        """Returns D's logits of (x, E(x)) and of (G(z), z), and the images G(z)."""
        x, z = batch.image, standard_normal(keys, latent)
        real_keys, fake_keys = (jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in (1, 2))
        generated = net("generator", z)
        real, _ = net("discriminator", x, net("encoder", x), real_keys)
        fake, _ = net("discriminator", generated, z, fake_keys)
        return real, fake, generated

    def discriminator_loss(net, batch, keys):
        real, fake, _ = pairs(net, batch, keys)
        return losses.bce(real, 1) + losses.bce(fake, 0), discriminator_logs(real, fake)

    def adversarial_loss(net, batch, keys):
        real, fake, generated = pairs(net, batch, keys)
        return losses.bce(real, 0) + losses.bce(fake, 1), spread_logs(net.train, batch.image, generated=generated)

    def reconstruct(net, batch, keys):
        return net("generator", net("encoder", batch.image))

    def native_score(net, batch, keys):
        x, code = batch.image, net("encoder", batch.image)
        reconstruction = net("generator", code)
        _, features = net("discriminator", x, code)
        _, reconstruction_features = net("discriminator", reconstruction, code)
        residual = jnp.abs(x - reconstruction).sum((1, 2, 3))
        difference = jnp.abs(features - reconstruction_features).sum(1)
        return (1 - feature_weight) * residual + feature_weight * difference

    return Detector(
        networks=networks,
        objectives={
            "discriminator": Objective(("discriminator",), discriminator_loss),
            "adversarial": Objective(("encoder", "generator"), adversarial_loss),
        },
        reconstruct=reconstruct,
        native_score=native_score,
        averaging=averaging,
    )
