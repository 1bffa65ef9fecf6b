"""Procedural pictures with exact defect masks: something to run on before any download.

Three domains, drawn with distance fields: `head` (an axial brain slice), `bottle` (a bottle
mouth from above) and `leaf` (a leaf on plain ground). They are meant to look and to err like
the real sets, and are no substitute for one: report results on them as results on phantoms.
"""

from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Bool, UInt8

from bigan_jax.data.phantom import bottle, head, leaf
from bigan_jax.data.phantom.canvas import canvas, over, shrink
from bigan_jax.data.records import ImageRecord

DOMAINS = {"head": head, "bottle": bottle, "leaf": leaf}
SUPERSAMPLING = 2
LEAST_COVER = 0.15  # a pixel less covered than this is neither painted nor in the mask
FIRST_ANOMALOUS = 100_000  # normal pictures count from 0, anomalous ones from here
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def records(categories: tuple[str, ...], normal: int, anomalous: int) -> list[ImageRecord]:
    """`normal` and `anomalous` pictures of each category, kinds of defect in turn."""
    listed = []
    for condition, category in enumerate(categories):
        kinds = list(DOMAINS[category].DEFECTS)
        for index in range(normal):
            path = f"{category}/good/{index:06d}.png"
            listed.append(ImageRecord(path, False, path, condition))
        for i in range(anomalous):
            kind = kinds[i % len(kinds)]
            path = f"{category}/{kind}/{FIRST_ANOMALOUS + i:06d}.png"
            listed.append(ImageRecord(path, True, path, condition, kind))
    return listed


def index_of(path: str) -> int:
    """The index in a path made by `records`."""
    return int(PurePosixPath(path).stem)


def draw(
    category: str, index: int, size: int, channels: int, kind: str | None = None, seed: int = 0
) -> tuple[UInt8[np.ndarray, "size size channels"], Bool[np.ndarray, "size size"]]:
    """One picture (0 to 255) and its defect mask, a function of the arguments alone.

    Without a `kind` it is the clean twin: equal outside the mask, different in the color of
    every pixel inside it.
    """
    domain = DOMAINS[category]
    key = (seed, sorted(DOMAINS).index(category), index)
    c = canvas(size * SUPERSAMPLING)
    scene_rng, defect_rng, noise_rng = (np.random.default_rng((*key, i)) for i in range(3))
    paint, scene = domain.scene(scene_rng, c)
    noise = domain.NOISE * noise_rng.standard_normal((size, size, 1), np.float32)
    clean = shrink(paint, SUPERSAMPLING)
    picture, mask = _quantize(clean + noise), np.zeros((size, size), bool)
    if kind is not None:
        defect = domain.DEFECTS[kind](defect_rng, c, scene, paint)
        covered = shrink(defect.cover, SUPERSAMPLING)
        covered = covered >= min(LEAST_COVER, covered.max())
        painted = shrink(over(paint, defect.cover, defect.paint), SUPERSAMPLING).astype(np.float32)
        twin, picture = picture, _quantize(np.where(covered[..., None], painted, clean) + noise)
        mask = (picture != twin).any(axis=-1)
    if channels == 1:
        picture = np.round(picture @ LUMA).astype(np.uint8)[..., None]
    return picture, mask


def _quantize(paint: np.ndarray) -> np.ndarray:
    return np.round(paint.clip(0, 1) * 255).astype(np.uint8)
