"""A canvas in [-1, 1] x [-1, 1] and what the three domains draw with: distances and noise."""

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

Field = Float32[np.ndarray, "s s"]  # one value a pixel
Paint = Float32[np.ndarray, "s s 3"]  # RGB in [0, 1]

Point = tuple[float, float]  # Python floats: NumPy's would turn every field into float64


class Canvas(NamedTuple):
    """Pixel centers; x grows to the right, y downwards."""

    x: Field
    y: Field
    pixel: float  # the side of one


@lru_cache(maxsize=4)
def canvas(size: int) -> Canvas:
    """The canvas of `size` x `size` pixels."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    return Canvas(*np.meshgrid(line, line), 2 / size)


class Defect(NamedTuple):
    """What lies over a clean picture: where (0 to 1) and in which colors."""

    cover: Field
    paint: Paint | Float32[np.ndarray, "3"]


@lru_cache(maxsize=64)
def _spline(size: int, cells: int) -> csr_array:
    """Cubic B-splines [size, cells + 3], so that noise looks the same at every size."""
    place = (np.arange(size) + 0.5) / size * cells
    away = np.abs(place[:, None] - (np.arange(cells + 3) - 1)[None])
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away).clip(0) ** 3 / 6
    # Sparse, because BLAS threads on such small products cost far more than they bring.
    return csr_array(np.where(away < 1, near, far).astype(np.float32))


def clouds(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> Field:
    """Smooth noise of spread about 1 with `cells` cells a side; each octave halves both."""
    total = 0
    for octave in range(octaves):
        n = cells << octave
        basis = _spline(size, n)
        knots = rng.standard_normal((n + 3, n + 3), np.float32)
        total = total + basis @ (basis @ knots).T * (2.0 * 0.5**octave)
    return total


def wobble(rng: np.random.Generator, x: Field, y: Field, waves: int, strength: float) -> Field:
    """A random closed curve: sines of 2, 3, ... `waves` + 1 periods around the origin, the faster
    the weaker."""
    r = np.hypot(x, y) + 1e-6
    cos, sin = x / r, y / r
    c, s, total = cos, sin, 0
    for k in range(2, 2 + waves):
        c, s = c * cos - s * sin, s * cos + c * sin  # of k times the angle
        a, b = rng.normal(0, strength * 2 / k, 2).tolist()
        total = total + a * c + b * s
    return total


def fill(distance: Field, softness: float) -> Field:
    """Cover of the inside (negative `distance`), with an edge `softness` wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def bump(distance: Field, width: float) -> Field:
    """A line along distance 0 with a Gaussian profile."""
    return np.exp(-((distance / width) ** 2))


def step(low: float, high: float, value: Field) -> Field:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def segment(x: Field, y: Field, a: Point, b: Point) -> Field:
    """Distance to the segment from `a` to `b`."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(x - a[0] - t * dx, y - a[1] - t * dy)


def path(x: Field, y: Field, points: list[Point]) -> Field:
    """Distance to the line through `points`."""
    return np.minimum.reduce([segment(x, y, a, b) for a, b in pairwise(points)])


def blob(rng: np.random.Generator, c: Canvas, center: Point, radius: float, rough: float) -> Field:
    """Signed distance, roughly, to the edge of an irregular blob."""
    x, y = c.x - center[0], c.y - center[1]
    stretch, turn = rng.uniform(0.75, 1), rng.uniform(0, np.pi)
    u = x * math.cos(turn) + y * math.sin(turn)
    v = (y * math.cos(turn) - x * math.sin(turn)) / stretch
    return np.hypot(u, v) - radius * (1 + wobble(rng, u, v, 5, rough))


def over(under: Paint, cover: Field, paint: ArrayLike) -> Paint:
    """`paint` (a color or a picture) laid over `under`."""
    return under + cover[..., None] * (np.asarray(paint, np.float32) - under)


def shrink(field: Shaped[np.ndarray, "..."], factor: int) -> Shaped[np.ndarray, "..."]:
    """Box average over `factor` x `factor` pixels."""
    cells = (field[i::factor, j::factor] for i in range(factor) for j in range(factor))
    return sum(cells) / np.float32(factor**2)
