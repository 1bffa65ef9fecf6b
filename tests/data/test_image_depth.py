"""Images of more than 8 bits, white as zero, and the percentile stretch."""

import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from bigan_jax.data.files import pixel_values
from bigan_jax.data.files.images import read_full_size, read_image, read_mask
from bigan_jax.errors import UserError
from tests.helpers.encoded_images import png16, png_chunk, ppm16, saved, tiff, tiff16, with_tag


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (9, 12), elements=st.integers(0, 100)), st.integers(1, 400), st.integers(0, 25_000))
def test_stretch_is_invariant_to_scale_and_offset(image, scale, offset):
    low, high = np.percentile(image.astype(float), (1, 99))
    assume(high > low)
    expected = (255 * (image - low) / (high - low)).clip(0, 255)
    deep = image.astype(np.uint16) * scale + offset
    for values in image, deep, deep.astype(np.int32), deep.astype(np.float32) - 7e4:
        result = np.asarray(read_full_size(tiff(values), window=True))
        assert result.dtype == np.uint8 and abs(result - expected).max() <= 0.51


def test_stretch_is_shared_by_all_channels(tmp_path):
    ramp = np.linspace(50, 90, 100).round().astype(np.uint8).reshape(10, 10)
    color = np.stack([ramp, np.full_like(ramp, 50), np.full_like(ramp, 70)], -1)
    Image.fromarray(color).save(tmp_path / "a.png")
    result = read_image(tmp_path / "a.png", 10, 3, window=True).astype(float)
    low, high = np.percentile(color, (1, 99))
    np.testing.assert_allclose(result, (255 * (color - low) / (high - low)).clip(0, 255), atol=0.51)


def test_stretch_requires_finite_values():
    with pytest.raises(UserError, match="not finite"):
        read_image(tiff(np.full((8, 8), np.nan, np.float32)), 8, 1, window=True)


DEEP_COLOR = {
    "png": (png16, 3),
    "alpha.png": (png16, 4),
    "tif": (tiff16, 3),
    "alpha.tif": (tiff16, 4),
    "big-endian.tif": (lambda values: tiff16(values, ">"), 3),
    "deflated.tif": (lambda values: tiff16(values, compress=True), 3),
    "deflated-big-endian.tif": (lambda values: tiff16(values, ">", compress=True), 4),
    "ppm": (lambda values: ppm16(values, 4095), 3),
}


@pytest.mark.parametrize("kind", DEEP_COLOR)
@pytest.mark.parametrize("depth", [10, 12])
@pytest.mark.parametrize("sections", [1, 3])
def test_color_is_stretched_at_its_own_depth(monkeypatch, kind, depth, sections):
    """10 or 12 bits in 16: cut to 8 bits first, only 4 or 16 levels would be left."""
    monkeypatch.setattr(pixel_values, "STRIP_PIXELS", 16 * 3)
    if sections > 1:
        monkeypatch.setattr(pixel_values, "SECTIONED_PIXELS", 16)
    write, channels = DEEP_COLOR[kind]
    values = np.random.default_rng(0).integers(0, 2**depth, (20, 16, channels)).astype(np.uint16)
    values[..., 3:] = 65535
    content = write(values)
    color = values[..., :3].astype(float)
    expected = np.interp(color, np.percentile(color, (1, 99)), (0, 255))
    result = np.asarray(read_full_size(io.BytesIO(content), window=True))
    np.testing.assert_allclose(result, expected, atol=0.51)
    square = np.asarray(Image.fromarray(result).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_image(io.BytesIO(content), 8, 3, window=True), square)
    if kind != "ppm":  # whose white is 4095
        darker = np.asarray(read_full_size(io.BytesIO(content)))
        np.testing.assert_allclose(darker, color / 257, atol=1.01)


def test_exif_orientation_after_deep_color_is_applied(monkeypatch):
    values = np.random.default_rng(0).integers(0, 2**16, (20, 16, 3)).astype(np.uint16)
    content, exif = png16(values), Image.Exif()
    exif[0x0112] = 6
    end = content.index(b"IEND") - 4
    rotated = content[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + content[end:]
    expected = np.asarray(read_full_size(io.BytesIO(content), window=True)).swapaxes(0, 1)[:, ::-1]
    for pixels in pixel_values.SECTIONED_PIXELS, 16:
        monkeypatch.setattr(pixel_values, "SECTIONED_PIXELS", pixels)
        np.testing.assert_array_equal(read_full_size(io.BytesIO(rotated), window=True), expected)


def test_transparent_deep_color_is_white():
    values = np.random.default_rng(0).integers(0, 2**16, (20, 16, 4)).astype(np.uint16)
    values[..., 3] = np.where(values[..., 3] > 40_000, 65535, 0)
    color = np.where(values[..., 3:] > 0, values[..., :3], 65535).astype(float)
    expected = np.interp(color, np.percentile(color, (1, 99)), (0, 255))
    np.testing.assert_allclose(read_full_size(io.BytesIO(png16(values)), window=True), expected, atol=0.51)


GRAY_TIFF = {"8": (np.uint8, 255), "16": (np.uint16, 65535), "32 float": (np.float32, 1)}


@pytest.mark.parametrize("kind", GRAY_TIFF)
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
def test_white_as_zero_is_not_inverted(kind, byte_order, compress):
    dtype, top = GRAY_TIFF[kind]
    values = (np.random.default_rng(0).random((20, 16)) * top).astype(dtype)
    bits = values.dtype.itemsize * 8
    plain = tiff16(values, byte_order, 1, compress, bits)
    inverse = tiff16(top - values, byte_order, 0, compress, bits)
    for window in False, True:
        expected, result = (np.asarray(read_full_size(io.BytesIO(c), window)).astype(int) for c in (plain, inverse))
        assert np.abs(expected - result).max() <= (kind == "32 float") and np.ptp(expected) > 200
    mask = np.where(values > values.mean(), values, 0).astype(dtype)
    content = tiff16(top - mask, byte_order, 0, compress, bits)
    if kind != "32 float":  # whose zero is not exact
        np.testing.assert_array_equal(read_mask(io.BytesIO(content), 8), read_mask(tiff(mask), 8))


def test_bits_with_white_as_zero():
    image = Image.fromarray(np.random.default_rng(0).random((20, 16)) > 0.5)
    content = bytearray(saved(image, "TIFF"))
    result = np.asarray(read_full_size(io.BytesIO(content)))
    inverse = np.asarray(read_full_size(io.BytesIO(with_tag(saved(image, "TIFF"), 262, 0))))
    np.testing.assert_array_equal(255 - result, inverse)


def test_packed_twelve_bits_fill_the_range():
    values = np.random.default_rng(0).integers(0, 4096, (20, 16)).astype(np.uint16)
    first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
    content = tiff16(packed.reshape(20, 24), "<", 1, bits=12)
    content = with_tag(content, 256, 16)
    np.testing.assert_allclose(read_full_size(io.BytesIO(content)), values / 4095 * 255, atol=0.51)
