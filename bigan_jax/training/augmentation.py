"""Random augmentation of training images on the device, with one key per image."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import random
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from bigan_jax.errors import UserError

# At these limits an image shrinks to a tenth, or is shifted out of the frame.
_MAXIMUM = {"translate": 1, "scale": 0.9, "rotate": 180, "brightness": 1}


@dataclass(frozen=True)
class AugmentationSettings:
    """The validated fields of `config.augment` (the paper, Sec. IV-B); raises UserError for one out of range."""

    flip: bool = False  # whether each image is mirrored left to right with probability 1/2
    translate: float = 0.0  # each shift is uniform in [-translate, translate], as a fraction of the size
    scale: float = 0.0  # the zoom factor about the center is uniform in [1 - scale, 1 + scale]
    rotate: float = 0.0  # the angle about the center is uniform in [-rotate, rotate], in degrees
    brightness: float = 0.0  # the factor is uniform in [1 - brightness, 1 + brightness]; the result is clipped at 1

    def __post_init__(self):
        for name, maximum in _MAXIMUM.items():
            value = getattr(self, name)
            if not 0 <= value <= maximum:
                raise UserError(f"config.augment.{name} must be from 0 to {maximum} (got {value}).")


def augment(
    keys: Key[Array, "b"], image: Float[Array, "b h w c"], settings: AugmentationSettings
) -> Float[Array, "b h w c"]:
    """Returns randomly flipped, shifted, scaled, rotated and brightened images.

    Args:
      keys: one key per image, so that an image's result does not depend on the others.
      image: values in [0, 1]; so are the result's. Pixels from outside the image repeat its border.
    """
    translate, scale, rotate = settings.translate, settings.scale, settings.rotate
    if settings.flip:
        swap = jax.vmap(lambda key: random.bernoulli(random.fold_in(key, 0)))(keys)
        image = jnp.where(swap[:, None, None, None], image[:, :, ::-1], image)
    if rotate:
        image = jax.vmap(lambda key, x: _rotate(key, x, translate, scale, rotate))(keys, image)
    elif translate or scale:
        image = jax.vmap(lambda key, x: _translate_scale(key, x, translate, scale))(keys, image)
    if settings.brightness:
        factor = 1 + settings.brightness * jax.vmap(lambda key: _uniform(key, 4))(keys)
        image = jnp.minimum(image * factor[:, None, None, None], 1)
    return image


def _uniform(key, purpose, shape=()):
    return random.uniform(random.fold_in(key, purpose), shape, minval=-1.0)


def _translate_scale(key, image, translate, scale):
    """Without rotation each axis is resampled separately: two matrix products and no gather."""
    size = jnp.array(image.shape[:2], jnp.float32)
    factor = 1 + scale * _uniform(key, 1)
    shift = translate * size * _uniform(key, 2, (2,))
    # jax.image.scale_and_translate fills with zeros, which would show as a frame on a plain background. The border is
    # widened as far as a pixel can move.
    margin = [int(side * (translate + scale) / (1 - scale)) + 2 for side in image.shape[:2]]
    padded = jnp.pad(image, [(m, m) for m in margin] + [(0, 0)], mode="edge")
    offset = size / 2 * (1 - factor) + shift - factor * jnp.array(margin, jnp.float32)
    moved = jax.image.scale_and_translate(
        padded, image.shape, (0, 1), jnp.full(2, factor), offset, "linear", antialias=False
    )
    return jnp.clip(moved, 0, 1)


def _rotate(key, image, translate, scale, rotate):
    size = jnp.array(image.shape[:2], jnp.float32)
    factor = 1 + scale * _uniform(key, 1) if scale else 1.0
    shift = translate * size * _uniform(key, 2, (2,)) if translate else jnp.zeros(2)
    return _warp(image, jnp.deg2rad(rotate) * _uniform(key, 3), factor, shift)


def _warp(image, angle, factor, shift):
    """Rotates (radians, counterclockwise) and scales about the center, then shifts (y, x)."""
    height, width = image.shape[:2]
    center = (height - 1) / 2, (width - 1) / 2
    y = (jnp.arange(height)[:, None] - center[0] - shift[0]) / factor
    x = (jnp.arange(width)[None, :] - center[1] - shift[1]) / factor
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source = [cos * y + sin * x + center[0], cos * x - sin * y + center[1]]
    return jax.vmap(lambda plane: map_coordinates(plane, source, order=1, mode="nearest"), -1, -1)(image)
