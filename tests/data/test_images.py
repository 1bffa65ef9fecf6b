"""Decoding of image files, and the reasons reported for unreadable ones."""

import io
import os
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from bigan_jax.data import loading
from bigan_jax.data.files import images, pixel_values, unreadable
from bigan_jax.data.files.fit import FITS
from bigan_jax.data.files.folders import LINKED_FOLDER, open_folder, resolve_path, unread_files, walk
from bigan_jax.data.files.images import (
    full_size_bytes,
    image_size,
    read_encoded,
    read_files,
    read_full_size,
    read_image,
    read_mask,
)
from bigan_jax.data.files.memory_budget import MemoryBudget
from bigan_jax.data.files.pixel_values import PixelValues
from bigan_jax.data.files.unreadable import split_unreadable
from bigan_jax.data.settings import DataSettings
from bigan_jax.errors import UserError
from bigan_jax.reports import overlays
from tests.helpers.datasets import decoded

# --- modes ---


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


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000"])
def test_images_whose_decoder_needs_much_memory_have_a_lower_limit(monkeypatch, kind):
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 12 * 60 * 80)
    content = saved(Image.new("RGB", (80, 60)), kind, **({"num_resolutions": 1} if kind == "JPEG2000" else {}))
    name = {"WEBP": "WebP", "JPEG2000": "JPEG 2000"}.get(kind, kind)
    for read in (lambda s: read_image(s, 32, 1)), read_full_size, (lambda s: read_mask(s, 32)):
        with pytest.raises(UserError, match=f"80x60 is too large for {name}.* save it as PNG or JPEG, or scale it"):
            read(io.BytesIO(content))
    read_image(io.BytesIO(saved(Image.new("RGB", (80, 60)), "PNG")), 32, 1)


def png_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


# --- percentile stretch ---


def tiff(values):
    Image.fromarray(values).save(content := io.BytesIO(), "TIFF")
    return content


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


def png16(values):
    """A 16-bit color PNG, which Pillow reads and does not write."""
    height, width, channels = values.shape
    color_type = {3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def tiff16(values, byte_order="<", photometric=2, compress=False, bits=16):
    """A TIFF of one strip, of integers or floats, in any byte order."""
    height, width, samples = (*values.shape, 1)[:3]
    data = values.astype(values.dtype.newbyteorder(byte_order)).tobytes()
    data = zlib.compress(data) if compress else data
    start = 8 + len(data) + len(data) % 2
    sample_format = 3 if values.dtype.kind == "f" else 1
    fields = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 8 if compress else 1), (262, 3, photometric)]
    fields += [(273, 4, 8), (277, 3, samples), (278, 4, height), (279, 4, len(data))]
    fields += [(338, 3, 2)] * (samples == 4) + [(339, 3, sample_format)]
    kinds = {3: "HH", 4: "I"}
    bits_at = start + 2 + 12 * len(fields) + 4
    table = struct.pack(f"{byte_order}H", len(fields))
    for tag, kind, value in fields:
        count = samples if tag in (258, 339) and samples > 1 else 1
        table += struct.pack(f"{byte_order}HHI", tag, kind, count)
        if count > 1:
            table += struct.pack(f"{byte_order}I", bits_at + 8 * (tag == 339))
        else:
            table += struct.pack(f"{byte_order}{kinds[kind]}", *[value, 0][: len(kinds[kind])])
    table += (
        bytes(4) + struct.pack(f"{byte_order}4H", *[bits] * 4) + struct.pack(f"{byte_order}4H", *[sample_format] * 4)
    )
    mark = b"II*\0" if byte_order == "<" else b"MM\0*"
    return mark + struct.pack(f"{byte_order}I", start) + data.ljust(start - 8, b"\0") + table


def ppm16(values, top):
    return b"P6\n%d %d\n%d\n" % (values.shape[1], values.shape[0], top) + values.astype(">u2").tobytes()


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


def with_tag(content, tag, value):
    """A little-endian TIFF of Pillow with another value of a tag."""
    content = bytearray(content)
    (start,) = struct.unpack_from("<I", content, 4)
    (n,) = struct.unpack_from("<H", content, start)
    at = next(a for a in range(start + 2, start + 2 + 12 * n, 12) if struct.unpack_from("<H", content, a)[0] == tag)
    struct.pack_into("<H", content, at + 8, value)
    return bytes(content)


