"""Augmentation of training pictures on the device: every picture by its own key."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import random
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from bigan_jax.errors import UserError

# A picture scaled by a tenth is a spot; one that is moved by its size is gone.
_MOST = {"translate": 1, "scale": 0.9, "rotate": 180, "brightness": 1}


def augment(
    keys: Key[Array, "b"],
    image: Float[Array, "b h w c"],
    *,
    flip: bool = False,
    translate: float = 0.0,
    scale: float = 0.0,
    rotate: float = 0.0,
    brightness: float = 0.0,
) -> Float[Array, "b h w c"]:
    """Flips, moves, scales, turns and lightens each picture at random (the paper, Sec. IV-B).

    keys: one a picture: what happens to it does not depend on its neighbors.
    image: in [0, 1], and so is the result. What comes in from outside repeats the border.
    flip: left and right swapped, for half of the pictures.
    translate: by at most this fraction of the size, each way, uniformly.
    scale: by a factor in [1 - scale, 1 + scale] about the middle, uniformly.
    rotate: by at most this many degrees about the middle, both ways, uniformly.
    brightness: times a factor in [1 - brightness, 1 + brightness], uniformly; cut off at 1.
    Raises UserError for what is negative or more than a picture bears.
    """
    validate(dict(translate=translate, scale=scale, rotate=rotate, brightness=brightness))
    if flip:
        swap = jax.vmap(lambda key: random.bernoulli(random.fold_in(key, 0)))(keys)
        image = jnp.where(swap[:, None, None, None], image[:, :, ::-1], image)
    if rotate:
        image = jax.vmap(lambda key, x: _rotate(key, x, translate, scale, rotate))(keys, image)
    elif translate or scale:
        image = jax.vmap(lambda key, x: _translate_scale(key, x, translate, scale))(keys, image)
    if brightness:
        factor = 1 + brightness * jax.vmap(lambda key: _uniform(key, 4))(keys)
        image = jnp.minimum(image * factor[:, None, None, None], 1)
    return image


def validate(fields: Mapping[str, float]) -> None:
    """Raises UserError for what `augment` would."""
    for name, most in _MOST.items():
        if not 0 <= fields[name] <= most:
            raise UserError(f"augment.{name} is {fields[name]}: it must be from 0 to {most}.")


def _uniform(key, purpose, shape=()):
    return random.uniform(random.fold_in(key, purpose), shape, minval=-1.0)


def _translate_scale(key, image, translate, scale):
    """Without a turn each axis is resampled by itself: two matrix products, and no gather."""
    size = jnp.array(image.shape[:2], jnp.float32)
    factor = 1 + scale * _uniform(key, 1)
    shift = translate * size * _uniform(key, 2, (2,))
    # jax.image.scale_and_translate fills with zeros, which a plain ground would show as a frame.
    # The widened border is as far as anything can come in from.
    margin = [int(side * (translate + scale) / (1 - scale)) + 2 for side in image.shape[:2]]
    padded = jnp.pad(image, [(m, m) for m in margin] + [(0, 0)], mode="edge")
    about_middle = size / 2 * (1 - factor) + shift - factor * jnp.array(margin, jnp.float32)
    moved = jax.image.scale_and_translate(
        padded, image.shape, (0, 1), jnp.full(2, factor), about_middle, "linear", antialias=False
    )
    return jnp.clip(moved, 0, 1)


def _rotate(key, image, translate, scale, rotate):
    size = jnp.array(image.shape[:2], jnp.float32)
    factor = 1 + scale * _uniform(key, 1) if scale else 1.0
    shift = translate * size * _uniform(key, 2, (2,)) if translate else jnp.zeros(2)
    return _warp(image, jnp.deg2rad(rotate) * _uniform(key, 3), factor, shift)


def _warp(image, angle, factor, shift):
    """Turns (radians, counter-clockwise) and scales about the middle, then shifts (y, x pixels)."""
    height, width = image.shape[:2]
    middle = (height - 1) / 2, (width - 1) / 2
    y = (jnp.arange(height)[:, None] - middle[0] - shift[0]) / factor
    x = (jnp.arange(width)[None, :] - middle[1] - shift[1]) / factor
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source = [cos * y + sin * x + middle[0], cos * x - sin * y + middle[1]]
    return jax.vmap(lambda plane: map_coordinates(plane, source, order=1, mode="nearest"), -1, -1)(
        image
    )
