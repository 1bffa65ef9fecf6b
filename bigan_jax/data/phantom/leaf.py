"""The phantom `leaf`: a leaf with veins and shading, and its shadow on the ground."""

import math
from typing import NamedTuple

import numpy as np

from bigan_jax.data.phantom.canvas import Canvas, Defect, Field, Paint, over
from bigan_jax.data.phantom.fields import blob, fill, gaussian, noise, segment_distance, smoothstep

NOISE = 0.006


class Leaf(NamedTuple):
    """The geometry of a leaf, for its defects."""

    edge: Field  # distance from the outline, negative on the leaf
    ground: Paint  # with the shadow
    center: tuple[float, float]
    frame: tuple[float, float, float, float]  # cosine, sine, half length, half width


def scene(rng: np.random.Generator, c: Canvas) -> tuple[Paint, Leaf]:
    """Draws a leaf with random pose, outline, veins, color and light."""
    size = len(c.x)
    rotation = rng.normal(0, 0.05)
    cx, cy = rng.normal(0, 0.012), rng.normal(-0.04, 0.012)
    length, width = rng.normal(0.84, 0.015), rng.normal(0.62, 0.018)
    cos, sin = math.cos(rotation), math.sin(rotation)
    x, y = c.x - cx, c.y - cy
    along = (y * cos - x * sin) / length  # -1 at the tip, 1 at the stalk
    across = x * cos + y * sin - rng.normal(0, 0.03) * (along**2 - 0.4)

    t = np.clip((along + 1) / 2, 0, 1)
    half = width * 1.72 * t ** rng.normal(0.88, 0.02) * (1 - t) ** rng.normal(0.42, 0.015)
    wave = 0.014 * noise(rng, size, 4) + 0.006 * noise(rng, size, 14)
    edge = (np.abs(across) - half) * 0.8 + wave * smoothstep(0.0, 0.15, t)
    edge = np.maximum(edge, (np.abs(along) - 1) * length)
    stalk = segment_distance(across, along * length, (0.0, 0.9 * length), (0.0, 1.14 * length)) - 0.020
    edge = np.minimum(edge, stalk)

    tone = np.array([0.60, 0.57, 0.62]) * rng.normal(1, 0.045) * rng.normal(1, 0.012, 3)
    slope = rng.normal(0, 0.035) * c.x + rng.normal(0, 0.035) * c.y
    ground = (1 + slope + 0.012 * noise(rng, size, 40) + 0.012 * noise(rng, size, 3))[..., None]
    ground = ground * tone.astype(np.float32)
    shadow = _shift(edge, (rng.normal(0.045, 0.010), rng.normal(0.035, 0.010)), c)
    ground = ground * (1 - 0.5 * fill(shadow, 0.05))[..., None]

    # Secondary veins run from the midrib to the tip, and the blade bulges between them.
    steep, spacing = rng.normal(0.75, 0.02), rng.normal(0.215, 0.003)
    phase = (along * length + steep * np.abs(across) + 0.25 * across**2) / spacing
    phase = phase + 0.5 * (across > 0) + rng.normal(0, 0.06) + 0.05 * noise(rng, size, 6)
    line = np.abs(phase - np.round(phase)) * spacing
    inner = smoothstep(0.0, 0.10, -edge)
    veins = 0.55 * gaussian(line, 0.012) * smoothstep(0.55, 0.05, np.abs(across)) * inner
    midrib = gaussian(across, 0.020 + 0.012 * np.clip(along, -1, 1)) * smoothstep(1.02, 0.7, -along)
    small = gaussian(noise(rng, size, 24), 0.30) * inner

    swell = np.sin(2 * math.pi * phase)
    halves = np.clip(across / 0.04, -1, 1)  # one half faces the lamp
    light = 1 + 0.10 * swell * inner + rng.normal(0.10, 0.02) * halves
    light = light + 0.05 * noise(rng, size, 3) - 0.05 * small - 0.22 * smoothstep(-0.05, 0.0, edge)
    green = np.array([0.22, 0.40, 0.17]) * rng.normal(1, 0.05) * rng.normal(1, [0.06, 0.02, 0.05])
    blade = light[..., None] * green.astype(np.float32)
    pale = np.array([0.50, 0.62, 0.36], np.float32)
    blade = over(blade, np.clip(veins + 0.9 * midrib, 0, 1) * 0.75, pale)
    blade = over(blade, fill(stalk, 0.02) * (edge > -0.03), pale * 0.85)
    shine = smoothstep(1.0, 2.6, noise(rng, size, 6) + 0.5 * swell)
    blade = over(blade, 0.25 * shine * inner, (0.70, 0.80, 0.70))

    paint = over(ground, fill(edge, 1.5 * c.pixel), blade) * rng.normal(1, 0.03)
    return paint.astype(np.float32), Leaf(edge, ground, (cx, cy), (cos, sin, length, width))


