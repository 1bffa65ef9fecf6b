"""The reasons reported for files that can't be read, and datasets with such files."""

import os

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data import loading
from bigan_jax.data.files import unreadable
from bigan_jax.data.files.folders import LINKED_FOLDER, open_folder, resolve_path, unread_files, walk
from bigan_jax.data.files.images import read_files, read_image
from bigan_jax.data.files.unreadable import split_unreadable
from bigan_jax.data.settings import DataSettings
from bigan_jax.errors import UserError
from tests.helpers.datasets import decoded
from tests.helpers.encoded_images import NOISE, png_header, saved

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
