"""What follows from a leak audit: what is left out, the files, and what a run may train on."""

import csv
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest

import bigan_jax
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited
from bigan_jax.configs import fcae
from bigan_jax.data import audit as leaks
from bigan_jax.data.audit.fingerprints import BLOCK_SIZE
from bigan_jax.data.audit.result import trained_paths
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.streaming import LazyImages
from bigan_jax.errors import UserError
from tests.data.test_audit import dataset, finding_of, jpeg, plain, scenes
from tests.helpers.runs import configured

FIELDS = {"data.image_size": 32, "model.hidden": (8, 4), "batch_size": 16, "phases.phase1.epochs": 1}


def leaking():
    """Two training and one calibration image are in the test, two more nearly."""
    images = scenes(10)
    set_ = plain([*images[:3], *map(jpeg(60), images[3:5])], images[:5])
    set_.train.image[2] = set_.train.image[50] // 2
    set_.calibration.image[4] = set_.test.image[2]
    return set_


def test_policies():
    set_ = leaking()
    with pytest.raises(UserError, match=r"(?s)3 training or calibration images.*train/.*duplicates=drop") as stopped:
        leaks.drop_duplicates(set_, leaks.audit_dataset(set_))
    assert set_.train.path[0] in str(stopped.value) and set_.test.path[0] in str(stopped.value)

    kept = leaks.drop_duplicates(set_, leaks.audit_dataset(set_, "keep"))
    assert [len(p.path) for p in kept[:3]] == [len(p.path) for p in set_[:3]]
    assert "exact" in leaks.audit_dataset(set_, "keep").warnings[0]

    for policy, gone in (("drop", [0, 1]), ("drop_near", [0, 1, 3, 4])):
        audit = leaks.audit_dataset(set_, policy)
        settled = leaks.drop_duplicates(set_, audit)
        np.testing.assert_array_equal(settled.train.image, np.delete(set_.train.image, gone, 0))
        assert set(set_.train.path) - set(settled.train.path) == set(set_.train.path[gone])
        assert set(set_.calibration.path) - set(settled.calibration.path) == {set_.calibration.path[4]}
        assert len(settled.test.path) == len(set_.test.path)
        assert f"{len(gone)} images dropped from train" in " ".join(settled.notes)
        after = leaks.audit_dataset(settled, "stop")
        assert finding_of(after, "exact duplicates across splits").result == "none"
        near = finding_of(after, "near duplicates across splits")
        assert (near.result == "none") == (policy == "drop_near")
        assert any("near" in w for w in audit.warnings) == (policy == "drop")

    with pytest.raises(UserError, match=r"duplicates 'dorp'.*'drop'"):
        DataSettings("phantom", duplicates="dorp")
    same = dataset(set_.train, set_.calibration, set_.train)
    with pytest.raises(UserError, match="every image of train"):
        leaks.drop_duplicates(same, leaks.audit_dataset(same, "drop"))


def test_files_and_table(tmp_path):
    set_ = leaking()
    set_.test.path[5] = "t/\udcff\x1b[2J.png"  # no UTF-8, and a terminal's order
    audit = leaks.audit_dataset(set_, "drop")
    audit.write(tmp_path)
    audit.write_split(tmp_path)
    rows = {
        row["path"]: row
        for row in csv.DictReader((tmp_path / "split.csv").open(encoding="utf-8", errors="surrogateescape", newline=""))
    }
    assert len(rows) == sum(len(p.path) for p in set_[:3])
    assert rows[set_.train.path[0]]["split"] == "dropped"
    assert rows[set_.train.path[2]]["split"] == "train"
    assert rows["t/\udcff\x1b[2J.png"] == {
        "path": "t/\udcff\x1b[2J.png",
        "label": "normal",
        "group": set_.test.group[5],
        "condition": "thing",
        "split": "test",
        "pixel_hash": rows["t/\udcff\x1b[2J.png"]["pixel_hash"],
    }
    assert len({row["pixel_hash"] for row in rows.values()}) < len(rows)  # there are copies
    content = json.loads((tmp_path / "audit.json").read_text())
    assert content["dropped"] == {"test": 0, "calibration": 1, "train": 2}
    assert content["policy"] == "drop" and len(content["duplicates"]) == len(audit.duplicates)
    assert content["duplicates"][0]["first"].keys() == {"split", "path", "label"}
    table = audit.message()
    assert table.isprintable() or "\x1b" not in table
    assert max(map(len, table.splitlines())) <= 110
    assert (
        len([line for line in table.splitlines() if re.match(r"! near duplicates across splits .* pairs\)", line)]) == 1
    )
    shown = audit.as_dict(images=True)["duplicates"][0]
    np.testing.assert_array_equal(shown["first"]["image"], shown["second"]["image"])


