"""Regions: they are those of the mask in the image's own size, found by SciPy and filled pixel by pixel."""

import numpy as np
import pytest
from scipy import ndimage

from bigan_jax.data.files.fit import FITS
from bigan_jax.reports.overlays import marked
from bigan_jax.reports.prediction_files import _segmentation
from bigan_jax.reports.regions import find_regions


def filled(polygons, size):
    """The mask of polygons, by the parity of the edges above each pixel."""
    crossings = np.zeros((size[1] + 1, size[0]), int)
    for ring in (ring for polygon in polygons for ring in polygon):
        for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], ring[0]], strict=True):
            assert (x == next_x) != (y == next_y)  # along the borders of pixels
            if y == next_y:
                crossings[y, min(x, next_x) : max(x, next_x)] += 1
    return np.cumsum(crossings, 0)[:-1] % 2 == 1


def signed_area(ring):
    """Positive if the ring is clockwise, with y downwards."""
    return sum(x * b - a * y for (x, y), (a, b) in zip(ring, [*ring[1:], ring[0]], strict=True)) / 2


def random_errors(rng, smooth):
    errors = rng.random((16, 16))
    return (ndimage.gaussian_filter(errors, 1) if smooth else errors).astype(np.float32)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(16, 16), (61, 40), (40, 61), (9, 13), (64, 4)])
def test_regions_are_those_of_the_mask(fit, size):
    rng = np.random.default_rng(0)
    for round_ in range(12):
        errors = random_errors(rng, round_ % 2)
        threshold = float(np.quantile(errors, rng.uniform(0.2, 0.95)))
        mask = np.asarray(marked(errors, threshold, size, fit)) > 0
        labels, n_regions = ndimage.label(mask, np.ones((3, 3)))
        regions = find_regions(errors, threshold, size, fit)
        assert len(regions) == n_regions
        assert [r.peak for r in regions] == sorted((r.peak for r in regions), reverse=True)
        found = np.zeros_like(mask)
        for region in regions:
            pixels = filled(region.polygons, size)
            (label,) = np.unique(labels[pixels])
            np.testing.assert_array_equal(pixels, labels == label)
            rows, columns = ndimage.find_objects(labels)[label - 1]
            box = columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
            assert region.box == box and region.area == pixels.sum()
            assert region.area_share == pytest.approx(pixels.mean())
            for outer, *holes in region.polygons:
                assert signed_area(outer) > 0 and all(signed_area(hole) < 0 for hole in holes)
            assert sum(signed_area(ring) for polygon in region.polygons for ring in polygon) == region.area
            found |= pixels
        np.testing.assert_array_equal(found, mask)


def test_values_are_those_of_the_error_map():
    errors = np.zeros((4, 4), np.float32)
    errors[0, :2], errors[3, 3] = (1, 3), 2
    first, second = find_regions(errors, 1.0, (8, 16))
    assert first.box == (0, 0, 4, 4) and (first.peak, first.mean, first.area_share) == (3, 2, 1 / 8)
    assert second.box == (6, 12, 2, 4) and (second.peak, second.mean, second.area) == (2, 2, 8)
    assert second.polygons == [[[(6, 12), (8, 12), (8, 16), (6, 16)]]]
    assert find_regions(errors, 3.5, (8, 16)) == []


def test_corners_and_holes():
    ring = np.ones((5, 5), np.float32)
    ring[2, 2] = ring[1, 1] = 0  # two holes that touch at a corner
    (region,) = find_regions(ring, 0.5, (5, 5))
    ((outer, *holes),) = region.polygons
    assert outer == [(0, 0), (5, 0), (5, 5), (0, 5)] and region.area == 23
    assert sum(signed_area(hole) for hole in holes) == -2
    (diagonal,) = find_regions(np.eye(3, dtype=np.float32), 0.5, (3, 3))
    assert [len(polygon[0]) for polygon in diagonal.polygons] == [4, 4, 4]


def decoded(segmentation, size):
    """The mask of a COCO segmentation: polygons without holes, or run lengths."""
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        assert (width, height) == size and sum(segmentation["counts"]) == width * height
        values = np.arange(len(segmentation["counts"])) % 2 == 1
        return np.repeat(values, segmentation["counts"]).reshape(width, height).T
    return filled([[[*zip(polygon[::2], polygon[1::2], strict=True)]] for polygon in segmentation], size)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_segmentations_are_those_of_coco():
    """By our own decoding, and by pycocotools where it is installed."""
    try:
        from pycocotools import mask as coco
    except ImportError:
        coco = None
    rng, kinds, size = np.random.default_rng(0), set(), (23, 31)
    for round_ in range(30):
        errors = random_errors(rng, round_ % 2)
        for region in find_regions(errors, float(np.quantile(errors, 0.1 + round_ / 40)), size):
            segmentation = _segmentation(region.polygons, *size)
            expected = filled(region.polygons, size)
            np.testing.assert_array_equal(decoded(segmentation, size), expected)
            kinds.add(type(segmentation))
            if coco and isinstance(segmentation, dict):
                encoded = coco.frPyObjects(segmentation, size[1], size[0])
                np.testing.assert_array_equal(coco.decode(encoded), expected)
            elif coco:
                encoded = coco.merge(coco.frPyObjects(segmentation, size[1], size[0]))
                np.testing.assert_array_equal(coco.decode(encoded), expected)
    assert kinds == {dict, list}
