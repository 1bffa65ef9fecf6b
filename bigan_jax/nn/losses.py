"""Errors between images, adversarial losses, and values to log: functions without parameters.

Images are float in [0, 1]. Errors have one value per image: scores use them directly, losses average them over the
batch.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Key

from bigan_jax.nn.blocks import BATCH_AXIS


def mse(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Mean squared error of each image."""
    return jnp.square(x - y).mean((1, 2, 3))


def mae(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Mean absolute error of each image."""
    return jnp.abs(x - y).mean((1, 2, 3))


def perceptual(
    features: Sequence[Float[Array, "b _h _w _c"]], others: Sequence[Float[Array, "b _h _w _c"]]
) -> Float[Array, "b"]:
    """Mean squared difference of a network's features, averaged over layers (Johnson et al. 2016, Sec. 3.2)."""
    errors = [mse(x.astype(jnp.float32), y.astype(jnp.float32)) for x, y in zip(features, others, strict=True)]
    return jnp.stack(errors).mean(0)


def unit_features(features: Sequence[Float[Array, "b _h _w _c"]]) -> list[Float[Array, "b _h _w _c"]]:
    """Scales features to a mean square of 1 over channels at each position, in float32.

    Strong and weak activations then have the same weight. Zhang et al. 2018, "The unreasonable effectiveness of deep
    features", Sec. 3, scale their length to 1. Features near 0 remain so.
    """
    features = [x.astype(jnp.float32) for x in features]
    return [x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-3) for x in features]


def bce(logits: Float[Array, "b"], target: float | int) -> Float[Array, ""]:
    """Binary cross-entropy of logits with one label, 0 or 1, averaged over the batch."""
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target)).mean()


def weighted_sum(
    weights: Mapping[str, float], terms: Mapping[str, Float[Array, ""]]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the weighted sum of named terms, and the terms to log. Raises ValueError if names differ."""
    if unmatched := set(weights) ^ set(terms):
        raise ValueError(f"weights and terms differ in {sorted(unmatched)}")
    return jnp.asarray(sum(weights[name] * term for name, term in terms.items())), dict(terms)


def standard_normal(keys: Key[Array, "b"], size: int) -> Float[Array, "b size"]:
    """Draws codes from the prior N(0, I), each with the key of its image."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def discriminator_logs(real: Float[Array, "b"], fake: Float[Array, "b"]) -> dict[str, Float[Array, ""]]:
    """Returns the discriminator's mean outputs in [0, 1], which the health checks read."""
    return {"real": jax.nn.sigmoid(real).mean(), "fake": jax.nn.sigmoid(fake).mean()}


def batch_std(x: Float[Array, "b *d"], train: bool) -> Float[Array, "*d"]:
    """Returns the standard deviation over the batch, without a gradient.

    With `train` the batch is that of all devices of the mapped axis, however few images each of them has.
    """

    def batch_mean(values):
        mean = values.mean(0)
        return lax.pmean(mean, BATCH_AXIS) if train else mean

    x = lax.stop_gradient(x)
    return jnp.sqrt(batch_mean(jnp.square(x - batch_mean(x))))


def spread_logs(
    train: bool, real: Float[Array, "b h w c"], **images: Float[Array, "b h w c"]
) -> dict[str, Float[Array, ""]]:
    """Returns "real_spread", and "<name>_spread" of the other images: how much they vary, for the health checks.

    The spread is the standard deviation over the batch (`batch_std`), averaged over pixels and channels.
    """
    # Stacked, because each reduction over several processes takes milliseconds.
    std = batch_std(jnp.stack([real, *images.values()], axis=1), train)
    return dict(zip(("real_spread", *(f"{name}_spread" for name in images)), std.mean((1, 2, 3)), strict=True))
