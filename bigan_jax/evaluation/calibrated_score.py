"""The calibrated score: every pixel of an error map is compared with the same pixel of normal images.

Some places are always reconstructed badly (edges, reflections). They dominate the mean and the maximum of an error map
until each pixel is measured by its own mean and standard deviation over training images. The mean square of the
positive deviations keeps small peaks and does not discard diffuse changes. Where images are symmetric, the scorer adds
their asymmetry (symmetry.py).
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bigan_jax.errors import UserError
from bigan_jax.nn.pixel_statistics import (
    MIN_DEVIATION,
    PixelStatistics,
    Roi,
    mean_inside,
    regularized,
    smooth,
    standardize,
)
from bigan_jax.runtime.files import read_bounded, write_atomic

AnyArray = Array | np.ndarray

FILE = "pixel_statistics.npy"  # in the folder of a run: mean and deviation, or several pairs of them, [2k h w] float32
DISPLAY_SIGMA = 2.0  # pixels, of the smoothing of error maps that are shown and measured against masks
_MAP_SIGMA = 1.0  # pixels, of the smoothing of maps before they are compared


def calibrated_score(
    maps: Float[AnyArray, "n h w"], statistics: PixelStatistics, roi: Roi = None
) -> Float[AnyArray, "n"]:
    """Returns the mean over pixels of max(0, z)^2, with z the standardized error of the smoothed maps."""
    xp = np if isinstance(maps, np.ndarray) else jnp
    z = standardize(smooth(maps, _MAP_SIGMA, roi), statistics)
    return mean_inside(xp.square(xp.maximum(z, 0)), roi)


class MapMoments:
    """Running means and covariances of several smoothed error maps at each pixel, in float64.

    They give the statistics of every weighted sum of the maps after one pass over the images.
    """

    def __init__(self, names: Sequence[str], roi: Roi = None):
        self.names, self.roi, self.count = tuple(names), roi, 0
        self._mean: np.ndarray | float = 0.0
        self._scatter: np.ndarray | float = 0.0  # sum of products of deviations from the mean, [t t h w]

    def add(self, maps: Mapping[str, Float[AnyArray, "n h w"]]) -> None:
        """Adds the maps of n images, by Chan's update of means and sums of products."""
        stack = np.stack([np.asarray(smooth(maps[name], _MAP_SIGMA, self.roi), np.float64) for name in self.names])
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
        return regularized(mean, variance, self.roi)


def write_statistics(workdir: Path, *statistics: PixelStatistics) -> None:
    """Writes one or several statistics to a run's folder. Raises UserError if the file cannot be written."""
    content = io.BytesIO()
    np.save(content, np.stack([np.asarray(x, np.float32) for s in statistics for x in s]), allow_pickle=False)
    write_atomic(workdir / FILE, content.getvalue())


def read_statistics(workdir: Path, height: int, width: int, count: int = 1) -> list[PixelStatistics]:
    """Reads the `count` statistics of a run, an untrusted file; raises UserError if it is missing or damaged."""
    try:
        content = read_bounded(workdir / FILE, 8 * count * height * width + 1024)
        array = np.load(io.BytesIO(content), allow_pickle=False)
        valid = array.dtype == np.float32 and array.shape == (2 * count, height, width) and np.isfinite(array).all()
        valid = valid and (array[1::2] >= np.float32(MIN_DEVIATION)).all()
    except Exception:  # a damaged file makes its parser raise nearly anything
        valid = False
    if not valid:
        raise UserError(f"{workdir / FILE} is missing or not what an evaluation writes. Run --mode=evaluate again.")
    return [PixelStatistics(*pair) for pair in array.reshape(count, 2, height, width)]
