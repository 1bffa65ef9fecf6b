"""Training-free baselines: how well simple statistics of an image detect anomalies, by the models' split and score."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.linalg import eigh
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from bigan_jax.data.streaming import LazyImages
from bigan_jax.data.thumbnails import corners, thumbnails
from bigan_jax.errors import UserError
from bigan_jax.metrics.image import auroc

Score = Callable[[Float[np.ndarray, "m h w c"], Float[np.ndarray, "m h w c"]], Float[np.ndarray, "m"]]

BLOCK = 64  # test images per step, which fit into a CPU's cache
MAX_EXACT = 2048  # training images up to which principal axes are exact
MAX_STREAMED = 2048  # training images that are read if the complete set does not fit into memory
SIGN_FREE = ("mean_intensity", "corner_pixels")  # either sign of a brightness may separate the classes

TrainingImages = UInt8[np.ndarray, "n h w c"] | LazyImages


def fitting_images(train: TrainingImages) -> UInt8[np.ndarray, "m h w c"]:
    """Returns the training images to fit on: all, or a fixed draw of MAX_STREAMED LazyImages."""
    if isinstance(train, np.ndarray) or len(train) <= MAX_STREAMED:
        return train[:]
    drawn = np.random.default_rng(0).choice(len(train), MAX_STREAMED, replace=False)
    return train[np.sort(drawn)]


def fitting_note(train: TrainingImages) -> tuple[str, ...]:
    """Returns a note for the report if `fitting_images` leaves images out."""
    if isinstance(train, np.ndarray) or len(train) <= MAX_STREAMED:
        return ()
    return (f"the baselines were fitted on {MAX_STREAMED} of the {len(train)} training images",)


def baseline_scores(
    train: UInt8[np.ndarray, "n h w c"], test: UInt8[np.ndarray, "m _ _ _"], score: Score
) -> dict[str, Float[np.ndarray, "m"]]:
    """Returns anomaly scores of the test images by seven baselines, fitted on `train` alone.

    `score` is the models' own, from images and reconstructions in [0, 1]; it is called with about BLOCK images.
    `mean_image`, `pca_8`, `pca_64` and `nearest_neighbor` apply it to the mean training image, the projection on the
    first principal components (fewer if there are fewer images) clipped to [0, 1], and the nearest training image by
    L2. `mahalanobis_16` is the squared Mahalanobis distance (Ledoit-Wolf) of 16x16 thumbnails. `mean_intensity` and
    `corner_pixels` are the mean of the image and of its corners, in [0, 1].

    Raises:
      UserError: there are fewer than two training images or no test image, or shapes differ.
    """
    if len(train) < 2:
        raise UserError(f"the baselines require at least two training images (got {len(train)}).")
    if train.shape[1:] != test.shape[1:]:
        raise UserError(f"training and test images must have one shape (got {train.shape[1:]} and {test.shape[1:]}).")
    if len(test) == 0:
        raise UserError("the baselines require at least one test image (got none).")
    unit_train = _unit(train)
    flat_train = unit_train.reshape(len(train), -1)
    mean = flat_train.mean(0)
    centered = flat_train - mean  # keeps float32 differences of nearly equal images
    axes = principal_axes(centered, min(64, len(train) - 1, flat_train.shape[1]))
    half_norm = np.einsum("nf,nf->n", centered, centered) / 2
    normal = LedoitWolf().fit(thumbnails(unit_train).astype(np.float64))

    def score_block(images: np.ndarray) -> dict[str, np.ndarray]:
        flat = images.reshape(len(images), -1)
        offset = flat - mean
        code = offset @ axes.T
        reconstructions = {
            "mean_image": np.broadcast_to(mean, flat.shape),
            "pca_8": np.clip(code[:, :8] @ axes[:8] + mean, 0, 1),
            "pca_64": np.clip(code @ axes + mean, 0, 1),
            "nearest_neighbor": flat_train[(half_norm - offset @ centered.T).argmin(1)],
        }
        return {
            **{name: np.asarray(score(images, x.reshape(images.shape))) for name, x in reconstructions.items()},
            "mahalanobis_16": normal.mahalanobis(thumbnails(images).astype(np.float64)),
            "mean_intensity": flat.mean(1),
            "corner_pixels": corners(images).mean(1),
        }

    # Blocks of nearly one size: a small last block would make the score compile again.
    blocks = np.array_split(test, -(-len(test) // BLOCK))
    parts = [score_block(_unit(block)) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def baseline_aurocs(
    scores: Mapping[str, Float[np.ndarray, "m"]], label: Bool[np.ndarray, "m"]
) -> dict[str, float | None]:
    """Returns the AUROC of each baseline; None with one class.

    Those in SIGN_FREE get the better sign by the test labels, which favors the baseline over a model.
    """
    values = {name: auroc(score, label) for name, score in scores.items()}
    for name in SIGN_FREE:
        if (value := values.get(name)) is not None:
            values[name] = max(value, 1 - value)
    return values


def principal_axes(centered: Float[np.ndarray, "n f"], count: int) -> Float[np.ndarray, "k f"]:
    """Returns the first `count` principal axes of centered rows, by falling variance; fewer if rows are alike.

    Up to MAX_EXACT rows, the axes are exact and come from the products of rows, which are far fewer than those of
    pixels. Beyond, scikit-learn's randomized PCA costs less.
    """
    if len(centered) > MAX_EXACT:
        return np.asarray(PCA(count, svd_solver="randomized", random_state=0).fit(centered).components_)
    last = len(centered) - 1
    products = (centered @ centered.T).astype(np.float64)
    variance, mixture = eigh(products, subset_by_index=(last - count + 1, last))
    variance, mixture = variance[::-1], mixture[:, ::-1]
    nonzero = variance > 1e-6 * max(variance[0], np.finfo(np.float32).tiny)
    return (mixture[:, nonzero] / np.sqrt(variance[nonzero])).T.astype(np.float32) @ centered


def _unit(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    return np.divide(images, np.float32(255), dtype=np.float32)
