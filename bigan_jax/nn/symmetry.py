"""Left-right asymmetry of images, and a test without labels of whether images are symmetric.

A head is nearly its own mirror image, and a tumor is not. Widths are in pixels of an image of 64x64; those of other
images are in proportion.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from bigan_jax.nn.pixel_statistics import PixelStatistics, smooth, standardize

AnyArray = Array | np.ndarray

SIZE = 64  # pixels per side of the image that widths refer to
FOREGROUND = 0.12  # intensity above which a pixel belongs to the object
SIGMA = 3.0  # of the smoothing of differences
TOP = 0.01  # share of the pixels, the most asymmetric ones, that an image's score comes from
_MAX_SHIFT = 8  # of the mirror image
_BISECTIONS = 24  # as many digits as float32 has
_MIN_DEVIATION = 1 / 255  # one gray level: flat objects have a median deviation of 0


def normalize(images: Float[Array, "n h w"], foreground: float = FOREGROUND) -> Float[Array, "n h w"]:
    """Returns (x - median) / MAD over the pixels above `foreground`, and 0 elsewhere.

    MAD is the median absolute deviation. The intensities of MR images, in [0, 1], have no absolute scale.
    """
    inside = images > foreground
    centered = images - _median(images, inside)
    return jnp.where(inside, centered / jnp.maximum(_median(jnp.abs(centered), inside), _MIN_DEVIATION), 0)


def _median(values, inside):
    """Returns each image's median over the pixels inside, whose values are in [0, 1]: [n 1 1]; 0 if there are none.

    By bisection for the two values in the middle, since sorting takes many times as long on a CPU.
    """
    values = jnp.where(inside, values, jnp.inf)[:, None]
    count = inside.sum((1, 2))
    rank = jnp.stack([(count + 1) // 2, count // 2 + 1], 1)

    def halve(_, limits):
        low, high = limits
        middle = (low + high) / 2
        reached = (values <= middle[..., None, None]).sum((2, 3)) >= rank
        return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

    _, median = lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros(rank.shape), jnp.ones(rank.shape)))
    return jnp.where(count > 0, median.mean(1), 0)[:, None, None]


def _namespace(x) -> Any:
    return np if isinstance(x, np.ndarray) else jnp


def mirror_shift(images: Float[AnyArray, "n h w"]) -> Int[AnyArray, "n"]:
    """Returns by how many pixels to shift each mirror image to the right, so that it fits the image best.

    The means of columns then have the highest correlation; of equal ones, the smallest shift counts. NumPy or JAX
    arrays.
    """
    xp, width = _namespace(images), images.shape[2]
    reach = max(1, _MAX_SHIFT * width // SIZE)
    shifts = np.array(sorted(range(-reach, reach + 1), key=abs))
    profile = images.mean(1)
    profile = profile - profile.mean(1, keepdims=True)
    # Shifts are circular, so that all have the same length and their product is the correlation.
    products = (profile[:, None] * profile[:, _mirrored_columns(width, shifts)]).sum(2)
    return xp.asarray(shifts)[products.argmax(1)]


def mirrored(images: Float[AnyArray, "n h w"], shift: Int[AnyArray, "n"]) -> Float[AnyArray, "n h w"]:
    """Returns the images mirrored left to right, and then shifted circularly to the right: NumPy or JAX arrays."""
    column = _mirrored_columns(images.shape[2], shift)
    return _namespace(images).take_along_axis(images, column[:, None], axis=2)


def _mirrored_columns(width, shift):
    """Returns, for each shift, which column of the image is at each column of the mirrored one: [n w]."""
    return (width - 1 - np.arange(width) + shift[:, None]) % width


def asymmetry(
    images: Float[Array, "n h w c"], normalized: bool = True, foreground: float = FOREGROUND, sigma: float = SIGMA
) -> Float[Array, "n h w"]:
    """Returns the smoothed difference between images in [0, 1] and their mirror images, positive where brighter.

    Color images are compared by the mean of their channels.

    Args:
      normalized: whether intensities are compared after `normalize`.
      foreground: as in `normalize`.
      sigma: of the smoothing, above 0.
    """
    x = images.mean(-1)
    shift = mirror_shift(x)
    if normalized:
        x = normalize(x, foreground)
    return jnp.asarray(smooth(x - mirrored(x, shift), sigma * x.shape[2] / SIZE))


def highest(maps: Float[Array, "n h w"], top: float = TOP) -> Float[Array, "n"]:
    """Returns the mean of the highest share `top` of each map's pixels."""
    flat = maps.reshape(maps.shape[0], -1)
    return lax.top_k(flat, max(1, math.ceil(top * flat.shape[1])))[0].mean(1)


def asymmetry_score(images: Float[Array, "n h w c"], statistics: PixelStatistics) -> Float[Array, "n"]:
    """Returns the mean square of the highest 1 % of standardized asymmetry; below its mean it counts as 0.

    In the units of the calibrated score, to which it is added where images are symmetric.
    """
    z = standardize(abs(asymmetry(images)), statistics)
    return highest(jnp.square(jnp.maximum(z, 0)))