def test_packed_twelve_bits_fill_the_range():
    values = np.random.default_rng(0).integers(0, 4096, (20, 16)).astype(np.uint16)
    first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
    content = tiff16(packed.reshape(20, 24), "<", 1, bits=12)
    content = with_tag(content, 256, 16)
    np.testing.assert_allclose(read_full_size(io.BytesIO(content)), values / 4095 * 255, atol=0.51)


# --- strips, and the memory of many images ---


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_do_not_change_an_image(monkeypatch, mode, channels):
    noise = np.random.default_rng(0).integers(0, 256, (61, 47, 4), np.uint8)
    image = Image.fromarray(noise)
    if mode in ("I;16", "I", "F"):
        deep = noise[..., 0].astype(np.uint16) * 256 + noise[..., 1]
        image = Image.fromarray(
            deep if mode == "I;16" else deep.astype(np.int32 if mode == "I" else np.float32) / 65535
        )
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    content = saved(image, "TIFF")

    def read():
        images = (read_image(io.BytesIO(content), s, channels, window) for s in (16, 60) for window in (False, True))
        return np.concatenate([image.ravel() for image in images])

    whole = read()
    full = [np.asarray(read_full_size(io.BytesIO(content), window)) for window in (False, True)]
    monkeypatch.setattr(pixel_values, "STRIP_PIXELS", 47 * 7)
    strips = [read_image(io.BytesIO(content), size, channels, window) for size in (16, 60) for window in (False, True)]
    np.testing.assert_array_equal(
        np.concatenate([x.ravel() for x in whole]), np.concatenate([x.ravel() for x in strips])
    )
    for window, expected in enumerate(full):
        np.testing.assert_array_equal(read_full_size(io.BytesIO(content), bool(window)), expected)
    if mode in ("L", "RGB"):
        resized = image.convert("L" if channels == 1 else "RGB").resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(whole[: 256 * channels], np.asarray(resized).ravel())


