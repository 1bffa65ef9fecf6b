"""Training-free controls: what a picture gives away before any network has learned a thing.

They share the split and the score of the models. A model that does not beat the strongest of
them has not been worth its training, and the report says so.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.linalg import eigh
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from bigan_jax.data.thumbnails import corners, thumbnails
from bigan_jax.errors import UserError
from bigan_jax.metrics.image import auroc

Score = Callable[
    [Float[np.ndarray, "m h w c"], Float[np.ndarray, "m h w c"]], Float[np.ndarray, "m"]
]

BLOCK = 64  # test pictures at a time: they stay in the cache, and need no new memory
MOST_EXACT = 2048  # training pictures whose principal axes are not approximated
MOST_STREAMED = 2048  # pictures that do not fit into memory must not be held as floats

# Brightness alone has no anomalous direction: it may tell a class by being darker.
SIGN_FREE = ("mean_intensity", "corner_pixels")


def fitting_images(train: Sequence) -> UInt8[np.ndarray, "n h w c"]:
    """The training pictures to fit on: all, or of LazyImages a fixed draw of MOST_STREAMED."""
    if isinstance(train, np.ndarray) or len(train) <= MOST_STREAMED:
        return train[:]
    drawn = np.random.default_rng(0).choice(len(train), MOST_STREAMED, replace=False)
    return train[np.sort(drawn)]


def fitting_note(train: Sequence) -> tuple[str, ...]:
    """What the reader should know where `fitting_pictures` leaves some out."""
    if isinstance(train, np.ndarray) or len(train) <= MOST_STREAMED:
        return ()
    return (f"the controls were fitted on {MOST_STREAMED} of the {len(train)} training pictures",)


def baseline_scores(
    train: UInt8[np.ndarray, "n h w c"], test: UInt8[np.ndarray, "m h w c"], score: Score
) -> dict[str, Float[np.ndarray, "m"]]:
    """Anomaly scores of the test pictures by seven controls, each fitted on `train` alone.

    Args:
      train: normal pictures, at least two.
      test: pictures of the same size.
      score: the models' own score, from pictures and reconstructions in [0, 1]; it is given BLOCK
        pictures a call, or nearly so many.

    Returns:
      By name. `mean_image`, `pca_8`, `pca_64`, `nearest_neighbor`: `score` against the mean
      training picture, the projection on the first principal components (fewer where there are
      fewer pictures) clipped to [0, 1], and the training picture nearest by L2.
      `mahalanobis_16`: squared Mahalanobis distance (Ledoit-Wolf) of 16x16 thumbnails.
      `mean_intensity`, `corner_pixels`: the mean of the picture and of its corners, in [0, 1].

    Raises:
      UserError: fewer than two training pictures, or sizes that differ.
    """
    if len(train) < 2:
        raise UserError(f"the controls need at least two training pictures, not {len(train)}.")
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"training pictures are {train.shape[1:]}, test ones {test.shape[1:]}.")
    if len(test) == 0:
        raise UserError("the controls need at least one test picture.")
    train = _unit(train)
    known = train.reshape(len(train), -1)
    mean = known.mean(0)
    centered = known - mean  # so that float32 tells pictures apart that are all alike
    # The first 8 axes of 64 are the 8 axes.
    axes = principal_axes(centered, min(64, len(train) - 1, known.shape[1]))
    half_norm = np.einsum("nf,nf->n", centered, centered) / 2
    normal = LedoitWolf().fit(thumbnails(train).astype(np.float64))

    def scored(images: np.ndarray) -> dict[str, np.ndarray]:
        flat = images.reshape(len(images), -1)
        apart = flat - mean
        code = apart @ axes.T
        reconstructions = {
            "mean_image": np.broadcast_to(mean, flat.shape),
            "pca_8": np.clip(code[:, :8] @ axes[:8] + mean, 0, 1),
            "pca_64": np.clip(code @ axes + mean, 0, 1),
            "nearest_neighbor": known[(half_norm - apart @ centered.T).argmin(1)],
        }
        scores = {
            name: np.asarray(score(images, reconstruction.reshape(images.shape)))
            for name, reconstruction in reconstructions.items()
        }
        scores["mahalanobis_16"] = normal.mahalanobis(thumbnails(images).astype(np.float64))
        scores["mean_intensity"] = flat.mean(1)
        scores["corner_pixels"] = corners(images).mean(1)
        return scores

    # Blocks of nearly one size: a last small one would have the score compiled again.
    blocks = np.array_split(test, -(-len(test) // BLOCK))
    parts = [scored(_unit(block)) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def baseline_aurocs(
    scores: dict[str, Float[np.ndarray, "m"]], label: Bool[np.ndarray, "m"]
) -> dict[str, float | None]:
    """Each control's AUROC, None with one class; the better sign for those in SIGN_FREE.

    Choosing that sign uses the test labels: it favors the control, as a warning should.
    """
    values = {name: auroc(score, label) for name, score in scores.items()}
    for name in SIGN_FREE:
        if values.get(name) is not None:
            values[name] = max(values[name], 1 - values[name])
    return values


def principal_axes(centered: Float[np.ndarray, "n f"], count: int) -> Float[np.ndarray, "count f"]:
    """The first principal axes of centered rows, by falling variance; fewer where rows are alike.

    Exact up to MOST_EXACT rows, by the products of rows with each other, which are far fewer than
    those of pixels. Beyond, scikit-learn's randomized PCA costs less.
    """
    if len(centered) > MOST_EXACT:
        return PCA(count, svd_solver="randomized", random_state=0).fit(centered).components_
    last = len(centered) - 1
    products = (centered @ centered.T).astype(np.float64)
    variance, mixture = eigh(products, subset_by_index=(last - count + 1, last))
    variance, mixture = variance[::-1], mixture[:, ::-1]
    real = variance > 1e-6 * max(variance[0], np.finfo(np.float32).tiny)
    return (mixture[:, real] / np.sqrt(variance[real])).T.astype(np.float32) @ centered


def _unit(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    return np.divide(images, np.float32(255), dtype=np.float32)
