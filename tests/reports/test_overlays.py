"""Overlays: errors are drawn over the part of the image that they belong to."""

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files import pixel_values
from bigan_jax.data.files.fit import FITS
from bigan_jax.data.files.images import read_image
from bigan_jax.reports import overlays
from bigan_jax.reports.charts import ERROR_PALETTE, error_levels


def test_overlay_equals_a_blend_of_the_whole_image(monkeypatch):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8))
    errors = rng.random((16, 16), np.float32)
    levels = Image.fromarray(error_levels(errors, 0.8)).resize(image.size, Image.Resampling.BILINEAR)
    colors = Image.fromarray(np.asarray(ERROR_PALETTE).reshape(-1, 3)[np.asarray(levels)])
    opacity = levels.point([round(overlays.MAX_OPACITY * value) for value in range(256)])
    expected = np.asarray(Image.composite(colors, image, opacity))
    monkeypatch.setattr(overlays, "STRIP_PIXELS", 70 * 8)
    colored, blended = overlays.overlay(image, errors, 0.8)
    np.testing.assert_array_equal(blended, expected)
    np.testing.assert_array_equal(colored.convert("RGB"), colors)
    assert pixel_values.STRIP_PIXELS != overlays.STRIP_PIXELS


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (101, 64), (64, 64)])
def test_error_map_lies_over_its_image(tmp_path, fit, shape):
    """The networks' view of a bright spot, taken as an error map, is drawn where the spot is."""
    pixels = np.zeros(shape, np.uint8)
    pixels[28:44, 26:40] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    seen = read_image(tmp_path / "a.png", 32, 1, fit=fit)[..., 0].astype(np.float32) / 255
    colored, blended = overlays.overlay(Image.fromarray(pixels), seen, 1.0, fit)
    assert colored.size == blended.size == (shape[1], shape[0])
    levels = np.asarray(colored).astype(float)
    for axis in np.mgrid[: shape[0], : shape[1]]:
        assert abs(np.average(axis, weights=levels) - axis[pixels > 0].mean()) < 0.8
    assert levels[28:44, 26:40].mean() > 200 and levels.sum() < 1.3 * levels[24:48, 22:44].sum()
