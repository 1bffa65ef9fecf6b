"""Prepared data: the arrays of the files, when they are prepared again, TFDS datasets, buckets."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from tensorflow_datasets.core import shuffle

from bigan_jax.data import loading
from bigan_jax.data.files import folders
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.tfds import prepared
from bigan_jax.data.tfds.paths import prepared_path
from bigan_jax.errors import UserError
from tests.helpers.datasets import everything


def draw(path, seed=None, size=(40, 40)):
    """Writes noise that depends on the file name alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = seed or int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((48, 48), np.uint8)
    mask[3:33, 6:18] = 255
    Image.fromarray(mask).save(path)


def draw_mvtec(folder, categories=("bottle", "pill")):
    for category in categories:
        for i in range(12):
            draw(folder / category / "train" / "good" / f"{i:03d}.png")
        for defect_type in "good", "crack":
            for i in range(3):
                draw(folder / category / "test" / defect_type / f"{i:03d}.png", size=(48, 48))
        for i in range(3):
            draw_mask(folder / category / "ground_truth" / "crack" / f"{i:03d}_mask.png")
    return folder


def by_path(dataset):
    images = everything(dataset)
    return dict(zip(images.path.tolist(), images.image, strict=True))


def same(first, second):
    """Whether two datasets have the same splits with the same images."""
    return all(
        np.array_equal(a, b) for fields in zip(first[:3], second[:3], strict=True) for a, b in zip(*fields, strict=True)
    )


def pillow(path, size=16):
    """The expected array of an image, by Pillow."""
    gray = Image.open(path).convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(gray)[..., None]


# --- what is stored ---


def test_arrays_equal_the_files(tmp_path, load):
    folder = draw_mvtec(tmp_path / "mvtec")
    for i in range(6):
        draw(folder / "bottle" / "train" / "good" / f"{i}.jpg", size=(31, 57))
    loaded = load("mvtec", folder)
    images = by_path(loaded)
    assert loaded.conditions == ("bottle", "pill") and len(images) == 2 * 18 + 6
    for path, image in images.items():
        np.testing.assert_array_equal(image, pillow(folder / path), path)
    cover = np.asarray(Image.open(folder / "pill/ground_truth/crack/000_mask.png")) / 255
    cover = cover.reshape(16, 3, 16, 3).mean(axis=(1, 3))
    assert loaded.test.label.sum() == 6
    assert (loaded.test.mask[loaded.test.label] == (cover >= 0.5)).all()
    assert not loaded.test.mask[~loaded.test.label].any()


def test_tfds_reads_the_original_bytes(tmp_path, load):
    folder = draw_mvtec(tmp_path / "mvtec")
    load("mvtec", folder)
    (path,) = (tmp_path / "tfds" / "mvtec_ad").glob("pill-*/1.0.0")
    examples = tfds.builder_from_directory(path).as_data_source("images")
    assert "tensorflow" not in sys.modules
    example_of = {example["path"].decode(): example for example in examples}
    files = {p.relative_to(folder).as_posix() for p in (folder / "pill").glob("t*/*/*.png")}
    assert set(example_of) == files and len(examples) == 18
    for path, example in example_of.items():
        assert example["image"] == (folder / path).read_bytes()
        mask = folder / "pill" / "ground_truth" / "crack" / f"{Path(path).stem}_mask.png"
        assert example["mask"] == (mask.read_bytes() if "crack" in path else b"")
        assert example["label"] == ("crack" in path)
        assert example["official_split"].decode() == path.split("/")[1]


@pytest.mark.parametrize(
    ("source", "builder"), [("folder", "image_folder"), ("brain", "brain_mri"), ("plant", "plant_disease")]
)
def test_builder_of_each_source(tmp_path, load, source, builder):
    for i in range(20):
        draw(tmp_path / "mine" / "healthy" / f"{100 * i + 50}.png")
    load(source, tmp_path / "mine")
    (path,) = (tmp_path / "tfds").glob("*/*/1.0.0")
    assert path.parent.parent.name == builder and path.parent.name.startswith("mine-")
    assert tfds.builder_from_directory(path).name == builder


def test_large_folders_are_prepared_in_little_memory(tmp_path, load, monkeypatch):
    """More examples than TFDS keeps in memory are sorted on the disk, in many buckets, without TensorFlow."""
    for i in range(70):
        draw(tmp_path / "mine" / f"{i}.png")
    expected = load("folder", tmp_path / "mine")
    shutil.rmtree(tmp_path / "tfds")
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 20_000)
    sizes = []

    class Bucket(shuffle._Bucket):
        def read_values(self):
            values = list(super().read_values())
            sizes.append(len(values))
            return values

    monkeypatch.setattr(shuffle, "_Bucket", Bucket)
    monkeypatch.setattr(prepared, "CHUNK_BYTES", 10_000)
    assert same(load("folder", tmp_path / "mine"), expected)
    assert sum(sizes) == 70 and max(sizes) <= 2 and "tensorflow" not in sys.modules


