"""Strips of images, and the memory that all decoders need together."""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from bigan_jax.data.files import images, pixel_values
from bigan_jax.data.files.images import full_size_bytes, read_full_size, read_image, read_mask
from bigan_jax.data.files.memory_budget import MemoryBudget
from bigan_jax.data.files.pixel_values import PixelValues
from bigan_jax.errors import UserError
from bigan_jax.reports import overlays
from tests.helpers.encoded_images import ppm16, saved, tiff16, with_double, with_tag


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "JPEG2000"])
def test_images_whose_decoder_needs_much_memory_have_a_lower_limit(monkeypatch, kind):
    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 12 * 60 * 80)
    content = saved(Image.new("RGB", (80, 60)), kind, **({"num_resolutions": 1} if kind == "JPEG2000" else {}))
    name = {"WEBP": "WebP", "JPEG2000": "JPEG 2000"}.get(kind, kind)
    for read in (lambda s: read_image(s, 32, 1)), read_full_size, (lambda s: read_mask(s, 32)):
        with pytest.raises(UserError, match=f"80x60 is too large for {name}.* save it as PNG or JPEG, or scale it"):
            read(io.BytesIO(content))
    read_image(io.BytesIO(saved(Image.new("RGB", (80, 60)), "PNG")), 32, 1)


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


@pytest.mark.parametrize("sides", [(np.nan, 16), (16, np.nan), (np.inf, 16), (-16, -16)])
def test_tiles_without_a_valid_size_are_refused_before_their_memory_is_held(sides):
    content = saved(Image.new("L", (16, 16)), "TIFF", compression="tiff_deflate")
    for side, tag, new_tag in zip(sides, (278, 284), (322, 323), strict=True):
        content = with_double(content, tag, side, new_tag)
    with pytest.raises(UserError, match="size of its tiles is invalid"):
        full_size_bytes(io.BytesIO(content))


@pytest.mark.parametrize("rows", [0.0, -5.0, np.nan, 1.5])
def test_rows_per_strip_that_are_invalid_count_as_all(rows):
    content = saved(Image.new("L", (16, 16)), "TIFF", compression="tiff_deflate")
    needed = full_size_bytes(io.BytesIO(content))
    invalid = with_tag(content, 278, 0) if rows == 0 else with_double(content, 278, rows)
    assert full_size_bytes(io.BytesIO(invalid)) == needed


def test_narrow_image_does_not_fill_the_memory():
    content = saved(Image.new("L", (4, 2_000_000)), "PNG")
    with pytest.raises(UserError, match="4x2000000 is too long and narrow"):
        read_image(io.BytesIO(content), 64, 1)


DECODED = """
import io, re, sys
from pathlib import Path
from PIL import Image

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

Image.open(sys.argv[2]).load()  # a tiny one: the codec is in memory
before = peak()
Image.open(sys.argv[1]).load()
print(peak() - before)
"""
DECODERS = {
    "WEBP": ("RGB", {"lossless": True, "quality": 0, "method": 0}),
    "AVIF": ("RGBA", {"speed": 10, "subsampling": "4:4:4"}),
    "JPEG": ("RGB", {"progressive": True, "subsampling": 0}),
    "TIFF": ("RGB", {"compression": "tiff_adobe_deflate", "strip_size": 2**30}),
    "JPEG2000": ("RGB", {"num_resolutions": 1}),
    "PNG": ("RGB", {"compress_level": 1}),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_need_at_most_what_is_held_for_them(tmp_path, kind):
    mode, options = DECODERS[kind]
    noise = np.random.default_rng(0).integers(0, 32, (2000, 2000, len(mode)), np.uint8)
    for name, pixels in ("large", noise), ("tiny", noise[:64, :64]):
        Image.fromarray(pixels).save(tmp_path / name, kind, **options)
    n_bytes = int(subprocess.check_output([sys.executable, "-c", DECODED, tmp_path / "large", tmp_path / "tiny"]))
    n_pixels, held = full_size_bytes(tmp_path / "large")
    assert n_pixels == 2000**2 and 0.5 * held < n_bytes + 4 * n_pixels < held + 2 * n_pixels
