"""Any picture a user may have, and what is said of one that cannot be read."""

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
from bigan_jax.data.files.images import (
    encoded,
    image_size,
    list_images,
    read_all,
    read_as_shown,
    read_image,
    read_mask,
)
from bigan_jax.data.settings import DataSettings
from bigan_jax.errors import UserError
from tests.helpers.datasets import decoded

# --- modes ---


def modes():
    """Pictures of one color in every mode, with the gray and RGB they should give."""
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
def test_every_mode_gives_its_gray_and_its_color(tmp_path, name):
    picture, gray, rgb = modes()[name]
    picture.save(tmp_path / name)
    one, three = (read_image(tmp_path / name, 8, channels) for channels in (1, 3))
    assert one.shape == (8, 8, 1) and three.shape == (8, 8, 3)
    assert one.dtype == three.dtype == np.uint8
    np.testing.assert_allclose(one, np.full((8, 8, 1), gray), atol=1.6)
    np.testing.assert_allclose(three, np.broadcast_to(rgb, (8, 8, 3)), atol=2.1)
    content = encoded(tmp_path / name)
    np.testing.assert_array_equal(read_image(io.BytesIO(content), 8, 3), three)
    assert image_size(tmp_path / name) == image_size(io.BytesIO(content)) == (9, 7)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, suffix):
    pixels = np.zeros((24, 32), np.uint8)
    pixels[:, 16:] = 200  # bright on the right; orientation 6 turns that downwards
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / f"turned.{suffix}", exif=exif)
    image = read_image(tmp_path / f"turned.{suffix}", 16, 1)[..., 0]
    assert image[:6].max() < 30 and image[10:].min() > 170
    assert image_size(tmp_path / f"turned.{suffix}") == (24, 32)


def test_a_phone_s_picture_of_several_is_its_first(tmp_path):
    """MPO: a JPEG with previews behind it, which many cameras write as .jpg."""
    first, second = (Image.new("L", (16, 16), value) for value in (90, 200))
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second])
    assert np.ptp(read_image(tmp_path / "phone.jpg", 8, 1).astype(int) - 90) <= 2


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert np.ptp(read_image(tmp_path / "stripes.png", 16, 1)[:, 2:-2]) < 12


