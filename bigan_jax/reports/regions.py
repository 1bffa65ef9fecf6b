"""Regions of an image whose error reaches the pixel threshold: boxes, areas and contours, in the image's own pixels.

They are those of the mask that `overlays.marked` draws. All of them are found in the error map, whose pixels are
repeated in the mask: the time does not depend on the size of the image.
"""

from collections import defaultdict

import msgspec
import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy import ndimage

from bigan_jax.data.files.fit import source_box, unpad
from bigan_jax.metrics.thresholds import decide

Ring = list[tuple[int, int]]  # the corners (x, y) of a closed line on the borders of pixels
Polygon = list[Ring]  # its outer ring, clockwise, and those of its holes, counterclockwise


class Region(msgspec.Struct, frozen=True):
    """An 8-connected region of the pixels that reach the pixel threshold."""

    box: tuple[int, int, int, int]  # x, y of its upper left pixel, width, height
    area: int  # in pixels
    area_share: float  # of the image
    peak: float  # the highest error
    mean: float  # of the error
    polygons: list[Polygon]  # several where parts touch only at a corner


def find_regions(
    errors: Float[np.ndarray, "h w"], threshold: float, size: tuple[int, int], fit: str = "stretch"
) -> list[Region]:
    """Returns the regions of an image of (width, height) `size`, the one with the highest peak first.

    All regions are returned, also those of a single pixel. `fit` is how the image became square; with "crop" there is
    no region outside of the central square.
    """
    left, top, right, bottom = (int(side) for side in source_box(*size, fit))
    errors = unpad(errors, *size, fit)
    rows, y = _grid(errors.shape[0], bottom - top)
    columns, x = _grid(errors.shape[1], right - left)
    errors = errors[np.ix_(rows, columns)]
    mask = decide(errors, threshold)
    labels = _label(mask, np.ones((3, 3)))
    if not mask.any():
        return []
    pixels = np.outer(np.diff(y), np.diff(x))[mask]  # of the image, for each marked pixel of the map
    label, marked = labels[mask] - 1, errors[mask].astype(np.float64)
    areas = np.bincount(label, pixels).astype(int)
    means = np.bincount(label, pixels * marked) / areas
    peaks = np.full(len(areas), -np.inf)
    np.maximum.at(peaks, label, marked)
    polygons = _polygons(mask, labels, x + left, y + top)
    regions = []
    for index, (vertical, horizontal) in enumerate(ndimage.find_objects(labels)):
        x_first, y_first = int(x[horizontal.start]), int(y[vertical.start])
        regions.append(
            Region(
                box=(x_first + left, y_first + top, int(x[horizontal.stop]) - x_first, int(y[vertical.stop]) - y_first),
                area=int(areas[index]),
                area_share=int(areas[index]) / (size[0] * size[1]),
                peak=float(peaks[index]),
                mean=float(means[index]),
                polygons=polygons[index + 1],
            )
        )
    return sorted(regions, key=lambda region: -region.peak)


def _grid(n: int, size: int) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k+1"]]:
    """Returns which of n rows of a map are in an image with `size` rows, and the borders of each in the image.

    Pillow itself chooses the nearest row, as it does for the mask. A smaller image leaves rows out.
    """
    row = Image.fromarray(np.arange(n, dtype=np.int32)[None]).resize((size, 1), Image.Resampling.NEAREST)
    nearest = np.asarray(row)[0]
    first = np.flatnonzero(np.diff(nearest, prepend=-1))
    return nearest[first], np.append(first, size)


def _polygons(mask: Bool[np.ndarray, "h w"], labels: Int[np.ndarray, "h w"], x, y) -> dict[int, list[Polygon]]:
    """Returns the polygons of each label; `x` and `y` are the positions of the grid's lines.

    Every second edge of a ring is horizontal. In a row of the grid, its first and second corner are the ends of an
    edge, then the third and fourth, and in a column likewise. Where two pixels touch only at a corner, each has a
    corner of its own, so that no ring crosses itself or another one.
    """
    parts = _label(mask)
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    falling, rising = nw & se & ~ne & ~sw, ne & sw & ~nw & ~se
    # Of two corners in one place, the one whose horizontal edge goes left comes first in its row, and the one whose
    # vertical edge goes up comes first in its column.
    kinds = (nw ^ ne ^ sw ^ se, 0, 0), (falling, 0, 0), (falling, 1, 1), (rising, 1, 0), (rising, 0, 1)
    corners = np.concatenate([np.argwhere(places) for places, _, _ in kinds])
    goes_right, goes_down = np.concatenate([np.full((places.sum(), 2), flags) for places, *flags in kinds]).T
    order = np.lexsort((goes_right, corners[:, 1], corners[:, 0]))
    (row, column), goes_down = corners[order].T, goes_down[order]
    by_column = np.lexsort((goes_down, row, column)).reshape(-1, 2)
    vertical = np.empty(len(order), int)
    vertical[by_column] = by_column[:, ::-1]
    next_corner, points = vertical.tolist(), list(zip(x[column].tolist(), y[row].tolist(), strict=True))

    rings: dict[tuple[int, int], Polygon] = defaultdict(list)  # by label and 4-connected part
    visited = bytearray(len(points))
    for start in range(0, len(points), 2):  # the upper left corner of a ring comes before its others
        ring, corner = [], start
        while not visited[corner]:
            visited[corner] = visited[corner ^ 1] = True
            ring += [points[corner], points[corner ^ 1]]
            corner = next_corner[corner ^ 1]
        if ring:
            r, c = row[start], column[start]
            is_hole = r == len(mask) or c == mask.shape[1] or not mask[r, c]
            inside = (r - 1, c - 1) if is_hole else (r, c)
            rings[int(labels[inside]), int(parts[inside])].append([ring[0], *ring[:0:-1]] if is_hole else ring)
    polygons: dict[int, list[Polygon]] = defaultdict(list)
    for (label, _), polygon in rings.items():  # an outer ring comes before its holes
        polygons[label].append(polygon)
    return polygons


def _label(mask: Bool[np.ndarray, "h w"], neighbors: np.ndarray | None = None) -> Int[np.ndarray, "h w"]:
    """Returns the number of each pixel's connected region, from 1; 0 outside. Without `neighbors` 4-connected."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, neighbors, output=labels)
    return labels
