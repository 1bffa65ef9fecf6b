"""Decoding of image files, and the reasons reported for unreadable ones."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from bigan_jax.data import loading
from bigan_jax.data.files import unreadable
from bigan_jax.data.files.folders import walk
from bigan_jax.data.files.images import image_size, read_encoded, read_files, read_full_size, read_image, read_mask
from bigan_jax.data.files.unreadable import split_unreadable
from bigan_jax.data.settings import DataSettings
from bigan_jax.errors import UserError
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


# --- percentile stretch ---


def tiff(values):
    Image.fromarray(values).save(content := io.BytesIO(), "TIFF")
    return content


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

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99)))


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
