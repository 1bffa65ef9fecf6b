"""Statistics of maps at each pixel over normal images, by which later maps are standardized."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped
from scipy.ndimage import gaussian_filter1d

AnyArray = Array | np.ndarray
Roi = Bool[np.ndarray, "h w"] | None  # the pixels that count; None for all

MIN_DEVIATION = 1e-6  # errors are of images in [0, 1]; constant training images have a deviation of 0
_SIGMA = 1.5  # pixels, of the smoothing of the mean and the standard deviation
_SHRINKAGE = 0.2  # the share of the average standard deviation that is added to that of each pixel


class PixelStatistics(NamedTuple):
    """The mean and the (regularized) standard deviation of maps at each pixel, over normal images."""

    mean: Float[AnyArray, "h w"]
    deviation: Float[AnyArray, "h w"]


def blank_outside(maps: Shaped[AnyArray, "*n h w"], roi: Roi) -> Shaped[AnyArray, "*n h w"]:
    """Returns the maps with 0 outside of the region of interest."""
    if roi is None:
        return maps
    return np.where(roi, maps, 0) if isinstance(maps, np.ndarray) else jnp.where(roi, maps, 0)


def mean_inside(maps: Float[AnyArray, "n h w"], roi: Roi) -> Float[AnyArray, "n"]:
    """Returns the mean of each map over the region of interest."""
    return maps.mean((1, 2)) if roi is None else blank_outside(maps, roi).sum((1, 2)) / int(roi.sum())


def smooth(maps: Float[AnyArray, "*n h w"], sigma: float, roi: Roi = None) -> Float[AnyArray, "*n h w"]:
    """Smooths maps by a Gaussian of `sigma` pixels, with reflected borders.

    With a region of interest, pixels outside have no weight, and are 0 in the result. Each side is multiplied by a
    matrix, which runs on every device, can be exported and needs no loop over images.
    """
    if roi is not None:
        weight = np.where(roi, smooth(roi.astype(np.float32), sigma), 1)
        return blank_outside(smooth(blank_outside(maps, roi), sigma) / weight, roi)
    rows, columns = (_kernel(side, sigma) for side in maps.shape[-2:])
    if isinstance(maps, np.ndarray):
        return rows @ maps @ columns.T
    # The default of GPUs rounds the factors to ten bits.
    return jnp.matmul(jnp.matmul(rows, maps, precision="highest"), columns.T, precision="highest")


@functools.cache
def _kernel(size: int, sigma: float) -> np.ndarray:
    return gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect").astype(np.float32)


def regularized(mean: Float[np.ndarray, "h w"], variance: Float[np.ndarray, "h w"], roi: Roi = None) -> PixelStatistics:
    """Returns float32 statistics of the mean and the variance over images: both smoothed, no deviation near 0."""
    deviation = np.sqrt(np.maximum(variance, 0))
    deviation = smooth(deviation, _SIGMA, roi) + _SHRINKAGE * mean_inside(deviation[None], roi)
    statistics = smooth(mean, _SIGMA, roi), np.maximum(deviation, MIN_DEVIATION)
    return PixelStatistics(*(x.astype(np.float32) for x in statistics))


def standardize(maps: Float[AnyArray, "n h w"], statistics: PixelStatistics) -> Float[AnyArray, "n h w"]:
    """Returns how many deviations each pixel is above its mean."""
    return (maps - statistics.mean) / statistics.deviation
