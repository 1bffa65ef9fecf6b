"""Prepared data: the arrays of the files, unusual names, and TFDS datasets."""

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core import shuffle

from bigan_jax.data.tfds import prepared
from bigan_jax.data.tfds.paths import prepared_path
from bigan_jax.errors import UserError
from tests.helpers.prepared import by_path, draw, draw_mvtec, pillow, same


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
