"""Left-right asymmetry, for images that are nearly their own mirror image, such as heads.

Every image is compared with its own mirror image, so that the differences between normal images do not hide a defect.
A defect on the line of symmetry, or one on both sides, is not found.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike

from bigan_jax.detector import Detector, Fit, FitPass
from bigan_jax.nn import symmetry
from bigan_jax.nn.pixel_statistics import PixelStatistics, regularized, standardize
from bigan_jax.value_checks import POSITIVE, UNIT

FIELD_RANGES = {"foreground": UNIT, "sigma": POSITIVE, "top": UNIT}


def create(
    *,
    shape: tuple[int, int, int],
    conditions: int = 1,
    dtype: DTypeLike = jnp.float32,
    normalize: bool = True,
    foreground: float = symmetry.FOREGROUND,
    sigma: float = symmetry.SIGMA,
    top: float = symmetry.TOP,
) -> Detector:
    """Creates the detector. It has no parameters but the mean and the deviation of each pixel's asymmetry.

    They are not cross-fitted: two numbers per pixel of many images hardly know one image. The scores of training images
    are below those of new images by 0.8 standard deviations with 20 images, and by 0.1 with 400. Thresholds come from
    calibration images, which are new.

    The score is the mean over the pixels with the highest standardized asymmetry. The map shows where an image is
    brighter than its mirror image, not standardized, which locates tumors best.

    Args:
      normalize: whether to divide intensities by their spread in the foreground. Set it for MR images, which have no
        absolute scale.
      foreground: intensity above which a pixel belongs to the object.
      sigma: of the smoothing of differences, in pixels of a 64x64 image.
      top: share of the pixels that the score comes from.
    """

    def init(key):
        return PixelStatistics(jnp.zeros(shape[:2]), jnp.ones(shape[:2]))

    def asymmetry(images):
        return symmetry.asymmetry(images, normalize, foreground, sigma)

    def sums(net, batch):
        maps = abs(asymmetry(batch.image))
        weighted = maps * batch.weight[:, None, None]
        return {"count": batch.weight.sum(), "sum": weighted.sum(0), "square": (weighted * maps).sum(0)}

    def finish(params, sums):
        mean = sums["sum"] / sums["count"]
        return regularized(mean, sums["square"] / sums["count"] - mean**2)

    def score_and_map(net, batch, keys):
        difference = asymmetry(batch.image)
        z = jnp.asarray(standardize(jnp.abs(difference), net.fitted))
        return symmetry.highest(z, top), jnp.maximum(difference, 0)

    return Detector({}, {}, score_and_map=score_and_map, fit=Fit(init, (FitPass("asymmetry", sums, finish),)))
