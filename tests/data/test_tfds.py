"""Data folders as TFDS data sets: the same arrays as from the files, whatever happens to either."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from bigan_jax.data.tfds import prepared
from bigan_jax.errors import UserError
from tests.helpers.datasets import everything


def draw(path, seed=None, size=(40, 40)):
    """Noise, the same for the same name."""
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
        for kind in "good", "crack":
            for i in range(3):
                draw(folder / category / "test" / kind / f"{i:03d}.png", size=(48, 48))
        for i in range(3):
            draw_mask(folder / category / "ground_truth" / "crack" / f"{i:03d}_mask.png")
    return folder


def by_path(dataset):
    every = everything(dataset)
    return dict(zip(every.path.tolist(), every.image, strict=True))


def same(one, other):
    """The same parts with the same pictures."""
    return all(
        np.array_equal(a, b)
        for part, twin in zip(one[:3], other[:3], strict=True)
        for a, b in zip(part, twin, strict=True)
    )


def pillow(path, size=16):
    """What a picture should become, by Pillow's own steps."""
    gray = Image.open(path).convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(gray)[..., None]


# --- what is stored ---


def test_arrays_are_those_of_the_files(tmp_path, load):
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


def test_tfds_reads_the_bytes_as_they_were(tmp_path, load):
    folder = draw_mvtec(tmp_path / "mvtec")
    load("mvtec", folder)
    (place,) = (tmp_path / "tfds" / "mvtec_ad").glob("pill-*/1.0.0")
    examples = tfds.builder_from_directory(place).as_data_source("pictures")
    assert "tensorflow" not in sys.modules
    known = {example["path"].decode(): example for example in examples}
    files = {p.relative_to(folder).as_posix() for p in (folder / "pill").glob("t*/*/*.png")}
    assert set(known) == files and len(examples) == 18
    for path, example in known.items():
        assert example["image"] == (folder / path).read_bytes()
        mask = folder / "pill" / "ground_truth" / "crack" / f"{Path(path).stem}_mask.png"
        assert example["mask"] == (mask.read_bytes() if "crack" in path else b"")
        assert example["label"] == ("crack" in path)
        assert example["official_part"].decode() == path.split("/")[1]


@pytest.mark.parametrize(
    ("source", "builder"),
    [("folder", "image_folder"), ("brain", "brain_mri"), ("plant", "plant_disease")],
)
def test_each_source_has_its_builder(tmp_path, load, source, builder):
    for i in range(20):
        draw(tmp_path / "mine" / "healthy" / f"{100 * i + 50}.png")
    load(source, tmp_path / "mine")
    (place,) = (tmp_path / "tfds").glob("*/*/1.0.0")
    assert place.parent.parent.name == builder and place.parent.name.startswith("mine-")


# --- when it is prepared anew ---


def test_a_prepared_set_is_reused_until_a_file_changes(tmp_path, load):
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    first = load("mvtec", folder)
    file = folder / "bottle" / "test" / "good" / "001.png"
    path, status, content = "bottle/test/good/001.png", file.stat(), file.read_bytes()
    file.write_bytes(bytes(len(content)))  # broken, but nothing shows it
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(load("mvtec", folder), first)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(UserError, match=rf"{path}: not an image"):
        load("mvtec", folder)
    draw(file, seed=7)
    again = by_path(load("mvtec", folder))
    np.testing.assert_array_equal(again[path], pillow(file))
    assert not np.array_equal(again[path], by_path(first)[path])
    file.unlink()
    assert path not in by_path(load("mvtec", folder))
    assert len(list((tmp_path / "tfds" / "mvtec_ad").iterdir())) == 1  # what was stale is gone


def test_files_that_are_added_move_no_other_to_another_part(tmp_path, load):
    for i in range(60):
        draw(tmp_path / "mine" / f"{i}.png")
    before = load("folder", tmp_path / "mine")
    for i in range(60, 90):
        draw(tmp_path / "mine" / f"{i}.png")
    after = load("folder", tmp_path / "mine")
    assert sum(len(part.path) for part in after[:3]) == 90
    for part, larger in zip(before[:3], after[:3], strict=True):
        assert set(part.path) == {p for p in larger.path if int(p[:-4]) < 60}


