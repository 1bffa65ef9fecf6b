"""Procedural images with exact defect masks, to run on before any download.

The domains `head` (an axial brain slice), `bottle` (a bottle mouth from above) and `leaf` (a leaf on plain ground)
resemble real datasets and their defects, but do not replace them: report results on them as results on phantoms.
"""

from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Bool, UInt8

from bigan_jax.data.phantom import bottle, head, leaf
from bigan_jax.data.phantom.canvas import downsample, make_canvas, over
from bigan_jax.data.records import ImageRecord

DOMAINS = {"head": head, "bottle": bottle, "leaf": leaf}
SUPERSAMPLING = 2
MIN_COVER = 0.15  # a pixel with a lower cover is neither painted nor in the mask
FIRST_ANOMALOUS = 100_000  # index of the first anomalous image; normal ones count from 0
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def records(categories: tuple[str, ...], n_normal: int, n_anomalous: int) -> list[ImageRecord]:
    """Lists `n_normal` and `n_anomalous` images of each category; defect types alternate."""
    listed = []
    for condition, category in enumerate(categories):
        defect_types = list(DOMAINS[category].DEFECTS)
        images = [("good", index) for index in range(n_normal)]
        images += [(defect_types[i % len(defect_types)], FIRST_ANOMALOUS + i) for i in range(n_anomalous)]
        for defect_type, index in images:
            path = f"{category}/{defect_type}/{index:06d}.png"
            listed.append(ImageRecord(path, defect_type != "good", path, condition, defect_type))
    return listed


def index_of(path: str) -> int:
    """Returns the index of an image from its path in `records`."""
    return int(PurePosixPath(path).stem)


def draw(
    category: str, index: int, size: int, channels: int, defect: str | None = None, seed: int = 0
) -> tuple[UInt8[np.ndarray, "size size channels"], Bool[np.ndarray, "size size"]]:
    """Draw an image (0 to 255) and its defect mask; both depend on the arguments alone.

    Without a type of `defect` the image is clean: it equals the image with the defect outside of the mask, and
    differs from it in every pixel of the mask.
    """
    domain = DOMAINS[category]
    key = (seed, sorted(DOMAINS).index(category), index)
    c = make_canvas(size * SUPERSAMPLING)
    scene_rng, defect_rng, noise_rng = (np.random.default_rng((*key, i)) for i in range(3))
    paint, scene = domain.scene(scene_rng, c)
    noise = domain.NOISE * noise_rng.standard_normal((size, size, 1), np.float32)
    clean = downsample(paint, SUPERSAMPLING)
    image, mask = _quantize(clean + noise), np.zeros((size, size), bool)
    if defect is not None:
        layer = domain.DEFECTS[defect](defect_rng, c, scene, paint)
        covered = downsample(layer.cover, SUPERSAMPLING)
        covered = covered >= min(MIN_COVER, covered.max())
        painted = downsample(over(paint, *layer), SUPERSAMPLING).astype(np.float32)
        clean_image, image = image, _quantize(np.where(covered[..., None], painted, clean) + noise)
        mask = (image != clean_image).any(axis=-1)
    if channels == 1:
        image = np.round(image @ LUMA).astype(np.uint8)[..., None]
    return image, mask


def _quantize(paint: np.ndarray) -> np.ndarray:
    return np.round(paint.clip(0, 1) * 255).astype(np.uint8)