@settings(deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32]),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
    )
)
def test_counted_percentiles_equal_sorted_ones(values):
    values = pixel_values.countable(values)
    assume(np.isfinite(values).all())
    result = pixel_values.percentiles(lambda: iter([values[: len(values) // 2], values[len(values) // 2 :]]))
    np.testing.assert_allclose(result, np.percentile(values.astype(float), (1, 99)), rtol=1e-9, atol=1e-30)


def test_threads_share_a_budget_of_bytes():
    budget, running, seen = MemoryBudget(10), [], []

    def work(n):
        with budget.hold(n), budget.hold(n):  # a thread waits once
            running.append(n)
            seen.append(list(running))
            time.sleep(0.002)
            running.remove(n)
        return n

    sizes = [3, 4, 5, 12, 1, 9, 2, 2, 2, 30] * 3
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, sizes)) == sizes
    assert all(sum(held) <= 10 or len(held) == 1 for held in seen) and max(map(len, seen)) > 1


DEEP = np.zeros((10, 20, 3), np.uint16)
COSTS = {  # of an image of 20x10 at its own size: bytes a pixel of the decoder, and 4 of the result
    "gray PNG": (lambda image: saved(image.convert("L"), "PNG"), 1),
    "PNG": (lambda image: saved(image, "PNG"), 4),
    "windowed PNG": (lambda image: saved(image, "PNG"), 4 + 4),
    "WEBP": (lambda image: saved(image, "WEBP"), 18),
    "AVIF": (lambda image: saved(image, "AVIF"), 17),
    "JPEG2000": (lambda image: saved(image, "JPEG2000"), 20),
    "4:4:4 JPEG": (lambda image: saved(image, "JPEG", subsampling=0), 6 + 4),
    "4:2:0 JPEG": (lambda image: saved(image, "JPEG", subsampling=2), 3 + 4),
    "CMYK JPEG": (lambda image: saved(image.convert("CMYK"), "JPEG"), 8 + 4),
    "TIFF": (lambda image: saved(image, "TIFF"), 4),
    "deflated TIFF": (lambda image: saved(image, "TIFF", compression="tiff_adobe_deflate"), 4 + 4),
    "deflated deep TIFF": (lambda image: tiff16(DEEP, compress=True), 4 + 6),
    "deep PPM": (lambda image: ppm16(DEEP, 4095), 4 + 9),
}


@pytest.mark.parametrize("kind", COSTS)
def test_memory_that_a_decoder_needs_is_known_from_the_header(kind):
    write, expected = COSTS[kind]
    content = io.BytesIO(write(Image.new("RGB", (20, 10))))
    assert full_size_bytes(content, window="windowed" in kind) == (200, 200 * (expected + 4))


def test_no_format_exceeds_the_memory_for_all_threads():
    """The largest image of each format, with its result, and an overlay."""
    largest = images.MAX_DECODING_BYTES + 4 * images.MAX_PIXELS
    assert largest <= 1.65 * 2**30 and overlays.OVERLAY_BYTES * images.MAX_PIXELS <= 1.5 * 2**30


def test_reduced_decoding_holds_what_it_needs_at_any_size(monkeypatch):
    """All coefficients of a JPEG may be in memory, and the compressed blocks of JPEG 2000."""
    held = []
    budget = MemoryBudget(10**6)
    monkeypatch.setattr(images, "memory_budget", budget)
    monkeypatch.setattr(PixelValues, "__init__", lambda self, image, **_: held.append(budget._total) or 1 / 0)
    image = Image.new("RGB", (320, 160))
    for kind, options in ("JPEG", {"subsampling": 0}), ("JPEG", {"progressive": True}), ("JPEG2000", {}):
        with pytest.raises(ZeroDivisionError):
            read_image(io.BytesIO(saved(image, kind, **options)), 4, 1)
    n = 320 * 160
    assert held == [6 * n + 4 * 40 * 20 + 4 * 20, 3 * n + 4 * 40 * 20 + 4 * 20, 4 * n + 16 * 40 * 20 + 4 * 20]


def test_narrow_image_does_not_fill_the_memory():
    content = saved(Image.new("L", (4, 2_000_000)), "PNG")
    with pytest.raises(UserError, match="4x2000000 is too long and narrow"):
        read_image(io.BytesIO(content), 64, 1)


# --- fit ---


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


# --- masks ---


def test_mask_is_majority_of_cell_and_never_vanishes(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[0:3, 0:4] = 1  # three quarters of a cell of 4 x 4, and any value counts
    mask[8:9, 8:12] = 255  # a quarter of one
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert np.argwhere(read_mask(tmp_path / "mask.png", 8)).tolist() == [[0, 0]]
    mask[0:3, 0:4] = 0
    Image.fromarray(mask).save(tmp_path / "small.png")
    assert np.argwhere(read_mask(tmp_path / "small.png", 8)).tolist() == [[2, 2]]
    Image.new("RGBA", (32, 32), (0, 0, 0, 255)).save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png", 8).any()


def test_mask_may_be_scaled_but_not_cropped_or_rotated(tmp_path):
    Image.new("L", (33, 22), 255).save(tmp_path / "mask.png")
    for size in (33, 22), (66, 44), (100, 67), (16, 11):
        assert read_mask(tmp_path / "mask.png", 8, size).all()
    for size in (22, 33), (33, 24), (32, 32), (300, 190):
        with pytest.raises(UserError, match=f"33x22 for an image of {size[0]}x{size[1]}"):
            read_mask(tmp_path / "mask.png", 8, size)


# --- unreadable files ---


def png_header(width, height):
    """A PNG whose header claims a size, with hardly a pixel."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(99)))


def saved(image, image_format, **options):
    image.save(content := io.BytesIO(), image_format, **options)
    return content.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
FRAMES = dict(save_all=True, append_images=[NOISE.rotate(90)])
REFUSED = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"not an image", "not an image"),
    "cut.png": (saved(NOISE, "PNG")[:2000], "truncated"),
    "cut.jpg": (saved(NOISE, "JPEG")[:1500], "truncated"),
    "cut.tif": (saved(NOISE, "TIFF")[:1500], ""),
    "cut.webp": (saved(NOISE, "WEBP")[:1000], ""),
    "header.jpg": (saved(NOISE, "JPEG")[:15], "Truncated"),
    "moving.gif": (saved(NOISE, "GIF", **FRAMES), "several images"),
    "moving.png": (saved(NOISE, "PNG", **FRAMES), "several images"),
    "moving.webp": (saved(NOISE, "WEBP", **FRAMES), "several images"),
    "pages.tif": (saved(NOISE, "TIFF", **FRAMES), "several images"),
    "dot.png": (saved(Image.new("L", (1, 1)), "PNG"), "1x1 is too small"),
    "line.png": (saved(Image.new("L", (100, 1)), "PNG"), "100x1 is too small"),
    "large.png": (png_header(12_000, 10_000), "12000x10000 is more than 100 megapixels"),
    "larger.png": (png_header(30_000, 30_000), "more than 100 megapixels"),
    "nan.tif": (saved(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), "NaN"),
    "scale.tif": (saved(Image.fromarray(np.full((8, 8), 30, np.float32)), "TIFF"), "a float"),
    "wide.tif": (saved(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "0 to 65535"),
    # PostScript is a program, which Pillow would have Ghostscript run.
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "not an image"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_all_unreadable_files_are_listed_with_reasons(tmp_path):
    for name, (content, _) in REFUSED.items():
        (tmp_path / name).write_bytes(content)
    NOISE.save(tmp_path / "fine.png")
    NOISE.save(tmp_path / "fine.jpg", "PNG")  # a wrong suffix is accepted
    results = read_files(lambda x, _: read_image(x, 8, 1), tmp_path, walk(tmp_path).images, "images")
    images, unreadable_files = split_unreadable(results)
    reasons = dict(unreadable_files)
    assert reasons.keys() == REFUSED.keys()
    for name, (_, expected) in REFUSED.items():
        assert expected in reasons[name] and str(tmp_path) not in reasons[name], name
    assert sum(image is not None for image in images) == 2
    with pytest.raises(UserError, match=f"{len(REFUSED)} of {len(results)} images") as error:
        decoded(tmp_path, walk(tmp_path).images, 8)
    assert all(f"  {name}: {reason}" in str(error.value) for name, reason in reasons.items())


def test_many_unreadable_files_are_all_named(tmp_path):
    names = [f"missing{i}.png" for i in range(45)]
    with pytest.raises(UserError, match="and 25 more") as error:
        decoded(tmp_path, names, 16)
    assert all(name in str(error.value) for name in names)
    assert "skip_unreadable=true" in str(error.value) and "no such file" in str(error.value)


def test_huge_image_is_rejected_by_its_header(tmp_path):
    Image.new("1", (20_000, 5_001)).save(tmp_path / "huge.png")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(UserError, match=r"huge\.png: 20000x5001 is more than 100 megapixels"),
    ):
        decoded(tmp_path, ["huge.png"], 16)


def test_file_without_permission_is_named(tmp_path):
    def denied():
        raise PermissionError(13, "Permission denied", str(tmp_path))

    assert unreadable.try_read("a.png", denied) == ("a.png", "no permission to read it")
    NOISE.save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    if os.access(tmp_path / "a.png", os.R_OK):
        pytest.skip("this user can read every file")
    with pytest.raises(UserError, match=r"a\.png: no permission"):
        decoded(tmp_path, walk(tmp_path).images, 8)


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    root, other = tmp_path / "data", tmp_path / "other"
    for folder in root / "sub", other:
        folder.mkdir(parents=True)
        NOISE.save(folder / "a.png")
    (root / "inside.png").symlink_to("sub/a.png")
    (root / "outside.png").symlink_to(other / "a.png")
    (root / "nowhere.png").symlink_to("gone.png")
    (root / "itself.png").symlink_to("itself.png")
    (root / "around").symlink_to(root)
    (root / "elsewhere").symlink_to(other)
    os.mkfifo(root / "pipe.png")
    names = walk(root).images
    assert "around/sub/a.png" not in names and "elsewhere/a.png" not in names
    folder = open_folder(resolve_path(root))
    assert folder.unread == ("around/",)
    assert unread_files(folder) == [("around", LINKED_FOLDER)]
    names += ["../other/a.png", "elsewhere/a.png"]
    results = read_files(lambda x, _: read_image(x, 8, 1), root, names, "images")
    assert dict(split_unreadable(results)[1]) == {
        "outside.png": (
            out := "a link or path out of the data folder: put the file itself there, as cp -rL does for folders"
        ),
        "elsewhere": out,
        "../other/a.png": out,
        "elsewhere/a.png": out,
        "nowhere.png": "a broken link",
        "itself.png": "a broken link",
        "pipe.png": "not a file",
    }
    # The folder itself may be a link.
    (tmp_path / "link").symlink_to(root)
    assert len(decoded(tmp_path / "link", ["sub/a.png", "inside.png"], 8)) == 2


def test_name_that_is_not_utf8_is_reported_in_utf8(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(saved(NOISE, "PNG"))
    except OSError:
        pytest.skip("this file system requires UTF-8 names")
    with pytest.raises(UserError, match="is not UTF-8: rename it") as error:
        decoded(tmp_path, walk(tmp_path).images, 8)
    assert r"caf\udce9.png" in str(error.value).encode().decode()


def test_listing_is_sorted_and_skips_loops_and_hidden_files(tmp_path):
    for name in ("b/2.PNG", "a.jpg", "b/1.tif", ".hidden.png", ".git/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert walk(tmp_path).images == ["a.jpg", "b/1.tif", "b/2.PNG"]


# --- datasets ---


def load(folder, **changes):
    options = dict(dir=folder, category="", image_size=16, channels=1, split_seed=0)
    return loading.load_dataset(DataSettings("folder", **options | changes))


@pytest.fixture
def folder_with_corrupt_files(tmp_path):
    for name, n in ("normal", 30), ("anomalous", 5), ("masks", 5):
        (tmp_path / name).mkdir()
        for i in range(n):
            NOISE.rotate(i).save(tmp_path / name / f"{i:02d}.png")
    for name in "normal/03", "normal/11", "normal/24", "anomalous/02", "masks/04":
        (tmp_path / f"{name}.png").write_bytes(b"corrupt")
    Image.new("L", (64, 32), 255).save(tmp_path / "masks" / "01.png")
    NOISE.save(tmp_path / "masks" / "99.png")  # of no image
    return tmp_path


UNREADABLE = ["anomalous/02", "masks/01", "masks/04", "normal/03", "normal/11", "normal/24"]


def test_unreadable_files_of_all_splits_are_in_one_error(folder_with_corrupt_files):
    with pytest.raises(UserError, match="6 of") as error:
        load(folder_with_corrupt_files)
    assert all(f"  {name}.png: " in str(error.value) for name in UNREADABLE)
    assert "a mask of 64x32 for an image of 64x64" in str(error.value)


def test_unreadable_files_are_skipped_and_counted_on_request(folder_with_corrupt_files):
    loaded = load(folder_with_corrupt_files, skip_unreadable=True)
    (note,) = [note for note in loaded.notes if note.startswith("6 unreadable files skipped")]
    assert all(f"{name}.png" in note for name in UNREADABLE)
    assert "1 masks belong to no anomalous image, such as masks/99.png" in loaded.notes
    paths = [path for split in loaded[:3] for path in split.path]
    assert len(paths) == 27 + 4 and not {f"{n}.png" for n in UNREADABLE} & {*paths}
    for name in UNREADABLE:
        (folder_with_corrupt_files / f"{name}.png").unlink()
    # The split of the other files does not depend on the unreadable ones.
    fixed = load(folder_with_corrupt_files)
    assert [list(p.path) for p in fixed[:3]] == [list(p.path) for p in loaded[:3]]
    has_mask = dict(zip(loaded.test.path, loaded.test.has_mask, strict=True))
    assert not has_mask["anomalous/01.png"] and has_mask["anomalous/03.png"]


def test_control_characters_in_names_are_escaped(tmp_path):
    (tmp_path / "a\x1b[2Jb.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"a\\x1b\[2Jb\.png") as error:
        decoded(tmp_path, ["a\x1b[2Jb.png"], 16)
    assert "\x1b" not in str(error.value)
