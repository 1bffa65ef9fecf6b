"""Synthetic defects, drawn on calibration images: a figure for the choice of a detector that needs no label.

The defects are cracks, fibers, spots, stains, films and pasted patches, on the object where it differs from the
border of the image. They are not the defects of a plant: the AUROC ranks detectors and does not promise a result.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int, UInt8

from bigan_jax.data.phantom.canvas import Canvas, Field, make_canvas
from bigan_jax.data.phantom.fields import blob, fill, noise, polyline_distance, smoothstep
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.metrics.image import auroc

_MAX_IMAGES = 32  # each is scored once as it is and once per type of defect
_MIN_OBJECT = 0.02  # of the pixels; a smaller object is not trusted, and defects lie anywhere

Image = Float[np.ndarray, "s s c"]  # in [0, 1]
Color = Float[np.ndarray, "c"]
Scored = dict[str, Float[np.ndarray, "n"]]  # by SCORE_NAMES


def synthetic_aurocs(
    scorer: AnomalyScorer, images: UInt8[np.ndarray, "n s s c"], condition: Int[np.ndarray, "n"], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Returns how well each score tells images with a synthetic defect from the same images without.

    Args:
      scorer: of the trained detector.
      images: normal images that were not trained on, such as calibration images; up to 32 are used.
      condition: the index of each image's condition.
      seed: with an image's position, it decides its defects.

    Returns:
      The AUROC of each score, by its name and the type of defect, and the "mean" over the types.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:_MAX_IMAGES])
    images, condition = images[chosen], condition[chosen]
    clean = scorer.score(images, condition).by_name
    return _aurocs(clean, {name: scorer.score(draw(name, images, seed), condition).by_name for name in DEFECTS})


def _aurocs(clean: Scored, with_defect: Mapping[str, Scored]) -> dict[str, dict[str, float]]:
    result = {}
    for score, normal in clean.items():
        label = np.arange(2 * len(normal)) >= len(normal)
        aurocs = {}
        for name, scores in with_defect.items():
            area = auroc(np.concatenate([normal, scores[score]]), label)
            assert area is not None  # both classes have images
            aurocs[name] = area
        result[score] = {**aurocs, "mean": float(np.mean([*aurocs.values()]))}
    return result


def draw(defect: str, images: UInt8[np.ndarray, "n s s c"], seed: int = 0) -> UInt8[np.ndarray, "n s s c"]:
    """Returns the images, each with a defect of one type that its content, its position and the seed decide."""
    result = []
    for index, image in enumerate(images):
        rng = np.random.default_rng((seed, index, list(DEFECTS).index(defect)))
        paint = image.astype(np.float32) / 255
        painted = DEFECTS[defect](rng, make_canvas(len(image)), paint, _object(paint))
        result.append(np.round(painted.clip(0, 1) * 255).astype(np.uint8))
    return np.stack(result)


def _object(image: Image) -> Field:
    """Returns 1 on the object and 0 on the background, which is like the border; 1 everywhere if there is none."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    distance = np.abs(image - np.median(border, axis=0)).max(-1)
    inside = distance > max(0.1, 0.25 * float(np.quantile(distance, 0.99)))
    return (inside if inside.mean() > _MIN_OBJECT else np.ones_like(inside)).astype(np.float32)


def _place(rng: np.random.Generator, c: Canvas, inside: Field) -> tuple[float, float]:
    """Returns a point on the object and not at the border of the image."""
    allowed = np.flatnonzero((inside > 0) & (np.maximum(abs(c.x), abs(c.y)) < 0.85))
    index = int(rng.choice(allowed)) if len(allowed) else inside.size // 2
    return float(c.x.flat[index]), float(c.y.flat[index])


def _tone(rng: np.random.Generator, image: Image, inside: Field, weakest: float, strongest: float) -> Color:
    """Returns an offset of random sign and color, in proportion to the contrast of the object."""
    values = image[inside > 0]
    contrast = max(0.2, float(np.quantile(values, 0.98) - np.quantile(values, 0.02)))
    channels = image.shape[-1]
    tint = rng.normal(1, 0.2, channels) if channels > 1 else np.ones(1)
    return (rng.choice([-1, 1]) * rng.uniform(weakest, strongest) * contrast * tint).astype(np.float32)


