"""The calibrated score: every pixel of an error map is compared with the same pixel of normal images.

Some places are always reconstructed badly (edges, reflections). They dominate the mean and the maximum of an error map
until each pixel is measured by its own mean and standard deviation over training images. The mean square of the
positive deviations keeps small peaks and does not discard diffuse changes.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.ndimage import gaussian_filter1d

from bigan_jax.errors import UserError
from bigan_jax.runtime.files import read_bounded, write_atomic

AnyArray = Array | np.ndarray

FILE = "pixel_statistics.npy"  # in the folder of a run, [2 h w] float32
DISPLAY_SIGMA = 2.0  # pixels, of the smoothing of error maps that are shown and measured against masks
_MAP_SIGMA = 1.0  # pixels, of the smoothing of maps before they are compared
_STATISTICS_SIGMA = 1.5  # pixels, of the smoothing of the mean and the standard deviation
_SHRINKAGE = 0.2  # the share of the average standard deviation that is added to that of each pixel
_MIN_DEVIATION = 1e-6  # errors are of images in [0, 1]; constant training images have a deviation of 0


class PixelStatistics(NamedTuple):
    """The mean and the (regularized) standard deviation of smoothed error maps at each pixel, over normal images."""

    mean: Float[AnyArray, "h w"]
    deviation: Float[AnyArray, "h w"]


def smooth(maps: Float[AnyArray, "*n h w"], sigma: float) -> Float[AnyArray, "*n h w"]:
    """Smooths maps by a Gaussian of `sigma` pixels, with reflected borders.

    Each side is multiplied by a matrix, which runs on every device, can be exported and needs no loop over images.
    """
    rows, columns = (_kernel(side, sigma) for side in maps.shape[-2:])
    if isinstance(maps, np.ndarray):
        return rows @ maps @ columns.T
    # The default of GPUs rounds the factors to ten bits.
    return jnp.matmul(jnp.matmul(rows, maps, precision="highest"), columns.T, precision="highest")


@functools.cache
def _kernel(size: int, sigma: float) -> np.ndarray:
    return gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect").astype(np.float32)


def calibrated_score(maps: Float[AnyArray, "n h w"], statistics: PixelStatistics) -> Float[AnyArray, "n"]:
    """Returns the mean over pixels of max(0, z)^2, with z the standardized error of the smoothed maps."""
    xp = np if isinstance(maps, np.ndarray) else jnp
    z = (smooth(maps, _MAP_SIGMA) - statistics.mean) / statistics.deviation
    return xp.square(xp.maximum(z, 0)).mean((1, 2))


class MapMoments:
    """Running means and covariances of several smoothed error maps at each pixel, in float64.

    They give the statistics of every weighted sum of the maps after one pass over the images.
    """

    def __init__(self, names: Sequence[str]):
        self.names, self.count = tuple(names), 0
        self._mean: np.ndarray | float = 0.0
        self._scatter: np.ndarray | float = 0.0  # sum of products of deviations from the mean, [t t h w]

    def add(self, maps: Mapping[str, Float[AnyArray, "n h w"]]) -> None:
        """Adds the maps of n images, by Chan's update of means and sums of products."""
        stack = np.stack([np.asarray(smooth(maps[name], _MAP_SIGMA), np.float64) for name in self.names])
        n, mean = stack.shape[1], stack.mean(1)
        stack -= mean[:, None]
        scatter = np.einsum("inhw,jnhw->ijhw", stack, stack)
        total, shift = self.count + n, mean - self._mean
        self._scatter = self._scatter + scatter + shift[:, None] * shift[None] * (self.count * n / total)
        self._mean = self._mean + shift * (n / total)
        self.count = total

    def statistics(self, weights: Mapping[str, float]) -> PixelStatistics:
        """Returns the statistics of the weighted sum of the maps; a map without a weight has no part in it."""
        assert isinstance(self._mean, np.ndarray) and isinstance(self._scatter, np.ndarray), "no maps were added"
        w = np.array([weights.get(name, 0.0) for name in self.names])
        mean = np.einsum("i,ihw->hw", w, self._mean)
        variance = np.einsum("i,j,ijhw->hw", w, w, self._scatter) / self.count
        deviation = np.sqrt(np.maximum(variance, 0))
        regularized = smooth(deviation, _STATISTICS_SIGMA) + _SHRINKAGE * deviation.mean()
        mean = smooth(mean, _STATISTICS_SIGMA)
        return PixelStatistics(*(x.astype(np.float32) for x in (mean, np.maximum(regularized, _MIN_DEVIATION))))


def write_statistics(workdir: Path, statistics: PixelStatistics) -> None:
    """Writes the statistics to a run's folder. Raises UserError if the file cannot be written."""
    content = io.BytesIO()
    np.save(content, np.stack([np.asarray(x, np.float32) for x in statistics]), allow_pickle=False)
    write_atomic(workdir / FILE, content.getvalue())


def read_statistics(workdir: Path, height: int, width: int) -> PixelStatistics:
    """Reads the statistics of a run, an untrusted file; raises UserError if it is missing or damaged."""
    try:
        content = read_bounded(workdir / FILE, 8 * height * width + 1024)
        array = np.load(io.BytesIO(content), allow_pickle=False)
        valid = array.dtype == np.float32 and array.shape == (2, height, width) and np.isfinite(array).all()
        valid = valid and (array[1] >= np.float32(_MIN_DEVIATION)).all()
    except Exception:  # a damaged file makes its parser raise nearly anything
        valid = False
    if not valid:
        raise UserError(f"{workdir / FILE} is missing or not what an evaluation writes. Run --mode=evaluate again.")
    return PixelStatistics(*array)