def test_a_clean_audit_is_one_line():
    clean = leaks.audit_dataset(plain(scenes(5, seed=1), scenes(5, seed=2)))
    clean = clean._replace(findings=[finding._replace(meaning="") for finding in clean.findings])
    assert clean.message() == "Data check: no leakage found (details in report.html)"
    dropped = clean._replace(
        dropped={"train": np.array([3, 5]), "calibration": np.array([0]), "test": np.array([], int)}
    )
    assert dropped.message() == "Data check: no leakage found, 3 duplicates dropped (details in report.html)"
    assert "train" in leaks.audit_dataset(leaking(), "keep").message()


def test_images_that_are_decoded_on_demand():
    set_ = leaking()
    asked = []

    class Watched(LazyImages):
        def __getitem__(self, indices):
            asked.append(np.size(indices))
            return super().__getitem__(indices)

    train = set_.train
    lazy = Watched(train.image.__getitem__, train.path.tolist(), train.image.shape[1:])
    streamed = set_._replace(train=train._replace(image=lazy))
    audit = leaks.audit_dataset(streamed, "drop")
    assert max(asked) <= BLOCK_SIZE < len(train.path)
    assert audit.as_dict() == leaks.audit_dataset(set_, "drop").as_dict()
    asked.clear()
    settled = leaks.drop_duplicates(streamed, audit).train
    assert not asked and isinstance(settled.image, LazyImages)
    kept = leaks.drop_duplicates(set_, leaks.audit_dataset(set_, "drop")).train
    assert settled.image.shape == kept.image.shape
    np.testing.assert_array_equal(settled.image[:], kept.image)
    assert settled.mask.shape == kept.mask.shape


def test_a_config_reaches_training_and_evaluation(tmp_path):
    """A folder of which one test image is there again under another name."""
    images = scenes(60)
    (tmp_path / "normal").mkdir()
    for i, image in enumerate(images):
        image.save(tmp_path / "normal" / f"{i:03d}.png")
    fields = FIELDS | {"data.dir": str(tmp_path)}
    config = configured(fcae, "folder", fields)
    loaded, _ = load_audited(parse_settings(config))
    twin = loaded.test.path[0]
    for i in range(20):  # one of these names will train
        (tmp_path / "normal" / f"again{i}.png").write_bytes((tmp_path / twin).read_bytes())
    with pytest.raises(UserError, match="duplicates=drop"):
        load_audited(parse_settings(config))
    settled, audit = load_audited(parse_settings(configured(fcae, "folder", fields | {"data.duplicates": "drop"})))
    assert not any("again" in path for path in settled.train.path)
    kept, _ = load_audited(parse_settings(configured(fcae, "folder", fields | {"data.duplicates": "keep"})))
    again = {path for path in kept.train.path if "again" in path}
    assert again and set(settled.train.path) == {*kept.train.path} - again - {twin}
    assert "width" in audit.shortcut_aurocs or not settled.test.label.any()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data.test_fraction": 0.0}, "no test images.*test_fraction"),
        ({"data.calibration_fraction": 0.97}, r"training images \(1\).*calibration_fraction"),
    ],
)
def test_parts_that_lack_what_is_asked_of_them(fields, words, tmp_path):
    folder(tmp_path, 0)
    with pytest.raises(UserError, match=words):
        load_audited(parse_settings(configured(fcae, "folder", FIELDS | {"data.dir": str(tmp_path)} | fields)))


def folder(path, seed, count=40):
    """The config of a run on drawn images, which it writes to a folder."""
    (path / "normal").mkdir(parents=True)
    for i, image in enumerate(scenes(count, seed)):
        image.save(path / "normal" / f"{i:03d}.png")
    return configured(fcae, "folder", FIELDS | {"data.dir": str(path)})