def _add(image: Image, cover: Field, offset: Color) -> Image:
    return image + cover[..., None] * offset


def _line(rng: np.random.Generator, c: Canvas, inside: Field, bend: float, jitter: float) -> Field:
    """Returns the distance to a line of six segments through the object."""
    points, heading = [_place(rng, c, inside)], rng.uniform(0, 2 * math.pi)
    stride, turn = rng.uniform(0.05, 0.1), rng.normal(0, bend)
    for _ in range(6):
        x, y = points[-1]
        points.append((x + stride * math.cos(heading), y + stride * math.sin(heading)))
        heading += turn + rng.normal(0, jitter)
    return polyline_distance(c.x, c.y, points)


def crack(rng: np.random.Generator, c: Canvas, image: Image, inside: Field) -> Image:
    """A jagged line."""
    cover = fill(_line(rng, c, inside, 0.0, 0.5) - rng.uniform(0.01, 0.02), 1.5 * c.pixel)
    return _add(image, cover, _tone(rng, image, inside, 0.4, 0.9))


def fiber(rng: np.random.Generator, c: Canvas, image: Image, inside: Field) -> Image:
    """A smoothly bent hair."""
    cover = fill(_line(rng, c, inside, 0.3, 0.0) - rng.uniform(0.008, 0.016), 1.5 * c.pixel)
    return _add(image, cover, _tone(rng, image, inside, 0.3, 0.8))


def spots(rng: np.random.Generator, c: Canvas, image: Image, inside: Field) -> Image:
    """Several small, rough spots."""
    nearest = np.full_like(c.x, 9)
    for _ in range(rng.integers(3, 10)):
        nearest = np.minimum(nearest, blob(rng, c, _place(rng, c, inside), rng.uniform(0.02, 0.06), 0.1))
    return _add(image, fill(nearest, 2 * c.pixel), _tone(rng, image, inside, 0.3, 0.7))


def stain(rng: np.random.Generator, c: Canvas, image: Image, inside: Field) -> Image:
    """A mottled patch."""
    cover = fill(blob(rng, c, _place(rng, c, inside), rng.uniform(0.07, 0.2), 0.14), 0.05)
    mottle = 1 + 0.3 * noise(rng, len(c.x), 14, 2)
    return _add(image, cover * mottle, _tone(rng, image, inside, 0.2, 0.5))


def film(rng: np.random.Generator, c: Canvas, image: Image, inside: Field) -> Image:
    """A large patch of low contrast without an edge, on the object only."""
    distance = blob(rng, c, _place(rng, c, inside), rng.uniform(0.18, 0.32), 0.1)
    cover = smoothstep(0.08, -0.08, distance) * inside
    return _add(image, cover, _tone(rng, image, inside, 0.12, 0.25))


def cut_paste(rng: np.random.Generator, c: Canvas, image: Image, inside: Field) -> Image:
    """A rectangle of the object, turned or mirrored, at another place of the same image."""
    size = len(image)
    h, w = (max(3, round(size * side)) for side in rng.uniform(0.1, 0.25, 2))
    corners = []
    for _ in range(2):
        x, y = _place(rng, c, inside)
        top, left = round((y + 1) / 2 * size - h / 2), round((x + 1) / 2 * size - w / 2)
        corners.append((min(max(top, 0), size - h), min(max(left, 0), size - w)))
    (top, left), (to_top, to_left) = corners
    patch = image[top : top + h, left : left + w]
    patch = (patch[::-1], patch[:, ::-1], patch[::-1, ::-1])[rng.integers(3)]
    result = image.copy()
    result[to_top : to_top + h, to_left : to_left + w] = patch
    return result


DEFECTS: dict[str, Callable[[np.random.Generator, Canvas, Image, Field], Image]] = {
    "crack": crack,
    "fiber": fiber,
    "spots": spots,
    "stain": stain,
    "film": film,
    "cut_paste": cut_paste,
}
