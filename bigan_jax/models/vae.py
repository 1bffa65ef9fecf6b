"""Variational autoencoder (Kingma and Welling 2014), beta-VAE and conditional VAE.

With `beta` above 1 it is the beta-VAE (Higgins et al. 2017, Eq. 4). With `conditional` it is the conditional VAE
(Sohn et al. 2015, Sec. 4.1; for anomaly detection Uzunova et al. 2018): encoder and decoder also get a class label
that is known of normal and anomalous images alike, such as the species, plane or category.

Reduction: the squared error is SUMMED over pixels and channels, the KL divergence SUMMED over the dimensions of the
code, and both are averaged over the batch. With beta = 1 this is the negative evidence lower bound for Gaussian
pixels of variance 1/2, up to a constant. A mean over pixels would make beta in effect height * width * channels times
as large: 16,384 times at 128x128x1.

The networks are the CAE's. 7,687,297 parameters at 128x128x1; the conditional VAE has as many if there is one
condition. Reconstructions, and therefore scores, decode the mean of the code without noise. The
decoder's BatchNorm statistics for scoring are those of mean codes too. By calibration score, averages of decoded
samples and a decoder without BatchNorm are each worse; both together are better at four times the decoding, and were
compared in short runs only (docs/results/log.md, 55).
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bigan_jax.detector import Detector, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.networks import ConvDecoder, ConvEncoder
from bigan_jax.value_checks import POSITIVE_INTEGER

FIELD_RANGES = {"latent": POSITIVE_INTEGER, "widths": POSITIVE_INTEGER}

# Log-variances are bounded softly by +-20. Up to +-5 they change by at most 2 %, and neither exp() nor a sum over a
# thousand dimensions overflows.
_LOG_VARIANCE_LIMIT = 20.0


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    latent: int = 128,
    widths: tuple[int, ...] = (32, 64, 128, 256),
    beta: float = 1.0,
    conditional: bool = False,
) -> Detector:
    """Creates a CAE with a Gaussian code, trained on the evidence lower bound.

    Args:
      widths: channels of the encoder's convolutions; the decoder has them in reverse.
      beta: weight of the KL divergence, for the reduction in the module's docstring.
      conditional: whether the encoder gets a constant plane per condition, concatenated with the image, and the
        decoder the condition one-hot, concatenated with the code. With one condition this is the VAE.
    """
    networks = {
        "encoder": ConvEncoder(2 * latent, widths, dtype=dtype),
        "decoder": ConvDecoder(shape, widths[-1], widths[-2::-1], dtype=dtype),
    }
    depth = conditions if conditional and conditions > 1 else 0  # number of condition planes

    def with_condition(x, batch):
        """Appends the condition, one-hot, to the last axis."""
        if not depth:
            return x
        condition = jax.nn.one_hot(batch.condition, depth).reshape(-1, *[1] * (x.ndim - 2), depth)
        return jnp.concatenate([x, jnp.broadcast_to(condition, (*x.shape[:-1], depth))], axis=-1)

    def encode(net, batch):
        code = net("encoder", with_condition(batch.image, batch))
        mean, log_variance = jnp.split(code, 2, axis=-1)
        return mean, soft_limit(log_variance)

    def decode(net, batch, code):
        return net("decoder", with_condition(code, batch))

    def reconstruct(net, batch, keys):
        mean, _ = encode(net, batch)
        return decode(net, batch, mean)

    def negative_elbo(net, batch, keys):
        mean, log_variance = encode(net, batch)
        code = mean + jnp.exp(log_variance / 2) * losses.standard_normal(keys, latent)
        images = decode(net, batch, code)
        mse = losses.mse(batch.image, images).mean()
        kl = kl_from_prior(mean, log_variance).mean()
        logs = {"mse": mse, "kl": kl, "active_units": active_units(losses.batch_std(mean, net.train))}
        logs |= losses.spread_logs(net.train, batch.image, reconstruction=images)
        return math.prod(shape) * mse + beta * kl, logs

    note = "all images have the same condition, so the conditional VAE is a VAE here"
    return Detector(
        networks=networks,
        objectives={"elbo": Objective(("encoder", "decoder"), negative_elbo)},
        reconstruct=reconstruct,
        notes=(note,) if conditional and not depth else (),
    )


def kl_from_prior(mean: Float[Array, "b z"], log_variance: Float[Array, "b z"]) -> Float[Array, "b"]:
    """Returns KL(N(mean, variance) || N(0, I)) in nats (Kingma and Welling 2014, Appendix B)."""
    return 0.5 * (jnp.square(mean) + jnp.expm1(log_variance) - log_variance).sum(-1)


def active_units(std_of_means: Float[Array, "z"]) -> Float[Array, ""]:
    """Returns the number of dimensions whose posterior means have a variance over images above 0.01.

    Burda et al. 2016, "Importance Weighted Autoencoders", Sec. 5.2, call them active; the others ignore the image.
    """
    return (jnp.square(std_of_means) > 0.01).sum().astype(jnp.float32)


def soft_limit(log_variance: Float[Array, "b z"]) -> Float[Array, "b z"]:
    """Bounds log-variances smoothly, so that the gradient of large ones does not vanish."""
    return _LOG_VARIANCE_LIMIT * jnp.tanh(log_variance / _LOG_VARIANCE_LIMIT)
