"""Classical models of images, shared by detectors and by the baselines of every evaluation.

Functions of images take NumPy and JAX arrays alike. Images are flattened, [n f], in [0, 1].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from scipy.linalg import eigh

AnyArray = Array | np.ndarray

MAX_EXACT = 2048  # images up to which principal axes are exact


def project(images: Float[AnyArray, "n f"], mean: Float[AnyArray, "f"], axes: Float[AnyArray, "k f"]) -> AnyArray:
    """Returns the projection of images on principal axes, clipped to [0, 1]; an axis of zeros has no part in it."""
    xp = np if isinstance(images, np.ndarray) else jnp
    return xp.clip((images - mean) @ axes.T @ axes + mean, 0, 1)


def principal_axes(centered: Float[np.ndarray, "n f"], count: int) -> Float[np.ndarray, "k f"]:
    """Returns the first `count` principal axes of centered rows, by falling variance; fewer if rows are alike.

    Up to MAX_EXACT rows, the axes are exact and come from the products of rows, which are far fewer than those of
    pixels. Beyond, scikit-learn's randomized PCA costs less.
    """
    count = min(count, len(centered) - 1, centered.shape[1])
    if count < 1:  # a single row, as in the folds of two images
        return centered[:0]
    if len(centered) > MAX_EXACT:
        from sklearn.decomposition import PCA  # takes a second to import

        return np.asarray(PCA(count, svd_solver="randomized", random_state=0).fit(centered).components_)
    last = len(centered) - 1
    products = (centered @ centered.T).astype(np.float64)
    variance, mixture = eigh(products, subset_by_index=(last - count + 1, last))
    variance, mixture = variance[::-1], mixture[:, ::-1]
    nonzero = variance > 1e-6 * max(variance[0], np.finfo(np.float32).tiny)
    return (mixture[:, nonzero] / np.sqrt(variance[nonzero])).T.astype(np.float32) @ centered


class Neighbors(NamedTuple):
    """Images among which the nearest is searched, relative to their mean: float32 keeps small differences."""

    mean: Float[AnyArray, "f"]
    centered: Float[AnyArray, "m f"]
    half_norm: Float[AnyArray, "m"]  # half the squared length of each; infinite for one that is never the nearest


def neighbors(images: Float[AnyArray, "m f"], mean: Float[AnyArray, "f"], valid: Any = None) -> Neighbors:
    """Prepares the search; `valid` is False for padding, and None for none."""
    centered = images - mean
    half_norm = (centered**2).sum(1) / 2
    if valid is not None:
        half_norm = jnp.where(valid, half_norm, jnp.inf)
    return Neighbors(mean, centered, half_norm)


def nearest(images: Float[AnyArray, "n f"], among: Neighbors) -> Int[AnyArray, "n"]:
    """Returns the index of the nearest image by L2: |a - b|² = |a|² + 2 (|b|² / 2 - a b), where |a| ranks nothing."""
    return (among.half_norm - (images - among.mean) @ among.centered.T).argmin(1)


def nearest_distance(x: Float[Array, "n d"], among: Neighbors) -> Float[Array, "n"]:
    """Returns the distance of each row to the nearest neighbor; memory is n times the number of neighbors."""
    products = jnp.matmul(x - among.mean, among.centered.T, precision=lax.Precision.HIGHEST)
    nearest_row = among.centered[(among.half_norm - products).argmin(1)]
    # From the difference, which keeps the digits that products of nearly equal rows lose.
    return jnp.sqrt(jnp.square(x - among.mean - nearest_row).sum(1))


def store_images(limit: int) -> Callable[[Any, Any], dict[str, AnyArray]]:
    """Returns the sums of a pass (`FitPass.sums`) that keeps all images, at most `limit`, flat and uint8."""

    def sums(net, batch):
        values = jnp.round(255 * batch.image).astype(jnp.uint8).reshape(len(batch.image), -1)
        values = jnp.where(batch.weight[:, None] > 0, values, 0)
        images = jnp.zeros((limit, values.shape[1]), jnp.uint8).at[batch.index].add(values)
        return {"images": images, "count": (batch.weight > 0).sum()}

    return sums


def stored_images(sums: Mapping[str, Any]) -> Float[np.ndarray, "n f"]:
    """Returns the images that `store_images` kept, from 0 to 255."""
    return np.asarray(sums["images"][: int(sums["count"])], np.float32)


def moment_sums(x: Float[AnyArray, "b d"], weight: Float[AnyArray, "b"]) -> dict[str, Any]:
    """Returns weighted sums over rows from which `ledoit_wolf` computes mean, covariance and shrinkage.

    Rows should be near 0, for example by subtraction of an estimate of their mean.
    """
    weighted = x * weight[:, None]
    square = (x * x).sum(1)
    return {
        "count": weight.sum(),
        "sum": weighted.sum(0),
        "outer": weighted.T @ x,
        "cubic": weighted.T @ square,  # of |x|² x
        "quartic": (weight * square * square).sum(),
    }


class Gaussian(NamedTuple):
    """A Gaussian as its mean and a matrix W with |W (x - mean)|² the squared Mahalanobis distance of x."""

    mean: Float[AnyArray, "d"]
    whitening: Float[AnyArray, "d d"]


def ledoit_wolf(sums: Mapping[str, Any]) -> tuple[Gaussian, float]:
    """Returns the Gaussian with the covariance of Ledoit and Wolf (2004), and its shrinkage, from `moment_sums`.

    The covariance is (1 - s) C + s tr(C) / d I; s minimizes the expected squared error (their Lemma 3.5), estimated as
    in scikit-learn. The whitening is the symmetric root of the precision.
    """
    n, total, outer, cubic, quartic = (np.asarray(sums[k], np.float64) for k in _MOMENTS)
    mean = total / n
    covariance = outer / n - np.outer(mean, mean)
    d = len(mean)
    # Sum of |x - mean|⁴ = sum of (|x|² - 2 mean x + |mean|²)².
    norm = mean @ mean
    mean_outer_mean = mean @ outer @ mean
    squared = np.trace(outer)
    fourth = quartic - 4 * mean @ cubic + 4 * mean_outer_mean + 2 * norm * squared - 4 * norm * (mean @ total)
    fourth += n * norm**2
    average = np.trace(covariance) / d
    beta = (fourth / n - (covariance**2).sum()) / (d * n)
    delta = ((covariance**2).sum() - d * average**2) / d
    shrinkage = float(min(max(beta, 0.0), delta) / delta) if delta > 0 else 0.0
    shrunk = (1 - shrinkage) * covariance + shrinkage * average * np.eye(d)
    variance, vectors = np.linalg.eigh(shrunk)
    smallest = max(variance[-1] * 1e-12, np.finfo(np.float64).tiny)  # constant features
    return Gaussian(mean, (vectors / np.sqrt(np.maximum(variance, smallest))) @ vectors.T), shrinkage


_MOMENTS = ("count", "sum", "outer", "cubic", "quartic")


def whitened(x: Float[AnyArray, "n d"], normal: Gaussian) -> Float[AnyArray, "n d"]:
    """Returns whitened rows; their squared length is the squared Mahalanobis distance."""
    return (x - normal.mean) @ normal.whitening.T
