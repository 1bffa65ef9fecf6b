"""Augmentation of training pictures on the device: every picture by its own key."""

import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Key


def augment(
    keys: Key[Array, "b"],
    image: Float[Array, "b h w c"],
    *,
    flip: bool = False,
    translate: float = 0.0,
    scale: float = 0.0,
) -> Float[Array, "b h w c"]:
    """Flips, moves and scales each picture at random (the paper, Sec. IV-B).

    keys: one a picture: what happens to it does not depend on its neighbours.
    image: in [0, 1], and so is the result. What comes in from outside repeats the border.
    flip: left and right swapped, for half of the pictures.
    translate: by at most this fraction of the size, each way, uniformly.
    scale: by a factor in [1 - scale, 1 + scale] about the middle, uniformly.
    """
    if flip:
        swap = jax.vmap(lambda key: random.bernoulli(random.fold_in(key, 0)))(keys)
        image = jnp.where(swap[:, None, None, None], image[:, :, ::-1], image)
    if translate or scale:
        image = jax.vmap(lambda key, x: _move(key, x, translate, scale))(keys, image)
    return image


def _move(key, image, translate, scale):
    size = jnp.array(image.shape[:2], jnp.float32)
    factor = 1 + scale * random.uniform(random.fold_in(key, 1), minval=-1.0)
    shift = translate * size * random.uniform(random.fold_in(key, 2), (2,), minval=-1.0)
    # jax.image.scale_and_translate fills with zeros, which a plain ground would show as a frame.
    # The widened border is as far as anything can come in from.
    margin = [int(side * (translate + scale) / (1 - scale)) + 2 for side in image.shape[:2]]
    padded = jnp.pad(image, [(m, m) for m in margin] + [(0, 0)], mode="edge")
    about_middle = size / 2 * (1 - factor) + shift - factor * jnp.array(margin, jnp.float32)
    moved = jax.image.scale_and_translate(
        padded, image.shape, (0, 1), jnp.full(2, factor), about_middle, "linear", antialias=False
    )
    return jnp.clip(moved, 0, 1)
