"""Fields of distances and of noise, from which images are drawn."""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np

from bigan_jax.data.phantom.canvas import Canvas, Field, Point


@lru_cache(maxsize=64)
def _spline(size: int, cells: int):
    """Cubic B-splines [size, cells + 3], with which noise looks the same at every size, as a sparse array."""
    from scipy.sparse import csr_array  # takes longer to import than the rest of bigan_jax.data

    position = (np.arange(size) + 0.5) / size * cells
    distance = np.abs(position[:, None] - (np.arange(cells + 3) - 1)[None])
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clip(0) ** 3 / 6
    # Sparse, because BLAS threads cost more than they save on such small products.
    return csr_array(np.where(distance < 1, near, far).astype(np.float32))


def noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> Field:
    """Noise with a standard deviation of about 1, smooth over 1 / `cells`; octaves halve both."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        n = cells << octave
        basis = _spline(size, n)
        knots = rng.standard_normal((n + 3, n + 3), np.float32)
        total = total + basis @ (basis @ knots).T * (2.0 * 0.5**octave)
    return total


def radial_noise(rng: np.random.Generator, x: Field, y: Field, waves: int, strength: float) -> Field:
    """Sum of sines with k = 2, ... `waves` + 1 periods around the origin; random amplitudes of `strength` * 2 / k."""
    r = np.hypot(x, y) + 1e-6
    cos, sin = x / r, y / r
    c, s, total = cos, sin, np.zeros_like(r)
    for k in range(2, 2 + waves):
        c, s = c * cos - s * sin, s * cos + c * sin  # of k times the angle
        a, b = rng.normal(0, strength * 2 / k, 2).tolist()
        total = total + a * c + b * s
    return total


def fill(distance: Field, softness: float) -> Field:
    """Cover (0 to 1) of the inside (negative `distance`), with an edge of width `softness`."""
    return np.clip(0.5 - distance / softness, 0, 1)


def gaussian(distance: Field, width: float | Field) -> Field:
    """A line along distance 0 with a Gaussian profile of this width."""
    return np.exp(-((distance / width) ** 2))


def smoothstep(low: float, high: float, value: Field) -> Field:
    """0 below `low`, 1 above `high`, and smooth in between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def segment_distance(x: Field, y: Field, a: Point, b: Point) -> Field:
    """Distance to the line segment from `a` to `b`."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(x - a[0] - t * dx, y - a[1] - t * dy)


def polyline_distance(x: Field, y: Field, points: list[Point]) -> Field:
    """Distance to the polyline through `points`."""
    return np.minimum.reduce([segment_distance(x, y, a, b) for a, b in pairwise(points)])


def blob(rng: np.random.Generator, c: Canvas, center: Point, radius: float, rough: float) -> Field:
    """Approximate signed distance to the edge of an irregular blob."""
    x, y = c.x - center[0], c.y - center[1]
    stretch, rotation = rng.uniform(0.75, 1), rng.uniform(0, np.pi)
    u = x * math.cos(rotation) + y * math.sin(rotation)
    v = (y * math.cos(rotation) - x * math.sin(rotation)) / stretch
    return np.hypot(u, v) - radius * (1 + radial_noise(rng, u, v, 5, rough))
