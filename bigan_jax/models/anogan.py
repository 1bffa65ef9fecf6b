"""AnoGAN: a DCGAN of normal images, and for each test image a search for its latent code.

Schlegl et al. 2017, "Unsupervised Anomaly Detection with Generative Adversarial Networks to Guide Marker Discovery",
Sec. 2; reference implementation LeeDoYup/AnoGAN-tf, model.py. Its 5x5 kernels are 4x4 here, as in all detectors of
this project. 8,820,418 parameters at 128x128x1.

The networks take and return images in [-1, 1], as in the reference: the weights of the search's terms require it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from bigan_jax.detector import Detector, LatentSearch, Objective, example_keys
from bigan_jax.nn import losses
from bigan_jax.nn.losses import spread_logs
from bigan_jax.nn.networks import DCGANEncoder, DCGANGenerator, to_signed
from bigan_jax.value_checks import DECAY, POSITIVE, POSITIVE_INTEGER, UNIT

FIELD_RANGES = {
    **dict.fromkeys(("latent", "widths", "search_steps", "restarts"), POSITIVE_INTEGER),
    "search_rate": POSITIVE,
    "search_b1": DECAY,
    "feature_weight": UNIT,
}


class SearchState(NamedTuple):
    """The state of the latent search for a batch of images."""

    codes: Float[Array, "b restarts z"]
    adam: PyTree  # Adam's state, separate for each image
    features: Float[Array, "b i j d"]  # discriminator features of the images, which the search does not change


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    latent: int = 100,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    search_steps: int = 500,
    search_rate: float = 1e-3,
    search_b1: float = 0.5,
    feature_weight: float = 0.1,
    restarts: int = 1,
) -> Detector:
    """Creates the generator and discriminator of a DCGAN, and the search that scores images.

    Args:
      widths: channels of the discriminator's convolutions; the generator has them in reverse.
      search_rate: learning rate of the search's Adam.
      search_b1: decay of the first moment of the search's Adam.
      feature_weight: weight of the difference of discriminator features, from 0 to 1; the difference of images has
        the rest.
      restarts: number of initial codes per image; the best result is used.
    """
    networks = {
        "generator": DCGANGenerator(shape, widths[::-1], dtype=dtype),
        "discriminator": DCGANEncoder(1, widths, dtype=dtype),
    }
    adam = optax.adam(search_rate, search_b1)

    def generated(net, keys):
        return net("generator", jax.vmap(lambda key: _prior(key, latent))(keys))

    def logits(net, images):
        return net("discriminator", images)[0][:, 0]

    def discriminator_loss(net, batch, keys):
        real = logits(net, to_signed(batch.image))
        fake = logits(net, generated(net, keys))
        return losses.bce(real, 1) + losses.bce(fake, 0), losses.discriminator_logs(real, fake)

    def generator_loss(net, batch, keys):
        images = generated(net, keys)
        return losses.bce(logits(net, images), 1), spread_logs(net.train, to_signed(batch.image), generated=images)

    def distance(net, batch, features, codes) -> Float[Array, "b restarts"]:
        """Distance of the codes' images from the batch, in pixels and discriminator features."""
        images = net("generator", codes.reshape(-1, latent))
        _, generated_features = net("discriminator", images)
        residual = _absolute_difference(to_signed(batch.image), images)
        return (1 - feature_weight) * residual + feature_weight * _absolute_difference(features, generated_features)

    def start(net, batch, keys):
        restart_keys = jax.vmap(lambda key: example_keys(key, jnp.arange(restarts)))(keys)
        codes = jax.vmap(jax.vmap(lambda key: _prior(key, latent)))(restart_keys)
        _, features = net("discriminator", to_signed(batch.image))
        return SearchState(codes, jax.vmap(adam.init)(codes), features)

    def step(net, batch, search):
        # In inference mode images do not depend on each other, nor do the gradients of the sum.
        gradient = jax.grad(lambda codes: distance(net, batch, search.features, codes).sum())
        updates, adam_state = jax.vmap(adam.update)(gradient(search.codes), search.adam)
        return search._replace(codes=search.codes + updates, adam=adam_state)

    def distances(net, batch):
        return distance(net, batch, batch.latent.features, batch.latent.codes)

    def reconstruct(net, batch, keys):
        best = distances(net, batch).argmin(1)
        codes = jnp.take_along_axis(batch.latent.codes, best[:, None, None], axis=1)[:, 0]
        return (net("generator", codes) + 1) / 2

    def native_score(net, batch, keys):
        return distances(net, batch).min(1)

    return Detector(
        networks=networks,
        objectives={
            "discriminator": Objective(("discriminator",), discriminator_loss),
            "generator": Objective(("generator",), generator_loss),
        },
        reconstruct=reconstruct,
        native_score=native_score,
        search=LatentSearch(search_steps, start, step),
    )


def _prior(key: Key[Array, ""], latent: int) -> Float[Array, "z"]:
    """Uniform in [-1, 1], as in the paper; 500 steps of 1e-3 reach most of that range."""
    return jax.random.uniform(key, (latent,), minval=-1, maxval=1)


def _absolute_difference(x: Float[Array, "b h w c"], candidates: Float[Array, "n h w c"]) -> Float[Array, "b restarts"]:
    """Sums over all axes but the first; n = b * restarts, those of one image are adjacent."""
    candidates = candidates.reshape(len(x), -1, *x.shape[1:])
    return jnp.abs(x[:, None] - candidates).sum((2, 3, 4))
