"""When prepared data are used again, and when images are prepared again."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bigan_jax.data import loading
from bigan_jax.data.files import folders
from bigan_jax.data.settings import DataSettings
from bigan_jax.errors import UserError
from tests.helpers.prepared import by_path, draw, draw_mvtec, overwrite, pillow, replace, same, written


def test_prepared_data_are_reused_until_a_file_changes(tmp_path, load):
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    first = load("mvtec", folder)
    before = written(tmp_path)
    assert same(load("mvtec", folder), first) and written(tmp_path) == before
    file = folder / "bottle" / "test" / "good" / "001.png"
    path = "bottle/test/good/001.png"
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    assert same(load("mvtec", folder), first) and written(tmp_path) != before
    file.write_bytes(b"corrupt")
    with pytest.raises(UserError, match=rf"{path}: not an image"):
        load("mvtec", folder)
    draw(file, seed=7)
    again = by_path(load("mvtec", folder))
    np.testing.assert_array_equal(again[path], pillow(file))
    assert not np.array_equal(again[path], by_path(first)[path])
    file.unlink()
    assert path not in by_path(load("mvtec", folder))
    assert len(list((tmp_path / "tfds" / "mvtec_ad").iterdir())) == 1  # the stale dataset was removed


@pytest.mark.parametrize("write", [overwrite, replace])
def test_new_content_of_equal_size_and_date_is_read(tmp_path, load, write):
    """As unzip, rsync -t and cp -p leave it."""
    files = [draw(tmp_path / "mine" / f"{i}.bmp") for i in range(12)]
    for file in files:
        os.utime(file, (315532800, 315532800))
    load("folder", tmp_path / "mine")
    write(files[3], draw(tmp_path / "other.bmp").read_bytes())
    os.utime(files[3], (315532800, 315532800))
    for path, image in by_path(load("folder", tmp_path / "mine")).items():
        np.testing.assert_array_equal(image, pillow(tmp_path / "mine" / path))


def test_swapped_files_are_read_under_their_new_names(tmp_path, load):
    files = [draw(tmp_path / "mine" / f"{i}.bmp") for i in range(12)]
    for file in files:
        os.utime(file, (315532800, 315532800))
    before = by_path(load("folder", tmp_path / "mine"))
    files[3].rename(tmp_path / "spare")
    files[4].rename(files[3])
    (tmp_path / "spare").rename(files[4])
    after = by_path(load("folder", tmp_path / "mine"))
    np.testing.assert_array_equal(after["3.bmp"], before["4.bmp"])
    np.testing.assert_array_equal(after["4.bmp"], before["3.bmp"])


def test_archive_of_equal_size_and_date_is_extracted_again(tmp_path, load):
    archive = tmp_path / "mine.zip"
    for seeds in range(12), range(12, 24):
        for i, seed in enumerate(seeds):
            draw(tmp_path / "mine" / f"{i}.bmp", seed=seed + 1)
        with zipfile.ZipFile(archive, "w") as out:
            for file in sorted((tmp_path / "mine").iterdir()):
                out.write(file, file.name)
        os.utime(archive, (315532800, 315532800))
        for path, image in by_path(load("folder", archive)).items():
            np.testing.assert_array_equal(image, pillow(tmp_path / "mine" / path))


def test_added_files_do_not_move_those_that_a_run_was_trained_on(tmp_path, load):
    for i in range(60):
        draw(tmp_path / "mine" / f"{i}.png")
    before = load("folder", tmp_path / "mine")
    for i in range(60, 90):
        draw(tmp_path / "mine" / f"{i}.png")
    settings = DataSettings("folder", dir=tmp_path / "mine", image_size=16, tfds_dir=tmp_path / "tfds")
    after = loading.load_dataset(settings, set(before.train.path))
    assert set(before.train.path) <= set(after.train.path)
    for loaded in after, load("folder", tmp_path / "mine"):
        assert [len(split.path) for split in loaded[:3]] == [52, 20, 18]


def test_folders_of_the_same_name_have_separate_prepared_data(tmp_path, load):
    for i in range(12):
        draw(tmp_path / "a" / "mine" / f"{i}.png", seed=100 + i)
        draw(tmp_path / "b" / "mine" / f"{i}.png", seed=200 + i)
    for folder in (tmp_path / "a" / "mine", tmp_path / "b" / "mine") * 2:
        for path, image in by_path(load("folder", folder)).items():
            np.testing.assert_array_equal(image, pillow(folder / path))


def test_prepared_data_replace_a_missing_folder(tmp_path, load):
    folder = draw_mvtec(tmp_path / "mvtec")
    first = load("mvtec", folder)
    bottle = load("mvtec", folder, category="bottle")
    folder.rename(tmp_path / "elsewhere")
    for _ in range(2):
        second = load("mvtec", folder)
        assert same(first, second) and any("is missing or empty" in note for note in second.notes)
        assert same(load("mvtec", folder, category="bottle"), bottle)
        folder.mkdir(exist_ok=True)  # such as an empty mount point
    with pytest.raises(UserError, match="Did you mean 'bottle'"):
        load("mvtec", folder, category="botle")
    with pytest.raises(UserError, match="There is no folder"):
        load("mvtec", tmp_path / "never")


KILLED = """
import os, signal, sys
from bigan_jax.data.loading import load_dataset
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.tfds import prepared