# --- when data are prepared again ---


def written(tmp_path):
    """When the prepared data were written."""
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "tfds").rglob("metadata.json")}


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


def overwrite(file, content):
    file.write_bytes(content)


def replace(file, content):
    (new := file.with_name("new")).write_bytes(content)
    new.replace(file)


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


# --- unusual names and unreadable files ---


def test_names_in_any_script_and_names_that_are_not_utf8(tmp_path, load):
    for i in range(12):
        draw(tmp_path / "mine" / f"ключ {i} é,😀#1.png")
    assert len(by_path(load("folder", tmp_path / "mine"))) == 12
    try:
        shutil.copy(draw(tmp_path / "ok.png"), os.fsencode(tmp_path / "mine") + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(UserError, match="not UTF-8") as error:
        load("folder", tmp_path / "mine")
    str(error.value).encode()
    rest = load("folder", tmp_path / "mine", skip_unreadable=True)
    assert len(by_path(rest)) == 12


def test_each_name_has_its_own_ascii_folder(tmp_path):
    tfds_dir, folder = epath.Path(tmp_path), epath.Path(tmp_path / "set")
    names = ["", "data", "a b", "a_b", "a/b", "瓶", "缶", "x" * 70, "x" * 71, "bottle,pill"]
    folders = [prepared_path(tfds_dir, "mvtec_ad", name, folder).parent.name for name in names]
    assert len(set(folders)) == len(names) - 1  # "" and "data" share one
    assert all(name.isascii() and len(name) < 120 for name in folders)
    assert prepared_path(tfds_dir, "mvtec_ad", "pill", folder).parent.name.startswith("pill-")


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


# --- the TFDS dataset plant_village ---


def prepare_plant_village(tfds_dir, folder):
    """Prepares a TFDS dataset with the name and features of plant_village from class folders."""
    classes = sorted(f.name for f in folder.iterdir())

    class PlantVillage(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.2")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "image/filename": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=classes),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for file in folder.glob("*/*"):
                label = file.parent.name
                name = {"image/filename": file.name, "label": label}
                yield f"{label}/{file.name}", {"image": file, **name}

    builder = PlantVillage(data_dir=tfds_dir)
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


def convert_to_tfrecord(path):
    """Converts a dataset to the format that TFDS writes by default."""
    (file,) = path.glob("*.array_record-*")
    source = tfds.builder_from_directory(path).as_data_source(
        "train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    records = b"".join(struct.pack("<QI", len(raw), 0) + raw + struct.pack("<I", 0) for raw in source)
    file.with_name(file.name.replace("array_record", "tfrecord")).write_bytes(records)
    file.unlink()
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_plant_village_is_read_as_class_folders(tmp_path, load, file_format):
    folder = tmp_path / "classes"
    for i in range(0, 1200, 40):
        draw(folder / "Pepper,_bell___healthy" / f"u___JR_HL {1000 + i}.JPG")
        draw(folder / "Potato___healthy" / f"u___RS_HL {4000 + i}.JPG")
    for i in range(4):
        draw(folder / "Pepper,_bell___Bacterial_spot" / f"u___JR_B.Spot {i}.JPG")
    path = prepare_plant_village(tmp_path / "tfds", folder)
    if file_format == "tfrecord":
        convert_to_tfrecord(path)
    loaded = load("plant", tmp_path / "nothing")
    assert same(load("plant", folder), loaded)
    assert loaded.conditions == ("Pepper_bell", "Potato") and loaded.test.label.sum() == 4
    assert "Pepper,_bell___healthy/JR_HL 1000" in {g for split in loaded[:3] for g in split.group}
    assert any("the TFDS dataset" in note for note in loaded.notes)
    shutil.rmtree(folder)
    pepper = load("plant", path, category="Pepper_bell")
    assert pepper.conditions == ("Pepper_bell",) and pepper.test.label.sum() == 4


def test_modules_named_in_untrusted_datasets_are_not_imported(tmp_path, load):
    """An untrusted features.json names a module; so may one among the prepared data."""
    for i in range(0, 1200, 40):
        draw(tmp_path / "classes" / "Potato___healthy" / f"u___RS_HL {4000 + i}.JPG")
    path = prepare_plant_village(tmp_path / "tfds", tmp_path / "classes") / "features.json"
    valid = json.loads(path.read_text())
    untrusted = "this.Feature"  # the module prints the Zen of Python
    label = valid["featuresDict"]["features"]["label"]
    for features in (
        valid | {"pythonClassName": untrusted},
        {"python_class_name": untrusted, "features_dict": valid["featuresDict"]},
        {"type": untrusted, "content": {}},
        {**valid, "featuresDict": {"features": {"label": label | {"pythonClassName": untrusted}}}},
        {"type": "tensorflow_datasets.core.features.text_feature.Text", "proto_cls": untrusted},
    ):
        path.write_text(json.dumps(features))
        with pytest.raises(UserError, match=r"names 'this\.Feature'"):
            load("plant", path.parent)
    assert "this" not in sys.modules
    load("plant", tmp_path / "classes")
    (path,) = tmp_path.glob("**/plant_disease/*/1.0.0/features.json")
    valid = json.loads(path.read_text())
    path.write_text(json.dumps(valid | {"pythonClassName": untrusted}))
    load("plant", tmp_path / "classes")  # prepared again
    assert "this" not in sys.modules and json.loads(path.read_text()) == valid


def test_copies_next_to_tfds_versions_are_ignored(tmp_path, load):
    for i in range(0, 1200, 40):
        draw(tmp_path / "classes" / "Potato___healthy" / f"u___RS_HL {4000 + i}.JPG")
    path = prepare_plant_village(tmp_path / "tfds", tmp_path / "classes")
    shutil.copytree(path, path.with_name("backup"))
    assert str(path) in "".join(load("plant", tmp_path / "nothing").notes)


# --- buckets ---


class Bucket(MemoryFileSystem):
    """Replaces S3."""

    protocol = "s3"
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("s3://"))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    fsspec.register_implementation("s3", Bucket, clobber=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Bucket.store.clear()
    yield Bucket()
    Bucket.store.clear()


def test_bucket_equals_a_local_folder(tmp_path, load, bucket):
    folder = draw_mvtec(tmp_path / "mvtec")
    local = load("mvtec", folder)
    bucket.put(str(folder), "s3://mine/mvtec", recursive=True)
    remote = {"tfds_dir": "s3://mine/tfds"}
    for _ in range(2):
        assert same(load("mvtec", "s3://mine/mvtec", **remote), local)
        assert same(load("mvtec", "s3://mine/mvtec"), local)
        shutil.rmtree(tmp_path / "cache")  # another machine
    assert same(load("mvtec", folder, **remote), local)
    assert {p.rsplit("/", 3)[1].split("-")[0] for p in bucket.find("s3://mine/tfds")} == {"bottle", "pill"}
    file = "pill/train/good/000.png"
    bucket.put_file(str(draw(folder / file, seed=9, size=(41, 41))), f"s3://mine/mvtec/{file}")
    changed = by_path(load("mvtec", "s3://mine/mvtec", **remote))[file]
    np.testing.assert_array_equal(changed, pillow(folder / file))
    bucket.rm("s3://mine/mvtec", recursive=True)
    assert any("is missing" in n for n in load("mvtec", "s3://mine/mvtec", **remote).notes)
    with pytest.raises(UserError, match="There is no folder s3://mine/other"):
        load("mvtec", "s3://mine/other", **remote)
    with pytest.raises(UserError, match="unknown scheme"):
        load("mvtec", "ftp://mine/mvtec")
    fsspec.register_implementation("az", "nowhere.To", clobber=True, errtxt="Install adlfs")
    for root, fields in ("az://mine/mvtec", {}), (folder, {"tfds_dir": "az://mine/tfds"}):
        with pytest.raises(UserError, match="cannot be reached: Install adlfs"):
            load("mvtec", root, **fields)


def test_archive_in_a_bucket(tmp_path, load, bucket):
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    archive = shutil.make_archive(str(tmp_path / "bottle"), "xztar", folder)
    bucket.put_file(archive, "s3://mine/bottle.tar.xz")
    loaded = load("mvtec", "s3://mine/bottle.tar.xz", tfds_dir="s3://mine/tfds")
    assert same(loaded, load("mvtec", folder))


def test_user_without_a_name_can_prepare_data(tmp_path, load, monkeypatch):
    """In a container that runs under a numeric user id, there is no account name."""

    def raise_unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", raise_unknown)
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    archive = shutil.make_archive(str(tmp_path / "bottle"), "zip", folder)
    assert same(load("mvtec", folder), load("mvtec", archive))
