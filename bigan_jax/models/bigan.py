"""BiGAN, the classical one: E and G learn to fool a discriminator of pairs, and nothing else.

Donahue et al. 2016, "Adversarial Feature Learning", Sec. 3; for anomalies Zenati et al. 2018,
"Efficient GAN-Based Anomaly Detection", Sec. 3, and their reference implementation
houssamzenati/Efficient-GAN-Anomaly-Detection, bigan/mnist_utilities.py, whose start from N(0, 0.02)
and whose dropout in D keep the game in balance. Sizes are those of the Improved BiGAN, so that the
two differ in what was improved. 42,248,514 parameters at 128x128x1.

G's statistics for scoring are those of pictures from the prior, not from E's codes: that is the
function that D has judged, and if E's codes leave the prior it should show.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.losses import discriminator_logs, spread_logs, standard_normal
from bigan_jax.nn.networks import ConvDecoder, ConvEncoder, JointDiscriminator


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: jnp.dtype = jnp.float32,
    latent: int = 256,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    discriminator_widths: tuple[int, ...] = (64, 128, 256, 512),
    discriminator_hidden: int = 512,
    discriminator_dropout: float = 0.5,
    feature_weight: float = 0.1,
    averaging: float = 0.999,
) -> Detector:
    """Encoder E, generator G and discriminator D(x, z).

    shape: (height, width, channels); height and width divisible by 2 ** len(widths).
    widths: of E; those of G are the same in reverse.
    discriminator_dropout: of every layer of D in training, as in the reference implementation:
        without, D knows some hundred pictures by heart within a few epochs.
    feature_weight: of the difference of D's features in the native score; the rest goes to that of
        the pictures.
    averaging: decay of the moving average of weights that scores; 0 scores with the last weights.
    """
    init = {"dtype": dtype, "kernel_init": nn.initializers.normal(0.02)}  # DCGAN's
    networks = {
        "encoder": ConvEncoder(latent, widths, **init),
        "generator": ConvDecoder(shape, widths[-1], widths[-2::-1], **init),
        "discriminator": JointDiscriminator(
            discriminator_widths, discriminator_hidden, discriminator_dropout, **init
        ),
    }

    def pairs(net, batch, keys):
        """D's logits of (x, E(x)) and of (G(z), z), and the pictures G(z)."""
        x, z = batch.image, standard_normal(keys, latent)
        of_real, of_fake = (jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in (1, 2))
        generated = net("generator", z)
        real, _ = net("discriminator", x, net("encoder", x), of_real)
        fake, _ = net("discriminator", generated, z, of_fake)
        return real, fake, generated

    def discriminator_loss(net, batch, keys):
        real, fake, _ = pairs(net, batch, keys)
        return losses.bce(real, 1) + losses.bce(fake, 0), discriminator_logs(real, fake)

    def adversarial_loss(net, batch, keys):
        real, fake, generated = pairs(net, batch, keys)
        return losses.bce(real, 0) + losses.bce(fake, 1), spread_logs(generated, batch.image)

    def reconstruct(net, batch, keys):
        return net("generator", net("encoder", batch.image))

    def native_score(net, batch, keys):
        x, code = batch.image, net("encoder", batch.image)
        again = net("generator", code)
        _, features = net("discriminator", x, code)
        _, their_features = net("discriminator", again, code)
        residual = jnp.abs(x - again).sum((1, 2, 3))
        difference = jnp.abs(features - their_features).sum(1)
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
