"""Images and masks that are not square."""

import io

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files.fit import FITS
from bigan_jax.data.files.images import read_image, read_mask
from tests.helpers.encoded_images import saved


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (41, 13), (32, 32), (200, 4)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_fit_keeps_the_aspect_ratio(shape, orientation):
    height, width = shape
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1] = [(90, 10, 200)] * 4  # the border
    upright = Image.fromarray(pixels)
    rotation = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright if rotation[orientation] is None else upright.transpose(rotation[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(stored, "PNG", exif=exif)
    size = 16

    w, h = (max(1, round(size * side / max(shape))) for side in (width, height))
    small = np.asarray(upright.resize((w, h), Image.Resampling.BILINEAR)).astype(int)
    padded = np.empty((size, size, 3), int)
    padded[:] = np.median(np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]), axis=0).round()
    top, left = (size - h) // 2, (size - w) // 2
    padded[top : top + h, left : left + w] = small
    side = min(shape)
    box = (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2
    cropped = np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR, box)).astype(int)
    for fit, expected in ("pad", padded), ("crop", cropped):
        result = read_image(io.BytesIO(content), size, 3, fit=fit)
        assert np.abs(result - expected).max() <= 2  # rows first, or columns first


def test_padding_has_the_color_of_the_border():
    pixels = np.full((30, 90, 3), (200, 40, 90), np.uint8)
    pixels[8:20, 20:70] = 0
    result = read_image(io.BytesIO(saved(Image.fromarray(pixels), "PNG")), 30, 3, fit="pad")
    assert (result[:10] == (200, 40, 90)).all() and (result[20:] == (200, 40, 90)).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (50, 34)])
@pytest.mark.parametrize("scale", [1, 2])
def test_mask_follows_its_image(fit, shape, scale):
    """A defect that is drawn into the image is where the mask has it."""
    mask = np.zeros(shape, np.uint8)
    mask[12:28, 14:22] = 255
    content = saved(Image.fromarray(mask), "PNG")
    image = read_image(io.BytesIO(content), 16, 1, fit=fit)[..., 0]
    scaled = Image.fromarray(mask).resize((shape[1] * scale, shape[0] * scale), Image.Resampling.NEAREST)
    result = read_mask(io.BytesIO(saved(scaled, "PNG")), 16, (shape[1], shape[0]), fit)
    assert image[result].min() > 60 and image[~result].max() < 200
    for axis in np.mgrid[:16, :16]:  # the centers are the same
        assert abs(axis[result].mean() - np.average(axis, weights=image)) < 0.6