def test_two_folders_of_one_name_do_not_meet(tmp_path, load):
    for i in range(12):
        draw(tmp_path / "a" / "mine" / f"{i}.png", seed=100 + i)
        draw(tmp_path / "b" / "mine" / f"{i}.png", seed=200 + i)
    for folder in (tmp_path / "a" / "mine", tmp_path / "b" / "mine") * 2:
        for path, image in by_path(load("folder", folder)).items():
            np.testing.assert_array_equal(image, pillow(folder / path))


def test_a_folder_that_is_gone_is_stood_in_for(tmp_path, load):
    folder = draw_mvtec(tmp_path / "mvtec")
    first = load("mvtec", folder)
    bottle = load("mvtec", folder, category="bottle")
    folder.rename(tmp_path / "elsewhere")
    for _ in range(2):
        second = load("mvtec", folder)
        assert same(first, second) and any("is not there" in note for note in second.notes)
        assert same(load("mvtec", folder, category="bottle"), bottle)
        folder.mkdir(exist_ok=True)  # such as where nothing is mounted
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

whole = prepared._examples
prepared._examples = lambda *arguments: kill_after(whole(*arguments))
load_dataset(DataSettings("folder", sys.argv[1], sys.argv[2], image_size=16))
"""


def test_a_set_that_an_older_version_named_otherwise_is_taken_once(load, tmp_path):
    folder = tmp_path / "my pictures"
    for i in range(30):
        draw(folder / "normal" / f"{i}.png")
    first = load("folder", folder)
    (place,) = (tmp_path / "tfds" / "image_folder").glob("my_pictures-*")
    shutil.copytree(place, place.with_name(f"my_pictures-{place.name.rpartition('-')[2]}"))
    folder.rename(tmp_path / "away")
    again = load("folder", folder)
    assert [len(p.path) for p in again[:3]] == [len(p.path) for p in first[:3]]


def test_a_kill_in_the_middle_leaves_what_was_there(tmp_path, load):
    for i in range(70):
        draw(tmp_path / "mine" / f"{i}.png")
    first = load("folder", tmp_path / "mine")
    for i in range(70, 80):
        draw(tmp_path / "mine" / f"{i}.png")
    arguments = [sys.executable, "-c", KILLED, tmp_path / "mine", tmp_path / "tfds"]
    killed = subprocess.run(arguments, cwd=Path(__file__).parents[2], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    left = [p.name for p in (tmp_path / "tfds" / "image_folder").glob("*/*")]
    assert len(left) == 2 and any(name.startswith("incomplete.") for name in left)
    (tmp_path / "mine").rename(tmp_path / "away")
    assert same(load("folder", tmp_path / "mine"), first)
    (tmp_path / "away").rename(tmp_path / "mine")
    assert len(by_path(load("folder", tmp_path / "mine"))) == 80


@pytest.mark.parametrize("damage", ["metadata.json", "dataset_info.json", "array_record"])
def test_a_damaged_copy_is_prepared_anew(tmp_path, load, damage):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    first = load("folder", tmp_path / "mine")
    (file,) = (tmp_path / "tfds").glob(f"image_folder/*/1.0.0/*{damage}*")
    file.write_bytes(file.read_bytes()[:20])
    assert same(load("folder", tmp_path / "mine"), first)


def test_a_place_that_cannot_be_written_is_named(tmp_path, load):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written.*--config\.data\.tfds_dir"):
        load("folder", tmp_path / "mine", tfds_dir=tmp_path / "file")


def test_the_place_is_tfds_own_by_default(tmp_path, load, monkeypatch):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "variable"))
    load("folder", tmp_path / "mine", tfds_dir="")
    assert list((tmp_path / "variable" / "image_folder").iterdir())
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("folder", tmp_path / "mine", tfds_dir="")
    assert list((tmp_path / "home" / "tensorflow_datasets" / "image_folder").iterdir())


# --- names and files that make trouble ---


def test_names_of_any_script_and_names_that_are_not_utf8(tmp_path, load):
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


def test_each_name_has_a_folder_of_its_own(tmp_path):
    """Also where it is made of letters that a file system may not have."""
    home, folder = epath.Path(tmp_path), epath.Path(tmp_path / "set")
    names = ["", "data", "a b", "a_b", "a/b", "瓶", "缶", "x" * 70, "x" * 71, "bottle,pill"]
    places = {prepared.prepared_path("mvtec", home, name, folder).parent.name for name in names}
    assert len(places) == len(names) - 1  # "" is called data
    assert all(place.isascii() and len(place) < 120 for place in places)
    assert prepared.prepared_path("mvtec", home, "pill", folder).parent.name.startswith("pill-")


def test_broken_files_are_told_as_if_nothing_lay_between(tmp_path, load):
    for i in range(12):
        draw(tmp_path / "mine" / f"{i}.png")
    (tmp_path / "mine" / "empty.png").touch()
    (tmp_path / "mine" / "text.png").write_text("no picture")
    (tmp_path / "mine" / "nowhere.png").symlink_to(tmp_path / "nowhere")
    for _ in range(2):  # prepared, and read again
        with pytest.raises(UserError, match="3 of 15") as error:
            load("folder", tmp_path / "mine")
        message = str(error.value)
        assert "empty.png: is empty" in message and "nowhere.png: " in message
        assert "text.png: not an image" in message
    assert len(by_path(load("folder", tmp_path / "mine", skip_unreadable=True))) == 12


# --- TFDS's own plant_village ---


def plant_village(home, folder):
    """A builder of that name and with those features, filled from class folders."""
    classes = sorted(f.name for f in folder.iterdir())

    class PlantVillage(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.2")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "image/filename": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=classes),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for file in folder.glob("*/*"):
                label = file.parent.name
                name = {"image/filename": file.name, "label": label}
                yield f"{label}/{file.name}", {"image": file, **name}

    builder = PlantVillage(data_dir=home)
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


def as_tfrecord(place):
    """The same set in the format that TFDS writes by default."""
    (file,) = place.glob("*.array_record-*")
    source = tfds.builder_from_directory(place).as_data_source(
        "train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    records = b"".join(
        struct.pack("<QI", len(raw), 0) + raw + struct.pack("<I", 0) for raw in source
    )
    file.with_name(file.name.replace("array_record", "tfrecord")).write_bytes(records)
    file.unlink()
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_plant_village_of_tfds_serves_as_a_folder_of_class_folders(tmp_path, load, file_format):
    folder = tmp_path / "classes"
    for i in range(0, 1200, 40):
        draw(folder / "Pepper,_bell___healthy" / f"u___JR_HL {1000 + i}.JPG")
        draw(folder / "Potato___healthy" / f"u___RS_HL {4000 + i}.JPG")
    for i in range(4):
        draw(folder / "Pepper,_bell___Bacterial_spot" / f"u___JR_B.Spot {i}.JPG")
    place = plant_village(tmp_path / "tfds", folder)
    if file_format == "tfrecord":
        as_tfrecord(place)
    loaded = load("plant", tmp_path / "nothing")
    assert same(load("plant", folder), loaded)
    assert loaded.conditions == ("Pepper_bell", "Potato") and loaded.test.label.sum() == 4
    assert "Pepper,_bell___healthy/JR_HL 1000" in {g for part in loaded[:3] for g in part.group}
    assert any("TFDS's own" in note for note in loaded.notes)
    shutil.rmtree(folder)
    pepper = load("plant", place, category="Pepper_bell")
    assert pepper.conditions == ("Pepper_bell",) and pepper.test.label.sum() == 4


def test_what_tfds_would_import_is_not(tmp_path, load):
    """features.json of a stranger names a module; so may a set in the folder of prepared ones."""
    for i in range(0, 1200, 40):
        draw(tmp_path / "classes" / "Potato___healthy" / f"u___RS_HL {4000 + i}.JPG")
    place = plant_village(tmp_path / "tfds", tmp_path / "classes") / "features.json"
    sound = json.loads(place.read_text())
    foreign = "this.Feature"  # the Zen of Python, which prints
    label = sound["featuresDict"]["features"]["label"]
    for spoiled in (
        sound | {"pythonClassName": foreign},
        {"python_class_name": foreign, "features_dict": sound["featuresDict"]},
        {"type": foreign, "content": {}},
        {**sound, "featuresDict": {"features": {"label": label | {"pythonClassName": foreign}}}},
        {"type": "tensorflow_datasets.core.features.text_feature.Text", "proto_cls": foreign},
    ):
        place.write_text(json.dumps(spoiled))
        with pytest.raises(UserError, match=r"names 'this\.Feature'"):
            load("plant", place.parent)
    assert "this" not in sys.modules
    load("plant", tmp_path / "classes")
    (mine,) = tmp_path.glob("**/plant_disease/*/1.0.0/features.json")
    sound = json.loads(mine.read_text())
    mine.write_text(json.dumps(sound | {"pythonClassName": foreign}))
    load("plant", tmp_path / "classes")  # prepared anew
    assert "this" not in sys.modules and json.loads(mine.read_text()) == sound


def test_a_copy_beside_tfds_s_versions_is_passed_over(tmp_path, load):
    for i in range(0, 1200, 40):
        draw(tmp_path / "classes" / "Potato___healthy" / f"u___RS_HL {4000 + i}.JPG")
    place = plant_village(tmp_path / "tfds", tmp_path / "classes")
    shutil.copytree(place, place.with_name("backup"))
    assert str(place) in "".join(load("plant", tmp_path / "nothing").notes)


# --- buckets ---


class Bucket(MemoryFileSystem):
    """Stands for S3."""

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


def test_a_bucket_is_as_good_as_a_folder(tmp_path, load, bucket):
    folder = draw_mvtec(tmp_path / "mvtec")
    local = load("mvtec", folder)
    bucket.put(str(folder), "s3://mine/mvtec", recursive=True)
    away = {"tfds_dir": "s3://mine/tfds"}
    for _ in range(2):
        assert same(load("mvtec", "s3://mine/mvtec", **away), local)
        assert same(load("mvtec", "s3://mine/mvtec"), local)
        shutil.rmtree(tmp_path / "cache")  # another machine
    assert same(load("mvtec", folder, **away), local)
    assert {p.rsplit("/", 3)[1].split("-")[0] for p in bucket.find("s3://mine/tfds")} == {
        "bottle",
        "pill",
    }
    file = "pill/train/good/000.png"
    bucket.put_file(str(draw(folder / file, seed=9, size=(41, 41))), f"s3://mine/mvtec/{file}")
    changed = by_path(load("mvtec", "s3://mine/mvtec", **away))[file]
    np.testing.assert_array_equal(changed, pillow(folder / file))
    bucket.rm("s3://mine/mvtec", recursive=True)
    assert any("is not there" in n for n in load("mvtec", "s3://mine/mvtec", **away).notes)
    with pytest.raises(UserError, match="There is no folder s3://mine/other"):
        load("mvtec", "s3://mine/other", **away)
    with pytest.raises(UserError, match="unknown scheme"):
        load("mvtec", "ftp://mine/mvtec")
    fsspec.register_implementation("az", "nowhere.To", clobber=True, errtxt="Install adlfs")
    for places in ("az://mine/mvtec", {}), (folder, {"tfds_dir": "az://mine/tfds"}):
        with pytest.raises(UserError, match="cannot be reached: Install adlfs"):
            load("mvtec", places[0], **places[1])


def test_an_archive_in_a_bucket(tmp_path, load, bucket):
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    archive = shutil.make_archive(str(tmp_path / "bottle"), "xztar", folder)
    bucket.put_file(archive, "s3://mine/bottle.tar.xz")
    loaded = load("mvtec", "s3://mine/bottle.tar.xz", tfds_dir="s3://mine/tfds")
    assert same(loaded, load("mvtec", folder))


def test_a_user_without_a_name_prepares_as_well(tmp_path, load, monkeypatch):
    """As in a container that is run under a bare number: then the account's name is not found."""

    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    folder = draw_mvtec(tmp_path / "mvtec", ["bottle"])
    archive = shutil.make_archive(str(tmp_path / "bottle"), "zip", folder)
    assert same(load("mvtec", folder), load("mvtec", archive))