def _shift(field: Field, shift: tuple[float, float], c: Canvas) -> Field:
    """Shift a field by whole pixels and repeat its border."""
    dx, dy = (round(s / c.pixel) for s in shift)
    columns = np.clip(np.arange(len(field)) - dx, 0, len(field) - 1)
    rows = np.clip(np.arange(len(field)) - dy, 0, len(field) - 1)
    return field[rows][:, columns]


def _place(rng: np.random.Generator, leaf: Leaf, reach: float = 0.62) -> tuple[float, float]:
    """A random point on the canvas, on the blade."""
    cos, sin, length, width = leaf.frame
    along = rng.uniform(-0.45, 0.7)
    across = rng.uniform(-reach, reach) * width * (1 - 0.5 * abs(along - 0.2))
    along = along * length
    return leaf.center[0] + across * cos - along * sin, leaf.center[1] + across * sin + along * cos


def _on_leaf(cover: Field, leaf: Leaf) -> Field:
    return cover * fill(leaf.edge + 0.01, 0.02)


def spots(rng: np.random.Generator, c: Canvas, leaf: Leaf, paint: Paint) -> Defect:
    """Scattered brown spots with yellow halos."""
    nearest, ragged = np.full_like(c.x, 9), 0.010 * noise(rng, len(c.x), 22)
    for _ in range(rng.integers(3, 13)):
        x, y = _place(rng, leaf)
        nearest = np.minimum(nearest, np.hypot(c.x - x, c.y - y) - rng.uniform(0.02, 0.055))
    nearest = nearest + ragged
    brown = np.array([0.34, 0.22, 0.12], np.float32) * rng.normal(1, 0.1)
    yellow = np.array([0.62, 0.60, 0.20], np.float32)
    color = over(yellow * 0.5 + paint * 0.5, fill(nearest, 0.02), brown)
    return Defect(_on_leaf(fill(nearest - 0.02, 0.03), leaf), color)


def bite(rng: np.random.Generator, c: Canvas, leaf: Leaf, paint: Paint) -> Defect:
    """A hole in the blade, through which the shadowed ground is visible."""
    distance = np.full_like(c.x, 9)
    center, radius = _place(rng, leaf, 0.85), rng.uniform(0.08, 0.14)
    for _ in range(rng.integers(1, 4)):
        near = (center[0] + rng.normal(0, radius), center[1] + rng.normal(0, radius))
        distance = np.minimum(distance, blob(rng, c, near, radius, 0.06))
    shade = 0.62 + 0.38 * smoothstep(0.02, 0.05, -_shift(distance, (0.03, 0.03), c))
    ground = np.zeros_like(paint) + leaf.ground.mean((0, 1)) * 1.12 * shade[..., None]
    color = over(ground, gaussian(distance, 0.012) * 0.7, (0.30, 0.24, 0.12))
    return Defect(_on_leaf(fill(distance, 0.02), leaf), color)


def blight(rng: np.random.Generator, c: Canvas, leaf: Leaf, paint: Paint) -> Defect:
    """A dead, mottled brown patch."""
    distance = blob(rng, c, _place(rng, leaf, 0.9), rng.uniform(0.11, 0.22), 0.14)
    distance = distance + 0.03 * noise(rng, len(c.x), 10, 2)
    bright = 1 + 0.16 * noise(rng, len(c.x), 14, 2)
    color = bright[..., None] * np.array([0.30, 0.21, 0.12], np.float32) + 0.15 * paint
    return Defect(_on_leaf(fill(distance, 0.05), leaf), color)


def mildew(rng: np.random.Generator, c: Canvas, leaf: Leaf, paint: Paint) -> Defect:
    """Thin pale powder, through which the veins remain visible."""
    distance = blob(rng, c, _place(rng, leaf), rng.uniform(0.14, 0.26), 0.14)
    powder = np.clip(0.30 + 0.09 * noise(rng, len(c.x), 12, 2), 0.08, 0.55)
    color = over(paint, powder, (0.80, 0.82, 0.78))
    return Defect(_on_leaf(fill(distance, 0.12), leaf), color)


DEFECTS = {"spots": spots, "bite": bite, "blight": blight, "mildew": mildew}
