"""AnoGAN: a DCGAN of normal pictures, and for each test picture a search for the code nearest it.

Schlegl et al. 2017, "Unsupervised Anomaly Detection with Generative Adversarial Networks to Guide
Marker Discovery", Sec. 2; reference implementation LeeDoYup/AnoGAN-tf, model.py, whose 5x5 kernels
are 4x4 here, as everywhere else in this project. 8,820,418 parameters at 128x128x1.

Networks see and make pictures in [-1, 1], as the reference's do: the weights of the search's two
terms belong to that range. `reconstruct` gives [0, 1].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from bigan_jax.detector import Detector, LatentSearch, Objective
from bigan_jax.nn import losses
from bigan_jax.nn.losses import spread_logs
from bigan_jax.nn.networks import DCGANEncoder, DCGANGenerator


class Found(NamedTuple):
    """What the search holds of each picture."""

    codes: Float[Array, "b restarts z"]
    adam: PyTree  # Adam's state of each picture, so that none shares another's moments
    features: Float[Array, "b i j d"]  # D's of the picture itself, which the search does not change


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: jnp.dtype = jnp.float32,
    latent: int = 100,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    search_steps: int = 500,
    search_rate: float = 1e-3,
    search_b1: float = 0.5,
    feature_weight: float = 0.1,
    restarts: int = 1,
) -> Detector:
    """Generator and discriminator of a DCGAN, and the search that scores.

    shape: (height, width, channels); height and width divisible by 2 ** len(widths).
    widths: of the discriminator; the generator's are the same in reverse.
    search_steps, search_rate, search_b1: of the search's Adam.
    feature_weight: of the difference of D's features; the rest goes to that of the pictures.
    restarts: searches for each picture from as many codes, of which the best counts.
    """
    networks = {
        "generator": DCGANGenerator(shape, widths[::-1], dtype=dtype),
        "discriminator": DCGANEncoder(1, widths, dtype=dtype),
    }
    adam = optax.adam(search_rate, search_b1)

    def generated(net, keys):
        return net("generator", jax.vmap(lambda key: _prior(key, latent))(keys))

    def judge(net, pictures):
        return net("discriminator", pictures)[0][:, 0]

    def discriminator_loss(net, batch, keys):
        real = judge(net, _signed(batch.image))
        fake = judge(net, generated(net, keys))
        return losses.bce(real, 1) + losses.bce(fake, 0), losses.discriminator_logs(real, fake)

    def generator_loss(net, batch, keys):
        pictures = generated(net, keys)
        return losses.bce(judge(net, pictures), 1), spread_logs(pictures, _signed(batch.image))

    # --- scoring ---

    def distance(net, batch, features, codes) -> Float[Array, "b restarts"]:
        """How far the pictures of the codes are from the batch's, in pixels and D's features."""
        pictures = net("generator", codes.reshape(-1, latent))
        _, their_features = net("discriminator", pictures)
        residual = _absolute_difference(_signed(batch.image), pictures)
        return (1 - feature_weight) * residual + feature_weight * _absolute_difference(
            features, their_features
        )

    def start(net, batch, keys):
        codes = jax.vmap(
            lambda key: jax.vmap(lambda i: _prior(jax.random.fold_in(key, i), latent))(
                jnp.arange(restarts)
            )
        )(keys)
        _, features = net("discriminator", _signed(batch.image))
        return Found(codes, jax.vmap(adam.init)(codes), features)

    def step(net, batch, found):
        # The gradient of the sum over pictures is each picture's own: networks are in inference.
        gradient = jax.grad(lambda codes: distance(net, batch, found.features, codes).sum())
        changes, state = jax.vmap(adam.update)(gradient(found.codes), found.adam)
        return found._replace(codes=found.codes + changes, adam=state)

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
    """Uniform, as in the paper and the reference: 500 steps of 1e-3 reach most of it."""
    return jax.random.uniform(key, (latent,), minval=-1, maxval=1)


def _signed(image):
    return 2 * image - 1


def _absolute_difference(
    x: Float[Array, "b h w c"], candidates: Float[Array, "n h w c"]
) -> Float[Array, "b restarts"]:
    """Summed over all but the first axis; n = b * restarts, those of one picture together."""
    candidates = candidates.reshape(len(x), -1, *x.shape[1:])
    return jnp.abs(x[:, None] - candidates).sum((2, 3, 4))
