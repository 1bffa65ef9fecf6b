"""The phantom `bottle`: a bottle mouth from above, with dark glass and amber reflections."""

import math
from typing import NamedTuple

import numpy as np

from bigan_jax.data.phantom.canvas import Canvas, Defect, Field, Paint, over
from bigan_jax.data.phantom.fields import blob, fill, gaussian, noise, polyline_distance, radial_noise, smoothstep

NOISE = 0.007
OUTSIDE = 0.90  # radius of the body

# Gray value of the glass by radius, from the opening to the edge.
_RADII = np.array([0, 0.44, 0.50, 0.515, 0.545, 0.57, 0.60, 0.63, 0.67, 0.70, 0.73, 0.77, 0.82, 0.87, 0.9])
_GRAYS = np.array([0.09, 0.10, 0.08, 0.30, 0.20, 0.34, 0.24, 0.42, 0.30, 0.46, 0.25, 0.16, 0.21, 0.30, 0.4])
_AMBER = np.array([0.80, 0.47, 0.25], np.float32)
_GLASS = np.array([0.96, 1.0, 1.08], np.float32)


class Bottle(NamedTuple):
    """The geometry of a bottle, for its defects."""

    r: Field  # 1 is half of the image for a bottle of scale 1
    angle: Field
    center: tuple[float, float]
    scale: float
    ground: Paint


def scene(rng: np.random.Generator, c: Canvas) -> tuple[Paint, Bottle]:
    """Draws a bottle with random position, size, roundness, rings, reflections and exposure."""
    size = len(c.x)
    center = tuple(rng.normal(0, 0.015, 2).tolist())
    scale = rng.normal(1, 0.014)
    x, y = (c.x - center[0]) / scale, (c.y - center[1]) / scale
    angle = np.arctan2(y, x)
    r = np.hypot(x, y) / (1 + radial_noise(rng, x, y, 2, 0.002))

    ground = 0.955 + 0.012 * noise(rng, size, 2) - 0.08 * gaussian(r - OUTSIDE, 0.10)
    ground = np.repeat(ground[..., None], 3, axis=-1)

    # Inner parts shift relative to the mouth when the bottle tilts.
    tilt = rng.normal(0, 0.012, 2).tolist()
    inner = np.hypot(x - tilt[0], y - tilt[1])
    depth = r + (inner - r) * smoothstep(0.72, 0.5, r)
    radii = _RADII + rng.normal(0, 0.004, len(_RADII)) * (_RADII > 0.5)
    grays = _GRAYS * (1 + rng.normal(0, 0.05, len(_GRAYS)))
    gray = np.interp(depth, radii, grays).astype(np.float32)
    light = rng.normal(-2.2, 0.25)  # angle of the lamp
    gray = gray * (1 + 0.20 * np.cos(angle - light) * smoothstep(0.5, 0.6, r))
    glass = gray[..., None] * _GLASS

    def reflection(radius, width, strength, wide):
        along = np.zeros_like(angle)
        for side in (light, light + math.pi + rng.normal(0, 0.2)):
            distance = 2 * np.sin((angle - side - rng.normal(0, 0.2)) / 2)
            along = np.maximum(along, gaussian(distance, wide * rng.uniform(0.8, 1.2)))
        broken = 0.75 + 0.25 * np.cos(int(rng.integers(5, 9)) * angle + rng.uniform(0, 6.3))
        return strength * along * broken * gaussian(depth - radius, width)

    glass = over(glass, reflection(0.575, 0.010, 0.75, 1.1), _AMBER)
    glass = over(glass, reflection(0.700, 0.012, 0.60, 0.8), _AMBER * 0.9)
    glass = over(glass, reflection(0.632, 0.009, 0.70, 0.35), (0.93, 0.92, 0.86))
    glass = over(glass, reflection(0.795, 0.020, 0.30, 0.7), (0.62, 0.66, 0.74))
    dim = smoothstep(0.50, 0.42, depth) * (0.03 * noise(rng, size, 3, 2) + rng.normal(0.01, 0.012))
    glass = glass + dim[..., None] * np.array([1.1, 0.95, 0.85], np.float32)

    paint = over(ground, fill(r - OUTSIDE, 2 * c.pixel), glass) * rng.normal(1, 0.025)
    return paint.astype(np.float32), Bottle(r, angle, center, scale, ground)


def _at(bottle: Bottle, radius: float, angle: float) -> tuple[float, float]:
    reach = radius * bottle.scale
    return bottle.center[0] + reach * math.cos(angle), bottle.center[1] + reach * math.sin(angle)


