"""Archives as data folders: their content is loaded, and malicious content does no harm."""

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bigan_jax.data.files import archives
from bigan_jax.errors import UserError
from tests.helpers.prepared import by_path, draw, draw_mvtec, same


def pack(folder, archive, inside=""):
    """Pack the files of `folder` into an archive, below the folder `inside`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    names = [Path(inside) / p.relative_to(folder) for p in files]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for file, name in zip(files, names, strict=True):
                out.write(file, name)
    else:
        compression = archive.suffix.removeprefix(".")
        with tarfile.open(archive, "w" if compression == "tar" else f"w:{compression}") as out:
            for file, name in zip(files, names, strict=True):
                out.add(file, name)
    return archive


def write_normal_images(folder, n=12):
    for i in range(n):
        draw(folder / f"{i}.png")
    return folder


def everything_below(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


# --- content ---


@pytest.mark.parametrize("name", ["mvtec.tar.xz", "mvtec.tar.gz", "mvtec.zip", "mvtec.tar.bz2"])
def test_mvtec_archive_equals_folder(tmp_path, load, name):
    folder = draw_mvtec(tmp_path / "mvtec")
    archive = pack(folder, tmp_path / name)
    assert same(load("mvtec", archive), load("mvtec", folder))
    extracted = tmp_path / "tfds" / "extracted"
    before = {p: p.stat().st_mtime_ns for p in extracted.rglob("*")}
    load("mvtec", archive, category="pill")
    assert before == {p: p.stat().st_mtime_ns for p in extracted.rglob("*")}  # extracted once


def test_archive_of_one_mvtec_category(tmp_path, load):
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    expected = load("mvtec", folder)
    assert same(load("mvtec", pack(folder, tmp_path / "bottle.tar.xz")), expected)
    bare = load("mvtec", pack(folder / "bottle", tmp_path / "bottle.zip"))
    assert bare.conditions == ("bottle",) and same(bare, load("mvtec", folder / "bottle"))


def test_plant_village_archive_of_kaggle(tmp_path, load):
    folder = tmp_path / "classes"
    for i in range(0, 2000, 50):
        draw(folder / "Potato___healthy" / f"u___RS_HL {i}.JPG")
    draw(folder / "Potato___Late_blight" / "u___RS_LB 7.JPG")
    # The archive of Kaggle contains all files a second time, in a subfolder.
    pack(folder, tmp_path / "one.zip", "PlantVillage")
    archive = tmp_path / "archive.zip"
    shutil.move(tmp_path / "one.zip", archive)
    with zipfile.ZipFile(archive, "a") as out:
        for file in folder.rglob("*.JPG"):
            out.write(file, Path("plantvillage/PlantVillage") / file.relative_to(folder))
        out.writestr("__MACOSX/PlantVillage/._x.JPG", b"")
    loaded = load("plant", archive)
    assert same(loaded, load("plant", folder)) and loaded.conditions == ("Potato",)
    assert any("PlantVillage" in note for note in loaded.notes)


def test_brain_tumor_archive_of_kaggle(tmp_path, load):
    for split, n in ("Training", 20), ("Testing", 5):
        write_normal_images(tmp_path / "a" / split / "notumor", n)
        for tumor in "glioma", "meningioma", "pituitary":
            draw(tmp_path / "a" / split / tumor / f"{tumor}.jpg")
    loaded = load("brain", pack(tmp_path / "a", tmp_path / "archive.zip"))
    assert set(loaded.test.defect_type) == {"good", "glioma", "meningioma", "pituitary"}
    assert len(by_path(loaded)) == 23
    assert any("Training; Testing (8 images) skipped" in note for note in loaded.notes)


@pytest.mark.parametrize("inside", ["", "images", "a/b"])
def test_archive_of_normal_images(tmp_path, load, inside):
    folder = write_normal_images(tmp_path / "mine")
    loaded = load("folder", pack(folder, tmp_path / "mine.zip", inside))
    assert not loaded.test.label.any()
    images = {Path(path).name: image for path, image in by_path(loaded).items()}
    expected = by_path(load("folder", folder))
    assert set(images) == set(expected)
    assert all(np.array_equal(images[name], expected[name]) for name in expected)


def test_layout_is_found_in_a_subfolder(tmp_path, load):
    write_normal_images(tmp_path / "x" / "y" / "normal")
    draw(tmp_path / "x" / "y" / "anomalous" / "1.png")
    assert load("folder", tmp_path).test.label.sum() == 1


def test_changed_and_deleted_archive(tmp_path, load):
    folder = write_normal_images(tmp_path / "mine")
    archive = pack(folder, tmp_path / "mine.zip")
    load("folder", archive)
    draw(folder / "more.png")
    pack(folder, archive)
    os.utime(archive, (1, 1))
    larger = load("folder", archive)
    assert len(by_path(larger)) == 13
    archive.unlink()
    assert same(load("folder", archive), larger)
    shutil.rmtree(tmp_path / "tfds" / "extracted")
    assert same(load("folder", archive), larger)


@pytest.mark.parametrize("change", ["half", "one", "folder", "all", "truncated"])
def test_partly_deleted_extraction_is_extracted_again(tmp_path, load, change):
    folder = tmp_path / "mine"
    write_normal_images(folder / "normal")
    draw(folder / "anomalous" / "x.png")
    archive = pack(folder, tmp_path / "mine.zip")
    first = load("folder", archive)
    (extracted,) = (tmp_path / "tfds" / "extracted").glob("*/mine")
    files = sorted(extracted.rglob("*.png"))
    for file in {"half": files[::2], "one": files[3:4], "all": files}.get(change, []):
        file.unlink()
    if change == "folder":
        shutil.rmtree(extracted / "anomalous")
    if change == "truncated":
        files[5].write_bytes(files[5].read_bytes()[:50])
    assert same(load("folder", archive), first)
    assert sorted(extracted.rglob("*.png")) == files


def test_incomplete_extraction_of_a_deleted_archive_is_not_used(tmp_path, load):
    archive = pack(write_normal_images(tmp_path / "mine"), tmp_path / "mine.zip")
    first = load("folder", archive)
    archive.unlink()
    (extracted,) = (tmp_path / "tfds" / "extracted").glob("*/mine")
    (extracted / ".DS_Store").touch()  # of a file manager
    assert same(load("folder", archive), first)
    (extracted / "3.png").unlink()
    prepared = load("folder", archive)
    assert same(prepared, first) and any("is missing or empty" in note for note in prepared.notes)
    shutil.rmtree(tmp_path / "tfds" / "image_folder")
    with pytest.raises(UserError, match="There is no folder"):
        load("folder", archive)


# --- malicious content ---


def entry(name, type=tarfile.REGTYPE, content=b"", target=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = type, len(content), target
    return info, io.BytesIO(content)


MALICIOUS = {
    "up": [entry("a/../../evil.png", content=b"x")],
    "absolute": [entry("/tmp/evil.png", content=b"x")],
    "backslash": [entry("a\\..\\..\\evil.png", content=b"x")],
    "drive": [entry("C:\\evil.png", content=b"x")],
    "symlink": [entry("a", tarfile.SYMTYPE, target="/etc"), entry("a/evil.png", content=b"x")],
    "hardlink": [entry("a.png", tarfile.LNKTYPE, target="/etc/passwd")],
    "device": [entry("a.png", tarfile.CHRTYPE)],
    "pipe": [entry("a.png", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_tar_is_refused(tmp_path, load, case):
    archive = pack(write_normal_images(tmp_path / "mine"), tmp_path / "mine.tar")
    with tarfile.open(archive, "a") as out:
        for info, content in MALICIOUS[case]:
            out.addfile(info, content)
    before = everything_below(tmp_path)
    with pytest.raises(UserError, match="refused"):
        load("folder", archive)
    assert everything_below(tmp_path) - before <= {"tfds", "tfds/extracted"}


@pytest.mark.parametrize("case", ["up", "absolute", "backslash", "drive", "symlink"])
def test_malicious_zip_is_refused(tmp_path, load, case):
    archive = pack(write_normal_images(tmp_path / "mine"), tmp_path / "mine.zip")
    with zipfile.ZipFile(archive, "a") as out:
        for info, content in MALICIOUS[case]:
            member = zipfile.ZipInfo(info.name)
            member.external_attr = (0o120777 if info.issym() else 0o100644) << 16
            out.writestr(member, info.linkname or content.getvalue())
    before = everything_below(tmp_path)
    with pytest.raises(UserError, match="refused"):
        load("folder", archive)
    assert everything_below(tmp_path) - before <= {"tfds", "tfds/extracted"}


def test_decompression_bombs_are_refused(tmp_path, load, monkeypatch):
    huge, _ = entry("a.png")
    huge.size = 10**13
    (tmp_path / "huge.tar").write_bytes(huge.tobuf() + bytes(1024))
    with pytest.raises(UserError, match="looks like a decompression bomb"):
        load("folder", tmp_path / "huge.tar")

    archive = pack(write_normal_images(tmp_path / "mine"), tmp_path / "mine.zip")
    monkeypatch.setattr(archives, "MAX_FILES", 11)
    with pytest.raises(UserError, match="more than 11 files"):
        load("folder", archive)
    monkeypatch.undo()

    monkeypatch.setattr(archives, "RATIO_EXEMPT_BYTES", 2**20)
    zeros = bytes(10 * 2**20)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.png", zeros)
    with pytest.raises(UserError, match="looks like a decompression bomb"):
        load("folder", archive)
    # The data follow the end of the tar, so that no member shows them.
    (tmp_path / "tail.tar.gz").write_bytes(gzip.compress(zeros))
    with pytest.raises(UserError, match="looks like a decompression bomb"):
        load("folder", tmp_path / "tail.tar.gz")


def test_insufficient_disk_space_is_reported_before_extraction(tmp_path, load, monkeypatch):
    archive = pack(write_normal_images(tmp_path / "mine"), tmp_path / "mine.zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=r"the disk has 0\.0 MiB free"):
        load("folder", archive)


# --- corrupt archives and other files ---


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_truncated_archive_is_reported(tmp_path, load, suffix):
    archive = pack(write_normal_images(tmp_path / "mine"), tmp_path / f"mine.{suffix}")
    content = archive.read_bytes()
    cuts = [700, len(content) // 2, len(content) - 30]
    if suffix == "tar":  # its end is padding; a cut between two files is seen only by it
        with tarfile.open(archive) as opened:
            cuts[2] = opened.getmembers()[5].offset
    for cut in cuts:
        archive.write_bytes(content[:cut])
        with pytest.raises(UserError, match="Check that it is complete"):
            load("folder", archive)
        assert not list((tmp_path / "tfds" / "extracted").iterdir())
    archive.write_bytes(content)
    assert len(by_path(load("folder", archive))) == 12


def test_changed_byte_is_detected(tmp_path, load):
    archive = pack(write_normal_images(tmp_path / "mine"), tmp_path / "mine.zip")
    content = bytearray(archive.read_bytes())
    content[len(content) // 3] ^= 255
    archive.write_bytes(content)
    with pytest.raises(UserError, match="Check that it is complete"):
        load("folder", archive)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "is a web page"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "not a supported archive"),
        (b"", "not a supported archive"),
    ],
)
def test_file_that_is_not_an_archive_is_reported(tmp_path, load, content, message):
    (tmp_path / "archive.zip").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load("mvtec", tmp_path / "archive.zip")


def test_archive_with_wrong_layout_is_reported_with_expected_layout(tmp_path, load):
    archive = pack(write_normal_images(tmp_path / "mine"), tmp_path / "mine.zip", "cats")
    with pytest.raises(UserError, match="train/good"):
        load("mvtec", archive)


def test_password_protected_zip_is_reported(tmp_path, load):
    archive = pack(write_normal_images(tmp_path / "mine", 1), tmp_path / "mine.zip")
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    archive.write_bytes(content)
    with pytest.raises(UserError, match="protected by a password"):
        load("folder", archive)
