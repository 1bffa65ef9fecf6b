"""Whether images are symmetric, by a test without labels, and the asymmetry that the calibrated score then includes.

Where people or parts differ more from each other than from their own mirror images, a defect shows more clearly against
the mirror image than in a reconstruction.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from bigan_jax.data.streaming import LazyImages, fixed_draw
from bigan_jax.data.thumbnails import thumbnails
from bigan_jax.evaluation.result import SymmetryResult
from bigan_jax.nn import symmetry
from bigan_jax.nn.pixel_statistics import PixelStatistics, regularized, smooth

TrainingImages = UInt8[np.ndarray, "n h w c"] | LazyImages

LIMIT = 0.5  # ratio below which images are symmetric
MIN_IMAGES = 64  # with fewer, the nearest image of another group is far, and the ratio low for any images
_MAX_IMAGES = 512  # a fixed draw of the training images
_BLOCK = 64  # images in memory as floating-point numbers
_SAME = 1e-9  # squared distance below which two images count as the same one


def symmetry_ratio(images: TrainingImages, group: Shaped[np.ndarray, "n"]) -> float | None:
    """Returns how far images are from their own mirror images, relative to images of other groups.

    It is the median, over training images, of the squared distance to the own mirror image, divided by that to the
    nearest image of another group: the fewer images there are, the farther it is. Images are gray, of 64x64 pixels, and
    smoothed as asymmetry is. A fixed draw of them is compared. None if there is one group only, or if images of
    different groups are the same.
    """
    from sklearn.metrics.pairwise import euclidean_distances  # takes a second to import

    chosen = fixed_draw(len(images), _MAX_IMAGES)
    small = np.concatenate([_small(images, block) for block in _blocks(chosen)])
    mirror = symmetry.mirrored(small, symmetry.mirror_shift(small))
    own = np.square(smooth(small - mirror, symmetry.SIGMA)).sum((1, 2))
    flat = smooth(small, symmetry.SIGMA).reshape(len(small), -1)
    distances = euclidean_distances(flat - flat.mean(0), squared=True)
    distances[group[chosen, None] == group[None, chosen]] = np.inf
    nearest = distances.min(1)
    valid = np.isfinite(nearest) & (nearest > _SAME)
    return float(np.median(own[valid] / nearest[valid])) if valid.any() else None


def _small(images, indices):
    """Returns gray thumbnails in float64, in which the difference of nearly equal lengths has digits left."""
    low = thumbnails(_unit(images[indices]), symmetry.SIZE).reshape(len(indices), symmetry.SIZE, symmetry.SIZE, -1)
    return low.mean(-1).astype(np.float64)


def asymmetry_statistics(images: TrainingImages) -> PixelStatistics:
    """Returns the mean and the deviation of the asymmetry at each pixel, over a fixed draw of training images."""
    compute = jax.jit(symmetry.asymmetry)
    total, square, chosen = 0.0, 0.0, fixed_draw(len(images), _MAX_IMAGES)
    for block in _blocks(chosen):
        maps = np.abs(np.asarray(compute(_unit(images[block])), np.float64))
        total, square = total + maps.sum(0), square + np.square(maps).sum(0)
    mean = np.asarray(total) / len(chosen)
    return regularized(mean, square / len(chosen) - mean**2)


def is_symmetric(ratio: float | None, images: int) -> bool:
    """Returns whether the test finds a number of training images with this ratio symmetric."""
    return ratio is not None and ratio < LIMIT and images >= MIN_IMAGES


def notes(result: SymmetryResult) -> Iterator[str]:
    """Yields sentences for the report: the result of the test, if there is one, and what depends on it."""
    if result.ratio is not None:
        if result.ratio < LIMIT and not result.symmetric:
            finding = f"Whether these data are symmetric is not known: the test requires {MIN_IMAGES} training images."
        else:
            comparison = f"below {LIMIT:g}" if result.symmetric else f"not below {LIMIT:g}"
            finding = (
                f"These data are {'' if result.symmetric else 'not '}symmetric: ratio {result.ratio:.3f}, {comparison}"
            )
            finding += " (the distance of training images from their mirror images, relative to other groups' images)."
        yield finding
    if result.used:
        yield "The calibrated score includes the asymmetry between left and right."


def _blocks(indices: Int[np.ndarray, "n"]) -> list[np.ndarray]:
    return np.array_split(indices, -(-len(indices) // _BLOCK))


def _unit(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    return np.divide(images, np.float32(255), dtype=np.float32)