def kill_after(examples):
    for i, example in enumerate(examples):
        if i == 70:
            os.kill(os.getpid(), signal.SIGKILL)
        yield example

encode = prepared._encode_examples
prepared._encode_examples = lambda *arguments: kill_after(encode(*arguments))
load_dataset(DataSettings("folder", sys.argv[1], sys.argv[2], image_size=16))
"""


def test_killed_preparation_keeps_the_earlier_data(tmp_path, load):
    for i in range(70):
        draw(tmp_path / "mine" / f"{i}.png")
    first = load("folder", tmp_path / "mine")
    for i in range(70, 80):
        draw(tmp_path / "mine" / f"{i}.png")
    arguments = [sys.executable, "-c", KILLED, tmp_path / "mine", tmp_path / "tfds"]
    killed = subprocess.run(arguments, cwd=Path(__file__).parents[2], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    names = [p.name for p in (tmp_path / "tfds" / "image_folder").glob("*/*")]
    assert len(names) == 2 and any(name.startswith("incomplete.") for name in names)
    (tmp_path / "mine").rename(tmp_path / "away")
    assert same(load("folder", tmp_path / "mine"), first)
    (tmp_path / "away").rename(tmp_path / "mine")
    assert len(by_path(load("folder", tmp_path / "mine"))) == 80


def flip(file, at, n):
    content = bytearray(file.read_bytes())
    start = int(at * len(content))
    content[start : start + n] = bytes(255 - byte for byte in content[start : start + n])
    file.write_bytes(content)


@pytest.mark.parametrize(("at", "n"), [(0.5, 3000), (0.3, 1), (0.97, 20)])
def test_damaged_prepared_data_are_prepared_again(tmp_path, load, at, n):
    for i in range(40):
        draw(tmp_path / "mine" / f"{i}.png")
    first = load("folder", tmp_path / "mine")
    (file,) = (tmp_path / "tfds").glob("image_folder/*/1.0.0/*array_record*")
    flip(file, at, n)
    assert same(load("folder", tmp_path / "mine"), first)
    assert same(load("folder", tmp_path / "mine"), first)
    # Without the folder they cannot be prepared.
    flip(file, at, n)
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(UserError, match="There is no folder"):
        load("folder", tmp_path / "mine")


def test_damage_after_opening_is_not_blamed_on_the_image(tmp_path, load):
    for i in range(40):
        draw(tmp_path / "mine" / f"{i}.png")
    images = load("folder", tmp_path / "mine", stream=True).train.image
    (file,) = (tmp_path / "tfds").glob("image_folder/*/1.0.0/*array_record*")
    flip(file, 0.1, file.stat().st_size // 2)
    with pytest.raises(UserError, match=r"the image itself was not read: the prepared data in .*1\.0\.0 are damaged"):
        images[:]


@pytest.mark.parametrize("damage", ["metadata.json", "dataset_info.json", "array_record"])
def test_corrupt_prepared_data_are_prepared_again(tmp_path, load, damage):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    first = load("folder", tmp_path / "mine")
    (file,) = (tmp_path / "tfds").glob(f"image_folder/*/1.0.0/*{damage}*")
    file.write_bytes(file.read_bytes()[:20])
    assert same(load("folder", tmp_path / "mine"), first)


def test_unwritable_tfds_dir_is_an_error(tmp_path, load):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written.*--config\.data\.tfds_dir"):
        load("folder", tmp_path / "mine", tfds_dir=tmp_path / "file")


def test_tfds_dir_defaults_to_the_folder_of_tfds(tmp_path, load, monkeypatch):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "variable"))
    load("folder", tmp_path / "mine", tfds_dir="")
    assert list((tmp_path / "variable" / "image_folder").iterdir())
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("folder", tmp_path / "mine", tfds_dir="")
    assert list((tmp_path / "home" / "tensorflow_datasets" / "image_folder").iterdir())


def test_unreadable_files_are_reported_from_prepared_data(tmp_path, load):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    (tmp_path / "mine" / "empty.png").touch()
    (tmp_path / "mine" / "text.png").write_text("no picture")
    (tmp_path / "mine" / "nowhere.png").symlink_to(tmp_path / "nowhere")
    for _ in range(2):  # when prepared, and when reopened
        with pytest.raises(UserError, match="3 of 15") as error:
            load("folder", tmp_path / "mine")
        message = str(error.value)
        assert "empty.png: is empty" in message and "nowhere.png: " in message
        assert "text.png: not an image" in message
    assert len(by_path(load("folder", tmp_path / "mine", skip_unreadable=True))) == 12


def test_repaired_files_are_read(tmp_path, load):
    """Without a change of the folder's fingerprint: a link's target appears, with the stamp of before."""
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    outside = draw(tmp_path / "elsewhere" / "12.png")
    (tmp_path / "mine" / "12.png").symlink_to(outside)
    for _ in range(2):
        with pytest.raises(UserError, match=r"12\.png: a link or path out of the data folder"):
            load("folder", tmp_path / "mine")
    (tmp_path / "mine" / "12.png").unlink()
    shutil.copy2(outside, tmp_path / "mine" / "12.png")
    assert len(by_path(load("folder", tmp_path / "mine"))) == 13


def test_unreadable_files_are_tried_again_at_each_load(tmp_path, load, monkeypatch):
    """Such as after installing a package, or on a network folder that answers again."""
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    reasons = iter(["no package", "no network"])

    def fails(source, mask=False):
        if source.name == "7.png":
            raise UserError(next(reasons))
        return encode(source, mask)

    encode = folders.read_encoded
    monkeypatch.setattr(folders, "read_encoded", fails)
    for reason in "no package", "no network":  # the reason is the latest one
        with pytest.raises(UserError, match=rf"7\.png: {reason}"):
            load("folder", tmp_path / "mine")
    monkeypatch.undo()
    assert len(by_path(load("folder", tmp_path / "mine"))) == 12


def test_chmod_repairs_a_file(tmp_path, load):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    file = tmp_path / "mine" / "7.png"
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user can read every file")
    with pytest.raises(UserError, match=r"7\.png: no permission"):
        load("folder", tmp_path / "mine")
    file.chmod(0o600)
    assert len(by_path(load("folder", tmp_path / "mine"))) == 12


def test_truncated_file_is_read_once_it_is_complete(tmp_path, load):
    files = [draw(tmp_path / "mine" / f"{i}.png") for i in range(12)]
    content, status = files[7].read_bytes(), files[7].stat()
    files[7].write_bytes(content[:-100] + bytes(100))
    os.utime(files[7], ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"7\.png"):
        load("folder", tmp_path / "mine")
    files[7].write_bytes(content)
    os.utime(files[7], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(by_path(load("folder", tmp_path / "mine"))) == 12
