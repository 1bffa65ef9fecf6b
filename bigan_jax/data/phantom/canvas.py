"""A canvas in [-1, 1] x [-1, 1], and what is painted on it."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

Field = Float[np.ndarray, "s s"]  # one value per pixel
Paint = Float[np.ndarray, "s s 3"]  # RGB in [0, 1]

Color = Float[np.ndarray, "3"] | tuple[float, float, float]  # RGB in [0, 1]
Point = tuple[float, float]  # Python floats: NumPy's would turn every field into float64


class Canvas(NamedTuple):
    """Coordinates of pixel centers; x grows to the right, y downwards."""

    x: Field
    y: Field
    pixel: float  # side length of a pixel


@lru_cache(maxsize=4)
def make_canvas(size: int) -> Canvas:
    """Returns the canvas of `size` x `size` pixels."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    return Canvas(*np.meshgrid(line, line), 2 / size)


class Defect(NamedTuple):
    """The cover (0 to 1) and the colors of a defect, to be laid over a clean image."""

    cover: Field
    paint: Paint | Color


def over(under: Paint, cover: Field, paint: Paint | Color) -> Paint:
    """Lay `paint` (a color or an image) over `under`."""
    return under + cover[..., None] * (np.asarray(paint, np.float32) - under)


def downsample(field: Shaped[np.ndarray, "..."], factor: int) -> Shaped[np.ndarray, "..."]:
    """Average blocks of `factor` x `factor` pixels."""
    cells = [field[i::factor, j::factor] for i in range(factor) for j in range(factor)]
    return sum(cells[1:], cells[0]) / np.float32(factor**2)
