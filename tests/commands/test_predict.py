"""Prediction of new images: forms of input, files, errors. The training data are not needed."""

import csv
import dataclasses
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import PurePosixPath

import markupsafe
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

import bigan_jax
from bigan_jax.commands import predict as prediction
from bigan_jax.commands.predict import predict
from bigan_jax.configs import cvae, fcae
from bigan_jax.data import phantom
from bigan_jax.errors import UserError, printable
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.reports.charts import error_map_rgb
from bigan_jax.reports.overlays import output_name
from tests.helpers.runs import configured, launch
from tests.helpers.untrained import write_untrained_run

FILES = ["coco.json", "drift.json", "error_maps", "masks", "overlays", "predictions.jsonl", "report.html", "scores.csv"]
FILES += ["thumbnails"]
SMALL = {"data.image_size": 32, "batch_size": 16, "phases.phase1.epochs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir and its images, both moved after training."""
    home = tmp_path_factory.mktemp("prediction")
    for label, defect_type in (("normal", None), ("anomalous", "contamination")):
        folder = home / "data" / label
        folder.mkdir(parents=True)
        for i in range(5 if defect_type else 60):
            image, _ = phantom.draw("bottle", i, 48, 1, defect_type)
            Image.fromarray(image[..., 0]).save(folder / f"{i:02}.png")
    fields = SMALL | {
        "data.dir": str(home / "data"),
        "data.calibration_fraction": 0.3,
        "threshold.false_alarm_rate": 0.3,
        "threshold.pixel_rate": 0.3,
        "model.hidden": (16, 8),
    }
    bigan_jax.train(configured(fcae, "folder", fields), home / "trained")
    shutil.move(home / "trained", home / "moved")
    shutil.move(home / "data", home / "images")
    return home / "moved", home / "images"


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    workdir, images = trained
    output = tmp_path_factory.mktemp("predicted") / "out"
    result = predict(workdir, images, output)
    assert result[:3] == (65, sum(r["decision"] == "anomalous" for r in table(output)), [])
    return output


def table(output, name="scores.csv"):
    with (output / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predictions(output):
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def rgb(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_scores_equal_those_of_the_evaluation(trained, predicted):
    workdir, _ = trained
    evaluated = {row["path"]: row for row in table(workdir)}
    rows = {row["path"]: row for row in table(predicted)}
    assert evaluated.keys() < rows.keys() and len(rows) == 65
    assert {row["decision"] for row in evaluated.values()} == {"normal", "anomalous"}
    for path, row in evaluated.items():
        for column in ("mse", "ssim_error", "paper", "calibrated"):
            assert float(rows[path][column]) == pytest.approx(float(row[column]), rel=1e-4, abs=1e-6)
        assert rows[path]["decision"] == row["decision"]
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    splits = {row["path"]: row["split"] for row in csv.DictReader((workdir / "split.csv").open())}
    for name, result in evaluation["scores"].items():
        scores = [float(rows[path][name]) for path, split in splits.items() if split == "calibration"]
        np.testing.assert_allclose(sorted(result["calibration_scores"]), sorted(scores), rtol=1e-4, atol=1e-6)


def test_window_makes_scores_independent_of_brightness(tmp_path):
    data, dark = tmp_path / "data" / "normal", tmp_path / "dark"
    data.mkdir(parents=True)
    dark.mkdir()
    for i in range(40):
        image = phantom.draw("head", i, 48, 1)[0][..., 0].astype(np.uint16)
        # Ever darker, as 12-bit values in 16 bits are; and the same images without a loss.
        Image.fromarray(image * (16 - i % 8)).save(data / f"{i:02}.png")
        Image.fromarray(image * 200).save(dark / f"{i:02}.png")
    fields = SMALL | {
        "data.dir": str(tmp_path / "data"),
        "data.window": True,
        "data.calibration_fraction": 0.3,
        "model.hidden": (16, 8),
    }
    bigan_jax.train(configured(fcae, "folder", fields), workdir := tmp_path / "run")
    evaluated = {row["path"]: float(row["calibrated"]) for row in table(workdir)}
    for source, output in (data, tmp_path / "again"), (dark, tmp_path / "bright"):
        predict(workdir, source, output)
        scores = {row["path"]: float(row["calibrated"]) for row in table(output)}
        for path, score in evaluated.items():
            assert scores[path.removeprefix("normal/")] == pytest.approx(score, abs=2e-3)
    (score,) = bigan_jax.load(workdir).predict([data / "00.png"]).score
    assert score == pytest.approx(scores["00.png"], abs=2e-3)
    # The file is nearly black; the overlay shows the image as the networks see it.
    brightest = np.asarray(Image.open(data / "00.png")).max() / 257
    assert brightest < 20 < 200 < rgb(tmp_path / "again/overlays/00.png.png").max()


def test_dark_images_are_marked(trained, tmp_path, capsys):
    """12 bits in 16, of which 255 * 4095 / 65535 = 16 levels are left."""
    (tmp_path / "new").mkdir()
    values = np.random.default_rng(0).integers(0, 4096, (48, 48)).astype(np.uint16)
    for name, image in ("deep", values), ("full", values * 16), ("blank", values * 0):
        Image.fromarray(image).save(tmp_path / f"new/{name}.png")
    predict(trained[0], tmp_path / "new", tmp_path / "out", maps=False)
    assert {row["path"]: row["warning"] for row in table(tmp_path / "out")} == {
        "deep.png": "dark",
        "full.png": "",
        "blank.png": "",
    }
    assert "warning: 1 of 3 images are dark" in capsys.readouterr().err


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_fit_is_that_of_the_run(tmp_path, fit):
    data = tmp_path / "data" / "normal"
    data.mkdir(parents=True)
    for i in range(40):
        image = phantom.draw("bottle", i, 48, 1)[0][..., 0]
        Image.fromarray(np.pad(image, ((0, 0), (16, 0)), mode="edge")).save(data / f"{i:02}.png")
    fields = SMALL | {"data.dir": str(tmp_path / "data"), "data.fit": fit, "model.hidden": (16, 8)}
    bigan_jax.train(configured(fcae, "folder", fields), workdir := tmp_path / "run")
    predict(workdir, data, tmp_path / "out")
    scores = {row["path"]: float(row["paper"]) for row in table(tmp_path / "out")}
    for row in table(workdir):
        assert scores[row["path"].removeprefix("normal/")] == pytest.approx(float(row["paper"]), abs=2e-3)
    scorer = bigan_jax.load(workdir)
    assert scorer.image_format.fit == fit
    assert scorer.predict([data / "00.png"]).error_map.shape == (1, 32, 32)
    files = [tmp_path / "out" / name / "00.png.png" for name in ("error_maps", "overlays", "masks")]
    colored, overlay, mask = map(Image.open, files)
    assert colored.size == overlay.size == mask.size == (64, 48)
    if fit == "crop":  # nothing is known of the sides
        np.testing.assert_array_equal(np.asarray(overlay)[:, :8, 0], np.asarray(Image.open(data / "00.png"))[:, :8])


def test_percentile_is_the_fraction_of_lower_calibration_scores(trained, predicted):
    scorer = bigan_jax.load(trained[0])
    for score, row in ((float(row["calibrated"]), row) for row in table(predicted)):
        if min(abs(scorer.calibration - score)) > 1e-6:  # else the seven digits of the file decide
            lower = sum(other < score for other in scorer.calibration.tolist())
            assert float(row["percentile"]) == pytest.approx(100 * lower / len(scorer.calibration), rel=1e-3)
    assert len({row["percentile"] for row in table(predicted)}) > 5
    calibration = scorer.calibration
    ties = np.concatenate([calibration, [0, calibration.max() + 1]])
    scores = scorer.score(np.zeros((1, 32, 32, 1), np.uint8))._replace(by_name={"calibrated": ties})
    expected = [100 * np.mean(calibration < score) for score in ties]
    np.testing.assert_allclose(scorer.percentile(scores), expected)
    assert expected[-2:] == [0, 100]


@pytest.mark.parametrize("form", ["image", "pattern", "folders", "zip", "tar.gz"])
def test_forms_of_input(form, trained, predicted, tmp_path):
    workdir, images = trained
    source, expected = tmp_path / f"images.{form}", [f"anomalous/{i:02}.png" for i in range(5)]
    if form == "image":
        source, expected = images / "anomalous" / "02.png", ["02.png"]
    elif form == "pattern":
        source, expected = str(images / "ano*" / "0[1-3].png"), expected[1:4]
    elif form == "folders":
        source = str(images / "ano*")
    elif form == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            for name in expected:
                archive.write(images / name, name)
    else:
        with tarfile.open(source, "w:gz") as archive:
            archive.add(images / "anomalous", "anomalous")
    result = predict(workdir, source, tmp_path / "out")
    rows = table(tmp_path / "out")
    assert result.scored == len(rows) and [row["path"] for row in rows] == expected
    known = {row["path"].rpartition("/")[2]: row for row in table(predicted)[:5]}  # anomalous/
    for row in rows:
        other = known[row["path"].rpartition("/")[2]]
        assert float(row["calibrated"]) == pytest.approx(float(other["calibrated"]), rel=1e-4)
        error_map = rgb(tmp_path / "out" / "error_maps" / f"{row['path']}.png")
        # Other images do not change a map's colors, but for rounding.
        expected_map = rgb(predicted / "error_maps" / f"{other['path']}.png")
        assert (error_map != expected_map).any(-1).mean() < 0.01
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES


def test_error_maps_and_overlays_have_the_size_of_the_image(trained, tmp_path):
    """In the model's size their colors are those of the report."""
    workdir, images = trained
    new = tmp_path / "new"
    new.mkdir()
    gray = Image.open(images / "anomalous" / "00.png")
    gray.resize((32, 32)).save(new / "a.png")
    gray.resize((90, 61)).convert("RGB").save(new / "a.jpg")
    gray.resize((20, 33)).convert("P").save(new / "b.png")
    predict(workdir, new, tmp_path / "out")
    sizes = {"a.jpg.png": (90, 61), "a.png.png": (32, 32), "b.png.png": (20, 33)}
    for kind in ("error_maps", "overlays", "masks"):
        written = {p.name: Image.open(p).size for p in (tmp_path / "out" / kind).iterdir()}
        assert written == sizes
    limit = json.loads((workdir / "evaluation.json").read_text())["color_limits"]["combined"]
    result = bigan_jax.load(workdir).predict([new / "a.png"])
    expected = error_map_rgb(result.error_map[0], limit)
    np.testing.assert_allclose(rgb(tmp_path / "out/error_maps/a.png.png"), expected, atol=6)
    marked = np.asarray(Image.open(tmp_path / "out/masks/a.png.png"))
    threshold = json.loads((workdir / "evaluation.json").read_text())["pixel_threshold"]
    np.testing.assert_array_equal(marked, 255 * (result.error_map[0] >= threshold))
    overlay = rgb(tmp_path / "out/overlays/a.png.png").astype(float)
    level = np.clip(np.floor(256 * result.error_map[0] / limit), 0, 255) / 255
    blended = rgb(new / "a.png") * (1 - 0.8 * level[..., None]) + expected * 0.8 * level[..., None]
    np.testing.assert_allclose(overlay, blended, atol=8)


def test_command_skips_unreadable_files(trained, tmp_path):
    workdir, images = trained
    new = tmp_path / "new"
    (new / "sub").mkdir(parents=True)
    good = (images / "anomalous" / "00.png").read_bytes()
    names = ["..png", "sub/ü字 \x1b[31m\n.png", "sub/x%0A.png", "sub/" + "l" * 240 + ".png"]
    for name in names:
        (new / name).write_bytes(good)
    (new / "torn.png").write_bytes(good[: len(good) // 2])
    (new / "page.jpg").write_bytes(b"<html>\x1b[2J")
    (new / "empty.png").touch()
    (new / "out.png").symlink_to(images / "anomalous" / "01.png")
    arguments = ["--mode=predict", f"--workdir={workdir}", f"--input={new}"]
    result = launch(*arguments, f"--output={tmp_path / 'out'}", check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "\x1b[31m" not in result.stdout + result.stderr
    paths = {printable(name) for name in names[1:]}  # ..png is hidden
    assert {row["path"] for row in table(tmp_path / "out")} == paths
    assert len({row["calibrated"] for row in table(tmp_path / "out")}) == 1
    reasons = {row["path"]: row["reason"] for row in table(tmp_path / "out", "unreadable.csv")}
    assert reasons.keys() == {"torn.png", "page.jpg", "empty.png", "out.png"}
    assert "empty" in reasons["empty.png"] and "not an image" in reasons["page.jpg"]
    assert all(f"{path}: {reason}" in result.stderr for path, reason in reasons.items())
    for kind in ("error_maps", "overlays", "masks"):
        written = [p for p in (tmp_path / "out" / kind).rglob("*") if p.is_file()]
        assert len(written) == 3 and all(p.name.isprintable() for p in written)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "out"]


def test_command_lists_files_of_other_kinds(trained, tmp_path):
    workdir, images = trained
    new = tmp_path / "new"
    new.mkdir()
    good = (images / "anomalous" / "00.png").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    contents = {
        "000.png": (good, ""),
        "=1+1.png": (good, ""),
        "photo.HEIC": (b"\0\0\0\x18ftypheic" + b"\0" * 64, "HEIC is not supported"),
        "photo.jpg": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + b"\0" * 64, "HEIC is not supported"),
        "scan.ima": (b"\0" * 128 + b"DICM" + b"x" * 50, "DICOM under another name (.ima): let its name end in .dcm"),
        "picture": (good, "a PNG image under another name"),
        "pointer.png": (pointer, "run git lfs pull"),
        "pointer.nii.gz": (pointer, "run git lfs pull"),
        "page.jpg": (b"\n<!DOCTYPE html><html>", "a web page (HTML)"),
        "error.png": (b"<?xml version='1.0'?><Error>", "XML"),
        "photos.zip": (b"PK\x03\x04", "an archive in a folder"),
        "=notes.txt": (b"hello", ".txt: not a supported image format"),
        "000_mask.png": (good, "a mask by its name"),
    }
    for name, (content, _) in contents.items():
        (new / name).write_bytes(content)
    for hidden in "._photo.heic", "Thumbs.db", "metadata.csv":
        (new / hidden).write_bytes(b"x")
    arguments = ["--mode=predict", f"--workdir={workdir}", f"--input={new}", "--nomaps"]
    result = launch(*arguments, f"--output={tmp_path / 'out'}", check=False)
    assert result.returncode == 2 and "2 images scored" in result.stdout
    assert {row["path"] for row in table(tmp_path / "out")} == {"000.png", "'=1+1.png"}
    reasons = {row["path"].lstrip("'"): row["reason"] for row in table(tmp_path / "out", "unreadable.csv")}
    assert reasons.keys() == {name for name, (_, reason) in contents.items() if reason}
    assert all(contents[name][1] in reason for name, reason in reasons.items())
    assert "'=notes.txt" in {row["path"] for row in table(tmp_path / "out", "unreadable.csv")}


def test_unlistable_folders_are_not_scored(trained, tmp_path, monkeypatch):
    workdir, images = trained
    shutil.copytree(images, tmp_path / "new")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("new/normal"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = predict(workdir, tmp_path / "new", tmp_path / "out", maps=False)
    assert result.scored == 5 and [file.path for file in result.unreadable] == ["normal"]
    assert "cannot be listed (Permission denied)" in table(tmp_path / "out", "unreadable.csv")[0]["reason"]


def test_conditions_of_the_scorer_are_checked(trained):
    scorer = bigan_jax.load(trained[0])
    images = np.zeros((3, 32, 32, 1), np.uint8)
    scores = scorer.score(images).score
    np.testing.assert_array_equal(scorer.score(images, np.array([0, 5, 2])).score, scores)  # the model takes none
    scorer.conditions = ("bottle", "leaf")
    np.testing.assert_array_equal(scorer.score(images, [0, 1, 1]).score, scores)
    for wrong, words in (
        (np.array([0, 1, 0.5]), r"integer array .*got float64 \(3,\)"),
        (np.array([0, 1]), r"of shape \(3,\) \(got int64 \(2,\)\)"),
        (np.array([[0], [1], [1]]), r"of shape \(3,\)"),
        (np.array([0, 1, 2]), r"from 0 to 1 \(got 0 to 2\).*bottle, leaf"),
        (np.array([0, 1, -1]), r"from 0 to 1 \(got -1 to 1\)"),
        (np.array(["leaf"] * 3), "integer array"),
    ):
        with pytest.raises(UserError, match=words):
            scorer.score(images, wrong)


@given(st.lists(st.text(st.sampled_from("ab.%/\\\n\x00:ü\udcffPNpng~"), min_size=1), unique=True))
def test_output_names_are_unique_and_inside_the_folder(paths):
    paths = {path for path in paths if all(path.split("/"))}
    names = {output_name(path) for path in paths}
    assert len(names) == len(paths)
    for name in names:
        parts = PurePosixPath(name).parts
        assert not PurePosixPath(name).is_absolute() and not {".", ".."} & set(parts)
        assert name.isprintable() and all(len(part.encode()) < 256 for part in parts)
        # No folder has the name of another image's file.
        assert not names & {parent.as_posix() for parent in PurePosixPath(name).parents}


def test_python_api_accepts_files_images_and_arrays(trained, predicted):
    workdir, images = trained
    scorer = bigan_jax.load(workdir)
    path = images / "anomalous" / "03.png"
    image = Image.open(path)
    array = np.asarray(image)
    inputs = [path, str(path), image, array, array[..., None], np.stack([array] * 3, -1)]
    result = scorer.predict([*inputs, image.convert("RGBA"), image.resize((200, 70))])
    assert result.error_map.shape == (8, 32, 32) and result.decision.dtype == bool
    (row,) = (row for row in table(predicted) if row["path"] == "anomalous/03.png")
    np.testing.assert_allclose(result.score[:7], float(row["calibrated"]), rtol=1e-4)
    np.testing.assert_allclose(result.percentile[:7], float(row["percentile"]), rtol=1e-3)
    assert ["normal", "anomalous"][int(result.decision[0])] == row["decision"]
    for wrong, words in (
        ([path, images / "no.png"], "no.png: there is no such file"),
        ([array, array.astype(float)], r"image 1: .*float64 \(48, 48\)"),
        ([array[:2]], "image 0: 48x2 is too small"),
        (path, "a list"),
    ):
        with pytest.raises(UserError, match=words):
            scorer.predict(wrong)


def test_errors_leave_output_unchanged(trained, tmp_path):
    workdir, images = trained
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    old = tmp_path / "old"
    shutil.copytree(workdir, old)
    evaluation = json.loads((old / "evaluation.json").read_text())
    del evaluation["scores"]["calibrated"]["calibration_scores"]
    (old / "evaluation.json").write_text(json.dumps(evaluation))
    unfitted = shutil.copytree(workdir, tmp_path / "unfitted")
    (unfitted / "pixel_statistics.npy").unlink()
    for arguments, words in (
        ((unfitted, images, tmp_path / "out"), "unfitted/pixel_statistics.npy is missing .* Run --mode=evaluate again"),
        ((workdir, images, tmp_path / "mine"), "mine exists and is not empty"),
        ((workdir, images, images / "out"), "must not be inside --input"),
        ((workdir, tmp_path / "no.png", tmp_path / "out"), "no such image"),
        ((workdir, tmp_path / "*.png", tmp_path / "out"), r"\*.png: no image was found"),
        ((workdir, tmp_path / "mine", tmp_path / "out"), "no image was found"),
        ((old, images, tmp_path / "out"), "another version of bigan_jax"),
        ((tmp_path, images, tmp_path / "out"), "holds no run: .* subfolders"),
    ):
        with pytest.raises(UserError, match=words):
            predict(*arguments)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"another version .*--mode=evaluate again"):
        bigan_jax.load(old).predict([images / "anomalous" / "00.png"])


def test_maps_false_writes_scores_only(trained, predicted, tmp_path, capsys):
    workdir, images = trained
    predict(workdir, images / "anomalous", tmp_path / "out", maps=False)
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["drift.json", "predictions.jsonl", "scores.csv"]
    lines = predictions(tmp_path / "out")
    assert [line["size"] for line in lines] == [[48, 48]] * 5 and {line["regions"] for line in lines} == {None}
    assert f"\nScores: {tmp_path / 'out'}" in capsys.readouterr().out
    expected = [float(row["calibrated"]) for row in table(predicted)[:5]]
    scores = [float(row["calibrated"]) for row in table(tmp_path / "out")]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_blocks_of_large_files_are_small(trained, predicted, tmp_path, monkeypatch):
    workdir, images = trained
    sizes, score = [], AnomalyScorer.score
    n_bytes = sum(file.stat().st_size for file in images.rglob("*.png"))
    monkeypatch.setattr(prediction, "BLOCK_BYTES", n_bytes // 3)
    monkeypatch.setattr(
        AnomalyScorer, "score", lambda self, x, *a, **options: (sizes.append(len(x)), score(self, x, *a, **options))[1]
    )
    predict(workdir, images, tmp_path / "out", maps=False)
    assert sum(sizes) == 65 and max(sizes) <= 22
    assert [row["path"] for row in table(tmp_path / "out")] == [row["path"] for row in table(predicted)]


def test_interrupt_keeps_finished_blocks(trained, tmp_path, monkeypatch):
    workdir, images = trained
    monkeypatch.setattr(prediction, "BLOCK", 10)
    blocks, score = [], AnomalyScorer.score

    def interrupt_third_block(self, *arguments, **options):
        blocks.append(len(arguments[0]))
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return score(self, *arguments, **options)

    monkeypatch.setattr(AnomalyScorer, "score", interrupt_third_block)
    with pytest.raises(KeyboardInterrupt):
        predict(workdir, images, tmp_path / "out")
    rows = table(tmp_path / "out")
    assert max(blocks) == 10 and len(rows) == sum(blocks[:2])
    assert [line["file"] for line in predictions(tmp_path / "out")] == [row["path"] for row in rows]
    written = {str(p.relative_to(tmp_path / "out/overlays")) for p in tmp_path.rglob("overlays/*/*")}
    assert written == {f"{row['path']}.png" for row in rows}


def test_predictions_agree_with_scores_and_masks(trained, predicted):
    evaluation = json.loads((trained[0] / "evaluation.json").read_text())
    rows, lines = table(predicted), predictions(predicted)
    assert [line["file"] for line in lines] == [row["path"] for row in rows]
    for row, line in zip(rows, lines, strict=True):
        assert line["score"] == pytest.approx(float(row["calibrated"]), rel=1e-6)
        assert line["percentile"] == pytest.approx(float(row["percentile"]), rel=1e-3)
        assert (line["decision"], line["warning"]) == (row["decision"], row["warning"])
        assert line["threshold"] == evaluation["scores"]["calibrated"]["threshold"]
        mask = np.asarray(Image.open(predicted / "masks" / line["png"]))
        assert line["size"] == [*mask.shape[::-1]] == [48, 48]
        labels, n_regions = ndimage.label(mask, np.ones((3, 3)))
        assert len(line["regions"]) == n_regions
        assert sorted(r["area"] for r in line["regions"]) == sorted(np.bincount(labels.ravel())[1:])
        boxes = [(c.start, r.start, c.stop - c.start, r.stop - r.start) for r, c in ndimage.find_objects(labels)]
        assert sorted(tuple(region["box"]) for region in line["regions"]) == sorted(boxes)
    assert sum(len(line["regions"]) for line in lines) > 5


def test_coco_has_the_regions_of_anomalous_images(predicted):
    content = json.loads((predicted / "coco.json").read_text(encoding="utf-8"))
    assert content.keys() == {"info", "licenses", "categories", "images", "annotations"}
    assert content["categories"] == [{"id": 1, "name": "anomaly", "supercategory": ""}]
    lines = predictions(predicted)
    shown = ("file_name", "width", "height", "decision", "score")
    assert [[image[key] for key in shown] for image in content["images"]] == [
        [line["file"], *line["size"], line["decision"], line["score"]] for line in lines
    ]
    ids = {image["id"]: image["file_name"] for image in content["images"]}
    assert len(ids) == len(lines) and len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
    found = [(ids[a["image_id"]], a["bbox"], a["area"], a["score"]) for a in content["annotations"]]
    anomalous = [line for line in lines if line["decision"] == "anomalous"]
    assert found == [(i["file"], r["box"], r["area"], r["peak"]) for i in anomalous for r in i["regions"]]
    assert found and {(a["category_id"], a["iscrowd"]) for a in content["annotations"]} == {(1, 0)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_coco_loads_in_pycocotools(predicted):
    coco = pytest.importorskip("pycocotools.coco").COCO(predicted / "coco.json")
    for index in coco.getImgIds(catIds=1):
        masks = [coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds(index))]
        mask = np.asarray(Image.open(predicted / "masks" / f"{coco.loadImgs(index)[0]['file_name']}.png"))
        np.testing.assert_array_equal(255 * sum(masks), mask)


def test_drift_is_reported(trained, tmp_path, capsys):
    workdir, images = trained
    result = predict(workdir, images / "normal", tmp_path / "same", maps=False)
    assert not result.drift.found and f"\n{result.drift.sentence}\n" in capsys.readouterr().out
    assert result.drift.n_images == 60 and result.drift.n_calibration < 18
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    main = evaluation["scores"]["calibrated"]
    # As of a run with more calibration images, all of which score higher than these.
    main["calibration_scores"] = np.linspace(1000, 2000, 100).tolist()
    main["threshold"], evaluation["n_calibration_groups"] = 1950.0, 100
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run/evaluation.json").write_text(json.dumps(evaluation))
    result = predict(tmp_path / "run", images / "normal", tmp_path / "out")
    assert result.drift.verdict == "lower" and "Drift: " in capsys.readouterr().out
    content = json.loads((tmp_path / "out/drift.json").read_text())
    assert content == dataclasses.asdict(result.drift) | {"sentence": result.drift.sentence}
    assert markupsafe.escape(result.drift.sentence) in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_slices_of_a_stack(trained, tmp_path):
    """Each has regions in its own size, and all count as one image for drift."""
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 255, (40, 56, 30)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    result = predict(trained[0], tmp_path / "scan.nii.gz", tmp_path / "out")
    lines = predictions(tmp_path / "out")
    assert [line["file"] for line in lines] == [f"scan.nii.gz#{i:03}" for i in range(30)]
    assert {tuple(line["size"]) for line in lines} == {(40, 56)}
    assert result.drift.verdict == "undecided" and result.drift.n_independent <= 1
    for line in lines[:3]:
        mask = np.asarray(Image.open(tmp_path / "out/masks" / line["png"])) > 0
        assert sum(region["area"] for region in line["regions"]) == mask.sum()


def test_rotated_photo_has_regions_as_it_is_displayed(trained, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (30, 70), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    predict(trained[0], tmp_path / "a.jpg", tmp_path / "out")
    (line,) = predictions(tmp_path / "out")
    mask = np.asarray(Image.open(tmp_path / "out/masks/a.jpg.png")) > 0
    assert line["size"] == [30, 70] == [*mask.shape[::-1]]
    assert sum(region["area"] for region in line["regions"]) == mask.sum()


def test_only_unreadable_files(trained, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/torn.png").write_bytes(b"\x89PNG\r\n")
    assert predict(trained[0], tmp_path / "new", tmp_path / "out").scored == 0
    assert predictions(tmp_path / "out") == []
    content = json.loads((tmp_path / "out/coco.json").read_text())
    assert content["images"] == content["annotations"] == []
    assert "torn.png" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_condition_comes_from_flag_or_nearest_folder(tmp_path):
    """Anything else is an error. The workdir holds only what a prediction needs."""
    config = configured(cvae, "phantom", SMALL | {"model.latent": 4, "model.widths": (4, 8)})
    evaluation = {"threshold": 0.2, "calibration_scores": [0.1], "color_limits": {"combined": 0.3}}
    write_untrained_run(tmp_path / "run", config, conditions=["bottle", "leaf"], **evaluation)
    image, _ = phantom.draw("leaf", 0, 32, 1)
    for name in ("bottle/leaf___mildew/a.png", "bottle/a.png", "other/a.png"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / "new" / name)

    def scores(source, output, condition=""):
        predict(tmp_path / "run", tmp_path / "new" / source, tmp_path / output, condition)
        return {row["path"]: float(row["calibrated"]) for row in table(tmp_path / output)}

    scorer = bigan_jax.load(tmp_path / "run")
    bottle, leaf = scorer.predict([image, image], ["bottle", "leaf"]).score
    assert abs(bottle - leaf) > 1e-3 * leaf
    nearest = scores("bottle", "a")
    assert nearest == pytest.approx({"a.png": bottle, "leaf___mildew/a.png": leaf}, rel=1e-4)
    assert scores("other/a.png", "b", "leaf") == pytest.approx({"a.png": leaf}, rel=1e-4)
    with pytest.raises(UserError, match=r"--condition=bottle\|leaf"):
        scores("other", "c")
    with pytest.raises(UserError, match=r"'leav'.*Did you mean 'leaf'"):
        scores("other", "d", "leav")
    with pytest.raises(UserError, match="bottle, leaf"):
        scorer.predict([image])