def test_a_run_keeps_to_its_images(tmp_path, capsys):
    """Others of the same names are refused; the same in another folder, and some more, are not."""

    def train(config):
        return bigan_jax.train(config, tmp_path / "run")

    train(folder(tmp_path / "screws", 0))
    assert "Note: " in capsys.readouterr().out  # that all images are taken as normal
    before = (tmp_path / "run" / "evaluation.json").read_text()
    other = folder(tmp_path / "nuts", 1)
    for call in train, partial(bigan_jax.evaluate, tmp_path / "run"):
        with pytest.raises(UserError, match=r"was trained on \d+ other images"):
            call(config=other)
    assert (tmp_path / "run" / "evaluation.json").read_text() == before
    (tmp_path / "screws").rename(tmp_path / "moved")
    trained = trained_paths(tmp_path / "run")
    for i in range(20):
        (tmp_path / "nuts" / "normal" / f"{i:03d}.png").rename(tmp_path / "moved" / "normal" / f"new{i}.png")
    moved = configured(fcae, "folder", FIELDS | {"data.dir": str(tmp_path / "moved")})
    evaluation = bigan_jax.evaluate(tmp_path / "run", config=moved)
    assert (evaluation["n_normal"], evaluation["n_calibration"]) == (12, 16)
    train(moved)
    assert trained_paths(tmp_path / "run") >= trained


def test_a_run_does_not_test_on_what_it_trained_on(tmp_path):
    """A table of groups that comes later moves images from training to the test."""
    config = folder(tmp_path / "screws", 0)
    bigan_jax.train(config, tmp_path / "run")
    before = (tmp_path / "run" / "evaluation.json").read_text()
    rows = [f"normal/{i:03d}.png,part {i // 4}" for i in range(40)]
    (tmp_path / "screws" / "metadata.csv").write_text("\n".join(["file,group", *rows]))
    for call in bigan_jax.train, bigan_jax.evaluate:
        arguments = (config, tmp_path / "run") if call is bigan_jax.train else (tmp_path / "run",)
        with pytest.raises(UserError, match=r"trained on \d+ images .*--workdir"):
            call(*arguments)
    assert (tmp_path / "run" / "evaluation.json").read_text() == before


def test_an_evaluation_leaves_what_trained_as_it_was(tmp_path):
    """Whatever lies in the folder by then."""
    config = folder(tmp_path / "screws", 0)
    first = bigan_jax.train(config, tmp_path / "run")
    split = (tmp_path / "run" / "split.csv").read_text()
    for row in csv.DictReader(split.splitlines()):
        if row["split"] == "train" and row["path"] < "normal/010.png":
            (tmp_path / "screws" / row["path"]).unlink()
    for call in partial(bigan_jax.train, config), bigan_jax.evaluate:
        assert call(tmp_path / "run")["n_train"] == first["n_train"]
        assert (tmp_path / "run" / "split.csv").read_text() == split


def test_what_trained_is_not_forgotten_where_a_training_goes_on_without_it(tmp_path):
    set_ = plain(scenes(10), scenes(4, 1))
    leaks.audit_dataset(set_).write_split(tmp_path)
    fewer = set_._replace(train=set_.train.select(np.arange(3, len(set_.train.path))))
    leaks.audit_dataset(fewer).write_split(tmp_path)
    assert leaks.audit_dataset(fewer).count_trained(tmp_path) == len(set_.train.path)
    leaks.audit_dataset(set_).require_same_training_images(tmp_path)
    tested = fewer._replace(test=set_.train.select(np.arange(3)))
    with pytest.raises(UserError, match="trained on 3 images"):
        leaks.audit_dataset(tested).require_same_training_images(tmp_path)


def test_new_names_do_not_hide_what_trained(tmp_path):
    """The split goes by names: where a folder's layout changes, it assigns every image again."""
    config = folder(tmp_path / "screws", 0)
    bigan_jax.train(config, tmp_path / "run")
    (tmp_path / "screws" / "normal").rename(tmp_path / "screws" / "good")
    with pytest.raises(UserError, match=r"trained on \d+ images .*--workdir"):
        bigan_jax.evaluate(tmp_path / "run")


def test_files_of_an_archive_tell_as_much(tmp_path):
    """Also of one whose layout begins further down."""
    for i, image in enumerate([*scenes(30), *scenes(6, 1)]):
        file = tmp_path / "set" / "inner" / ("normal" if i < 30 else "defect") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    facts = []
    for place in "set", "set.zip":
        fields = FIELDS | {"data.dir": str(tmp_path / place)}
        facts.append(load_audited(parse_settings(configured(fcae, "folder", fields)))[1].shortcut_aurocs)
    assert facts[0] == facts[1] and "bits per pixel" in facts[0]
