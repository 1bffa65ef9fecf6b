"""Decoding of image files of every mode, at their own or a reduced size."""

import io

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files import images
from bigan_jax.data.files.images import image_size, read_encoded, read_full_size, read_image
from bigan_jax.data.files.pixel_values import PixelValues
from tests.helpers.encoded_images import saved


def modes():
    """Images of one color in every mode, with the expected gray and RGB values."""
    red_gray = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    rgb = (200, 100, 50)
    palette = Image.new("P", (9, 7), 1)
    palette.putpalette([0, 0, 0, *rgb])
    clear = palette.copy()
    clear.info["transparency"] = 1
    half = Image.new("RGBA", (9, 7), (*rgb, 51))
    over_white = tuple(0.2 * v + 0.8 * 255 for v in rgb)
    half_gray = 0.2 * red_gray + 0.8 * 255
    wide = np.full((7, 9), 257 * 80, np.uint16)
    cmyk = Image.new("CMYK", (9, 7), (55, 155, 205, 0))
    return {
        "1.png": (Image.new("1", (9, 7), 1), 255, (255,) * 3),
        "L.png": (Image.new("L", (9, 7), 80), 80, (80,) * 3),
        "LA.png": (Image.new("LA", (9, 7), (80, 0)), 255, (255,) * 3),
        "I16.png": (Image.fromarray(wide), 80, (80,) * 3),
        "I16.tif": (Image.fromarray(wide), 80, (80,) * 3),
        "I.tif": (Image.fromarray(wide.astype(np.int32)), 80, (80,) * 3),
        "F.tif": (Image.fromarray(np.full((7, 9), 0.4, np.float32)), 102, (102,) * 3),
        "RGB.png": (Image.new("RGB", (9, 7), rgb), red_gray, rgb),
        "RGBA.png": (half, half_gray, over_white),
        "RGBA.tif": (half, half_gray, over_white),
        "RGBA.webp": (Image.new("RGBA", (9, 7), (*rgb, 0)), 255, (255,) * 3),
        "P.png": (palette, red_gray, rgb),
        "P-clear.png": (clear, 255, (255,) * 3),
        "P.gif": (palette, red_gray, rgb),
        "CMYK.tif": (cmyk, red_gray, rgb),
        "CMYK.jpg": (cmyk, red_gray, rgb),
        "RGB.jpg": (Image.new("RGB", (9, 7), rgb), red_gray, rgb),
        "RGB.jp2": (Image.new("RGB", (9, 7), rgb), red_gray, rgb),
        "RGB.webp": (Image.new("RGB", (9, 7), rgb), red_gray, rgb),
        "RGB.bmp": (Image.new("RGB", (9, 7), rgb), red_gray, rgb),
        "RGB.tga": (Image.new("RGB", (9, 7), rgb), red_gray, rgb),
        "RGB.ppm": (Image.new("RGB", (9, 7), rgb), red_gray, rgb),
    }


@pytest.mark.parametrize("name", modes())
def test_every_mode_is_decoded_to_gray_and_rgb(tmp_path, name):
    image, gray, rgb = modes()[name]
    image.save(tmp_path / name)
    as_gray, as_rgb = (read_image(tmp_path / name, 8, channels) for channels in (1, 3))
    assert as_gray.shape == (8, 8, 1) and as_rgb.shape == (8, 8, 3)
    assert as_gray.dtype == as_rgb.dtype == np.uint8
    np.testing.assert_allclose(as_gray, np.full((8, 8, 1), gray), atol=1.6)
    np.testing.assert_allclose(as_rgb, np.broadcast_to(rgb, (8, 8, 3)), atol=2.1)
    content = read_encoded(tmp_path / name)
    np.testing.assert_array_equal(read_image(io.BytesIO(content), 8, 3), as_rgb)
    assert image_size(tmp_path / name) == image_size(io.BytesIO(content)) == (9, 7)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, suffix):
    pixels = np.zeros((24, 32), np.uint8)
    pixels[:, 16:] = 200  # bright on the right; orientation 6 rotates that to the bottom
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / f"rotated.{suffix}", exif=exif)
    image = read_image(tmp_path / f"rotated.{suffix}", 16, 1)[..., 0]
    assert image[:6].max() < 30 and image[10:].min() > 170
    assert image_size(tmp_path / f"rotated.{suffix}") == (24, 32)


def test_first_image_of_mpo_is_read(tmp_path):
    """MPO is a JPEG followed by previews, which many cameras write as .jpg."""
    first, second = (Image.new("L", (16, 16), value) for value in (90, 200))
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second])
    assert np.ptp(read_image(tmp_path / "phone.jpg", 8, 1).astype(int) - 90) <= 2


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert np.ptp(read_image(tmp_path / "stripes.png", 16, 1)[:, 2:-2]) < 12


def test_reduced_decoding_of_large_jpeg_equals_png(tmp_path):
    """EXIF orientation is applied as well."""
    y, x = np.mgrid[:600, :800]
    waves = 127 + 60 * np.sin(x / 40) + 60 * np.cos((x + 2 * y) / 70)
    image = Image.fromarray(waves.round().astype(np.uint8))
    image.save(tmp_path / "large.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.rotate(180).save(tmp_path / "large.jpg", quality=95, exif=exif)
    png, jpeg = (read_image(tmp_path / f"large.{s}", 32, 1).astype(int) for s in ("png", "jpg"))
    assert np.abs(png - jpeg).max() <= 3


JPEG_2000 = {
    "lossless.jp2": {},
    "lossy.jp2": dict(irreversible=True, quality_mode="rates", quality_layers=[8]),
    "tiled.jp2": dict(tile_size=(128, 128)),
    "codestream.j2k": dict(no_jp2=True),
    "two levels.jp2": dict(num_resolutions=3),
    "not reducible.jp2": dict(num_resolutions=1),
}


@pytest.mark.parametrize("name", JPEG_2000)
@pytest.mark.parametrize("shape", [(600, 800), (517, 803), (601, 515)])
def test_reduced_decoding_of_large_jpeg_2000_equals_png(name, shape):
    """The codec rounds the sides of the reduced image up. Where that is exact, the last samples are not at the edge."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    waves = [127 + 60 * np.sin((x + c * 20) / 40) + 60 * np.cos((x + 2 * y) / 70) for c in range(3)]
    image = Image.fromarray(np.stack(waves, -1).round().astype(np.uint8))
    content = saved(image, "JPEG2000", **JPEG_2000[name])
    for channels in 1, 3:
        png = read_image(io.BytesIO(saved(image, "PNG")), 32, channels).astype(int)
        difference = np.abs(png - read_image(io.BytesIO(content), 32, channels)).max()
        assert difference <= (6 if shape == (600, 800) else 3)


def test_jpeg_2000_is_decoded_at_the_smallest_size_of_four_times_the_model_s(monkeypatch):
    sizes = []
    monkeypatch.setattr(images, "PixelValues", lambda image, **o: sizes.append(image.size) or PixelValues(image, **o))
    content = saved(Image.new("L", (803, 517)), "JPEG2000")
    for size, expected in (8, (51, 33)), (32, (201, 130)), (33, (402, 259)), (65, (803, 517)):
        read_image(io.BytesIO(content), size, 1)
        assert sizes.pop() == expected
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 20 * 804 * 518)
    assert read_full_size(io.BytesIO(content)).size == (803, 517)
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 20 * 800 * 500)
    assert read_full_size(io.BytesIO(content)).size == (402, 259)