def test_a_large_jpeg_is_what_its_png_is(tmp_path):
    """Decoded to a fraction of its size: as good as whole, and turned by EXIF all the same."""
    y, x = np.mgrid[:600, :800]
    waves = 127 + 60 * np.sin(x / 40) + 60 * np.cos((x + 2 * y) / 70)
    picture = Image.fromarray(waves.round().astype(np.uint8))
    picture.save(tmp_path / "large.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.rotate(180).save(tmp_path / "large.jpg", quality=95, exif=exif)
    png, jpeg = (read_image(tmp_path / f"large.{s}", 32, 1).astype(int) for s in ("png", "jpg"))
    assert np.abs(png - jpeg).max() <= 3


# --- windows ---


def tiff(values):
    Image.fromarray(values).save(content := io.BytesIO(), "TIFF")
    return content


@given(
    hnp.arrays(np.uint8, (9, 12), elements=st.integers(0, 100)),
    st.integers(1, 400),
    st.integers(0, 25_000),
)
def test_a_window_forgets_scale_and_offset(picture, scale, offset):
    low, high = np.percentile(picture.astype(float), (1, 99))
    assume(high > low)
    expected = (255 * (picture - low) / (high - low)).clip(0, 255)
    deep = picture.astype(np.uint16) * scale + offset
    for values in picture, deep, deep.astype(np.int32), deep.astype(np.float32) - 7e4:
        shown = np.asarray(read_as_shown(tiff(values), window=True))
        assert shown.dtype == np.uint8 and abs(shown - expected).max() <= 0.51


def test_a_window_is_one_for_all_channels(tmp_path):
    ramp = np.linspace(50, 90, 100).round().astype(np.uint8).reshape(10, 10)
    color = np.stack([ramp, np.full_like(ramp, 50), np.full_like(ramp, 70)], -1)
    Image.fromarray(color).save(tmp_path / "a.png")
    shown = read_image(tmp_path / "a.png", 10, 3, window=True).astype(float)
    low, high = np.percentile(color, (1, 99))
    np.testing.assert_allclose(shown, (255 * (color - low) / (high - low)).clip(0, 255), atol=0.51)


def test_a_window_needs_numbers():
    with pytest.raises(UserError, match="not numbers"):
        read_image(tiff(np.full((8, 8), np.nan, np.float32)), 8, 1, window=True)


# --- masks ---


def test_a_mask_is_the_majority_of_a_cell_and_never_vanishes(tmp_path):
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


def test_a_mask_may_be_scaled_but_not_cropped_or_turned(tmp_path):
    Image.new("L", (33, 22), 255).save(tmp_path / "mask.png")
    for like in (33, 22), (66, 44), (100, 67), (16, 11):
        assert read_mask(tmp_path / "mask.png", 8, like).all()
    for unlike in (22, 33), (33, 24), (32, 32), (300, 190):
        with pytest.raises(UserError, match=f"33x22 for a picture of {unlike[0]}x{unlike[1]}"):
            read_mask(tmp_path / "mask.png", 8, unlike)


# --- what is refused ---


def png_header(width, height):
    """A PNG that promises a size and has hardly a pixel."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99)))


def saved(picture, kind, **options):
    picture.save(content := io.BytesIO(), kind, **options)
    return content.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
FRAMES = dict(save_all=True, append_images=[NOISE.rotate(90)])
REFUSED = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"not a picture", "not a picture"),
    "cut.png": (saved(NOISE, "PNG")[:2000], "truncated"),
    "cut.jpg": (saved(NOISE, "JPEG")[:1500], "truncated"),
    "cut.tif": (saved(NOISE, "TIFF")[:1500], ""),
    "cut.webp": (saved(NOISE, "WEBP")[:1000], ""),
    "header.jpg": (saved(NOISE, "JPEG")[:15], "Truncated"),
    "moving.gif": (saved(NOISE, "GIF", **FRAMES), "several pictures"),
    "moving.png": (saved(NOISE, "PNG", **FRAMES), "several pictures"),
    "moving.webp": (saved(NOISE, "WEBP", **FRAMES), "several pictures"),
    "pages.tif": (saved(NOISE, "TIFF", **FRAMES), "several pictures"),
    "dot.png": (saved(Image.new("L", (1, 1)), "PNG"), "1x1 is too small"),
    "line.png": (saved(Image.new("L", (100, 1)), "PNG"), "100x1 is too small"),
    "large.png": (png_header(12_000, 10_000), "12000x10000 is more than 100 megapixels"),
    "bomb.png": (png_header(30_000, 30_000), "more than 100 megapixels"),
    "nan.tif": (saved(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), "NaN"),
    "scale.tif": (saved(Image.fromarray(np.full((8, 8), 30, np.float32)), "TIFF"), "a float"),
    "wide.tif": (saved(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "0 to 65535"),
    # PostScript is a program, which Pillow would have Ghostscript run.
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "not a pict"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_everything_refused_is_named_with_its_reason(tmp_path):
    for name, (content, _) in REFUSED.items():
        (tmp_path / name).write_bytes(content)
    NOISE.save(tmp_path / "fine.png")
    NOISE.save(tmp_path / "fine.jpg", "PNG")  # a wrong suffix does no harm
    results, found = read_all(
        lambda x, _: read_image(x, 8, 1), tmp_path, list_images(tmp_path), "pictures"
    )
    reasons = dict(found)
    assert reasons.keys() == REFUSED.keys()
    for name, (_, expected) in REFUSED.items():
        assert expected in reasons[name] and str(tmp_path) not in reasons[name], name
    assert sum(result is not None for result in results) == 2
    with pytest.raises(UserError, match=f"{len(REFUSED)} of {len(results)} pictures") as error:
        decoded(tmp_path, list_images(tmp_path), 8)
    assert all(f"  {name}: {reason}" in str(error.value) for name, reason in reasons.items())


def test_every_broken_file_is_named_however_many_there_are(tmp_path):
    many = [f"missing{i}.png" for i in range(45)]
    with pytest.raises(UserError, match="and 25 more") as error:
        decoded(tmp_path, many, 16)
    assert all(name in str(error.value) for name in many)
    assert "skip_unreadable=true" in str(error.value) and "no such file" in str(error.value)


def test_a_huge_picture_is_refused_by_its_header(tmp_path):
    Image.new("1", (20_000, 5_001)).save(tmp_path / "huge.png")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(UserError, match=r"huge\.png: 20000x5001 is more than 100 megapixels"),
    ):
        decoded(tmp_path, ["huge.png"], 16)


def test_a_file_without_permission_is_named(tmp_path):
    def denied():
        raise PermissionError(13, "Permission denied", str(tmp_path))

    assert unreadable.try_read("a.png", denied) == ("a.png", "no permission to read it")
    NOISE.save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    if os.access(tmp_path / "a.png", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match=r"a\.png: no permission"):
        decoded(tmp_path, list_images(tmp_path), 8)


def test_links_stay_inside_the_folder(tmp_path):
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
    names = list_images(root)
    assert "around/sub/a.png" not in names and "elsewhere/a.png" not in names
    names += ["../other/a.png", "elsewhere/a.png"]
    _, found = read_all(lambda x, _: read_image(x, 8, 1), root, names, "pictures")
    assert dict(found) == {
        "outside.png": (
            out := "leads out of the data folder: put the file itself there, not a link"
        ),
        "elsewhere": out,
        "../other/a.png": out,
        "elsewhere/a.png": out,
        "nowhere.png": "a link that leads nowhere",
        "itself.png": "a link that leads nowhere",
        "pipe.png": "not a file",
    }
    # The folder itself may be a link.
    (tmp_path / "link").symlink_to(root)
    assert len(decoded(tmp_path / "link", ["sub/a.png", "inside.png"], 8)) == 2


def test_a_name_that_is_not_utf8_is_told_in_utf8(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(saved(NOISE, "PNG"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(UserError, match="is not UTF-8: rename it") as error:
        decoded(tmp_path, list_images(tmp_path), 8)
    assert r"caf\udce9.png" in str(error.value).encode().decode()


def test_listing_is_sorted_and_passes_over_loops_and_hidden_files(tmp_path):
    for name in ("b/2.PNG", "a.jpg", "b/1.tif", ".hidden.png", ".git/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert list_images(tmp_path) == ["a.jpg", "b/1.tif", "b/2.PNG"]


# --- whole sets ---


def load(folder, **changes):
    options = dict(dir=folder, category="", image_size=16, channels=1, split_seed=0)
    return loading.load_dataset(DataSettings("folder", **options | changes))


@pytest.fixture
def some_broken(tmp_path):
    for kind, n in ("normal", 30), ("anomalous", 5), ("masks", 5):
        (tmp_path / kind).mkdir()
        for i in range(n):
            NOISE.rotate(i).save(tmp_path / kind / f"{i:02d}.png")
    for name in "normal/03", "normal/11", "normal/24", "anomalous/02", "masks/04":
        (tmp_path / f"{name}.png").write_bytes(b"broken")
    Image.new("L", (64, 32), 255).save(tmp_path / "masks" / "01.png")
    NOISE.save(tmp_path / "masks" / "99.png")  # of no picture
    return tmp_path


BROKEN = ["anomalous/02", "masks/01", "masks/04", "normal/03", "normal/11", "normal/24"]


def test_broken_files_of_all_parts_are_told_at_once(some_broken):
    with pytest.raises(UserError, match="6 of") as error:
        load(some_broken)
    assert all(f"  {name}.png: " in str(error.value) for name in BROKEN)
    assert "a mask of 64x32 for a picture of 64x64" in str(error.value)


def test_broken_files_are_left_out_and_counted_on_request(some_broken):
    loaded = load(some_broken, skip_unreadable=True)
    (note,) = [note for note in loaded.notes if note.startswith("6 files left out")]
    assert all(f"{name}.png" in note for name in BROKEN)
    assert "1 masks belong to no anomalous picture, such as masks/99.png" in loaded.notes
    everything = [path for part in loaded[:3] for path in part.path]
    assert len(everything) == 27 + 4 and not {f"{n}.png" for n in BROKEN} & {*everything}
    for name in BROKEN:
        (some_broken / f"{name}.png").unlink()
    # Where the others go does not depend on what is broken.
    mended = load(some_broken)
    assert [list(p.path) for p in mended[:3]] == [list(p.path) for p in loaded[:3]]
    test = dict(zip(loaded.test.path, loaded.test.has_mask, strict=True))
    assert not test["anomalous/01.png"] and test["anomalous/03.png"]


def test_a_broken_file_s_name_cannot_move_the_cursor(tmp_path):
    (tmp_path / "a\x1b[2Jb.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\\x1b\[2Jb\.png") as error:
        decoded(tmp_path, ["a\x1b[2Jb.png"], 16)
    assert "\x1b" not in str(error.value)
