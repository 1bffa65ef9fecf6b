"""Errors between pictures and losses of the game: pure functions, no parameters.

Pictures are float in [0, 1]. Each error is one number a picture, so that the same function scores
a test picture and, averaged over the batch, trains on it.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Key


def mse(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Mean squared error of each picture."""
    return jnp.square(x - y).mean((1, 2, 3))


def mae(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Mean absolute error of each picture."""
    return jnp.abs(x - y).mean((1, 2, 3))


def perceptual(
    features: Sequence[Float[Array, "b h w c"]], others: Sequence[Float[Array, "b h w c"]]
) -> Float[Array, "b"]:
    """Mean squared difference of a network's features, averaged over layers (Johnson et al. 2016,
    Sec. 3.2, feature reconstruction loss)."""
    errors = [
        mse(x.astype(jnp.float32), y.astype(jnp.float32))
        for x, y in zip(features, others, strict=True)
    ]
    return jnp.stack(errors).mean(0)


def unit_features(
    features: Sequence[Float[Array, "b _h _w _c"]],
) -> list[Float[Array, "b _h _w _c"]]:
    """Features whose mean square over channels is 1 at every place, so that strong and weak ones
    weigh the same (Zhang et al. 2018, "The unreasonable effectiveness of deep features", Sec. 3,
    which scales their length to 1). Where there are next to none they stay so. In float32."""
    scaled = []
    for x in features:
        x = x.astype(jnp.float32)
        scaled.append(x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-3))
    return scaled


def bce(logits: Float[Array, "b"], target: float) -> Float[Array, ""]:
    """Binary cross-entropy of logits against one label, 0 or 1, averaged over the batch."""
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target)).mean()


def weighted_sum(
    weights: Mapping[str, float], terms: Mapping[str, Float[Array, ""]]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The composite of named terms, and the terms to log. Both have the same names."""
    if missing := set(weights) ^ set(terms):
        raise ValueError(f"weights and terms differ in {sorted(missing)}")
    return sum(weights[name] * term for name, term in terms.items()), dict(terms)


def standard_normal(keys: Key[Array, "b"], size: int) -> Float[Array, "b size"]:
    """Codes from the prior N(0, I), each drawn from its own picture's key."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def discriminator_logs(
    real: Float[Array, "b"], fake: Float[Array, "b"]
) -> dict[str, Float[Array, ""]]:
    """D's mean output in [0, 1] on real and on fake: health looks at both."""
    return {"real": jax.nn.sigmoid(real).mean(), "fake": jax.nn.sigmoid(fake).mean()}


def spread_logs(
    generated: Float[Array, "b h w c"], real: Float[Array, "b h w c"]
) -> dict[str, Float[Array, ""]]:
    """How much pictures vary: the standard deviation over the batch, averaged over pixels.

    Of the pictures on one device: it is 0 for both where each device holds a single one.
    """
    return {"spread": generated.std(0).mean(), "real_spread": real.std(0).mean()}