def _facets(rng: np.random.Generator, c: Canvas, center: tuple, spread: float, count: int) -> Field:
    """Flat shards of glass: the gray value of the nearest of `count` random points."""
    points = (rng.normal(0, spread, (count, 2)) + center).tolist()
    grays = (rng.uniform(0.05, 0.75, count) ** 1.4).tolist()
    first, second, shard = np.full_like(c.x, 8), np.full_like(c.x, 9), np.zeros_like(c.x)
    for (px, py), gray in zip(points, grays, strict=True):
        distance = np.hypot(c.x - px, c.y - py)
        shard = np.where(distance < first, np.float32(gray), shard)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    return shard + 0.35 * gaussian(second - first, 0.012)


def chip(rng: np.random.Generator, c: Canvas, bottle: Bottle, paint: Paint) -> Defect:
    """A piece broken out of the lip, with bright and dark faces."""
    center = _at(bottle, rng.uniform(0.58, 0.72), rng.uniform(0, 2 * math.pi))
    radius = rng.uniform(0.09, 0.19)
    distance = blob(rng, c, center, radius, 0.13) + 0.02 * noise(rng, len(c.x), 14)
    distance = np.maximum(distance, 0.5 - bottle.r - 0.05)
    shards = _facets(rng, c, center, radius, 9)
    tint = np.array([1.04, 1.0, 0.95], np.float32)
    return Defect(fill(np.maximum(distance, bottle.r - OUTSIDE), 0.02), shards[..., None] * tint)


def crack(rng: np.random.Generator, c: Canvas, bottle: Bottle, paint: Paint) -> Defect:
    """A jagged line across the glass, bright on one side and dark on the other."""
    angle, radius = rng.uniform(0, 2 * math.pi), rng.uniform(0.52, 0.60)
    rotation, stride = rng.uniform(-0.10, 0.10), rng.uniform(0.028, 0.05)
    points = []
    for _ in range(rng.integers(5, 8)):
        points.append(_at(bottle, radius, angle))
        radius, angle = radius + stride, angle + rotation + rng.normal(0, 0.05)
    distance = polyline_distance(c.x, c.y, points)
    shadow = polyline_distance(c.x - 0.016, c.y - 0.016, points)
    width = rng.uniform(0.012, 0.020)
    bright = rng.uniform(0.6, 0.95) * np.array([1, 0.97, 0.9], np.float32)
    colors = over(np.zeros_like(paint) + 0.04, fill(distance - width, 0.012), bright)
    cover = fill(np.minimum(distance - width, shadow - width), 0.014)
    return Defect(cover * fill(bottle.r - OUTSIDE, 0.02), colors)


def contamination(rng: np.random.Generator, c: Canvas, bottle: Bottle, paint: Paint) -> Defect:
    """An uneven brown lump of dirt in the opening or on the glass."""
    center = _at(bottle, rng.uniform(0.05, 0.62), rng.uniform(0, 2 * math.pi))
    distance = blob(rng, c, center, rng.uniform(0.06, 0.17), 0.16) + 0.02 * noise(rng, len(c.x), 12)
    bright = rng.uniform(0.28, 0.5) + 0.09 * noise(rng, len(c.x), 16, 2)
    color = bright[..., None] * np.array([1.25, 0.95, 0.65], np.float32)
    return Defect(fill(distance, 0.035), color)


def fiber(rng: np.random.Generator, c: Canvas, bottle: Bottle, paint: Paint) -> Defect:
    """A pale, bent hair on the mouth."""
    start = _at(bottle, rng.uniform(0.1, 0.6), rng.uniform(0, 2 * math.pi))
    heading, bend = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.35)
    points, stride = [start], rng.uniform(0.05, 0.09)
    for _ in range(6):
        x, y = points[-1]
        points.append((x + stride * math.cos(heading), y + stride * math.sin(heading)))
        heading += bend
    distance = polyline_distance(c.x, c.y, points)
    light = rng.uniform(0.5, 0.9) * np.array([1, 0.98, 0.95], np.float32)
    cover = fill(distance - rng.uniform(0.009, 0.016), 0.014)
    return Defect(cover * fill(bottle.r - OUTSIDE, 0.02), light)


def film(rng: np.random.Generator, c: Canvas, bottle: Bottle, paint: Paint) -> Defect:
    """A thin greasy film inside the opening, with low contrast and no edge."""
    center = _at(bottle, rng.uniform(0.0, 0.25), rng.uniform(0, 2 * math.pi))
    distance = blob(rng, c, center, rng.uniform(0.18, 0.30), 0.1)
    veil = rng.uniform(0.07, 0.13) * (1 + 0.25 * noise(rng, len(c.x), 7, 2))
    color = paint + veil[..., None] * np.array([1.15, 1.0, 0.8], np.float32)
    return Defect(fill(distance, 0.10) * fill(bottle.r - 0.47, 0.04), color)


DEFECTS = {"chip": chip, "crack": crack, "contamination": contamination, "fiber": fiber, "film": film}
