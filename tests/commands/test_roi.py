"""Runs with a region of interest: what is outside changes nothing, and the folder of the run is all that is needed."""

import jax
import numpy as np
import pytest
from PIL import Image

import bigan_jax
from bigan_jax.commands import console
from bigan_jax.commands.build import build
from bigan_jax.commands.exporting.artifact import export
from bigan_jax.commands.folds import fold_configs
from bigan_jax.commands.load import restore
from bigan_jax.commands.roi import require_same_roi, write_roi
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.web.scoring import load_run
from bigan_jax.configs import fcae, improved_bigan, mahalanobis, symmetry
from bigan_jax.data import phantom
from bigan_jax.data.loading import load_dataset
from bigan_jax.errors import UserError
from bigan_jax.reports.prediction_files import read_predictions
from bigan_jax.runtime.run_config import write_config
from tests.helpers.runs import TINY_FCAE, configured

SIZE = TINY_FCAE["data.image_size"]
DRAW = phantom.draw
ROI = np.zeros((40, 40), bool)  # bottles fill most of the image
ROI[8:30, 5:32] = True
ROI[20:, :15] = False


def config_with(file, **fields):
    augmentation = {"augment.flip": True, "augment.translate": 0.2, "threshold.pixel_rate": 0.3, "data.roi": str(file)}
    return configured(fcae, "phantom", TINY_FCAE | augmentation | fields)


def draw_with_patch(category, index, size, *arguments):
    """Draws a phantom with bright noise outside of the region of interest."""
    image, mask = DRAW(category, index, size, *arguments)
    outside = ~parse_settings(config_with(draw_with_patch.roi)).data.roi_pixels
    image[outside] = np.random.default_rng(index).integers(180, 256, image[outside].shape)
    return image, mask


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs whose images differ only outside, and the folder; the file of the region is gone."""
    home = tmp_path_factory.mktemp("roi")
    file = draw_with_patch.roi = home / "mask.png"
    Image.fromarray(ROI).save(file)
    patch = pytest.MonkeyPatch()
    evaluations = [bigan_jax.train(config_with(file), home / "plain")]
    patch.setattr(phantom, "draw", draw_with_patch)
    evaluations.append(bigan_jax.train(config_with(file), home / "patched"))
    patch.undo()
    file.rename(home / "moved.png")
    return home, evaluations


def test_a_bright_patch_outside_changes_nothing_in_training(runs):
    home, (plain, patched) = runs
    assert plain == patched
    states = [
        restore(parse_settings(config_with("x"), home / name), home / name, 1)[0] for name in ("plain", "patched")
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    for file in "scores.csv", "baseline_scores.csv", "pixel_statistics.npy", "split.csv":
        one, other = ((home / name / file).read_bytes() for name in ("plain", "patched"))
        assert one == other


def test_pixel_threshold_is_a_quantile_of_pixels_inside(runs):
    home, (evaluation, _) = runs
    scorer, settings = bigan_jax.load(home / "plain"), parse_settings(config_with("x"), home / "plain")
    inside = settings.data.roi_pixels
    calibration = load_dataset(settings.data).calibration
    maps = scorer.score(calibration.image).error_map
    assert not maps[:, ~inside].any()
    # (10 r + 1) / 11 <= 0.3 for the fraction r of the pixels of 10 images
    marked = maps[:, inside] >= evaluation["pixel_threshold"]
    assert marked.sum() == int(0.23 * marked.size)
    assert any(f"{inside.mean():.1%} of the pixels" in note for note in evaluation["notes"])


def test_predictions_are_equal_bytes_where_images_differ_outside(runs, tmp_path):
    home, _ = runs
    rng = np.random.default_rng(0)
    folders = tmp_path / "one", tmp_path / "other"
    for folder in folders:
        folder.mkdir()
    for i in range(3):
        image = rng.integers(0, 256, ROI.shape, np.uint8)
        for folder, pixels in zip(folders, (image, np.where(ROI, image, 255 - image)), strict=True):
            Image.fromarray(pixels).save(folder / f"{i}.png")
    for folder in folders:
        bigan_jax.predict(home / "plain", folder, tmp_path / f"{folder.name}-results")
    one, other = tmp_path / "one-results", tmp_path / "other-results"
    files = [file.relative_to(one) for file in one.rglob("*.*") if file.parent.name not in ("overlays", "thumbnails")]
    assert len(files) == 11  # without those that show the images
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes()
    for mask in (one / "masks").iterdir():
        assert not np.asarray(Image.open(mask))[~ROI].any()


def test_app_and_predictions_call_an_image_dark_by_its_pixels_inside(runs, tmp_path):
    home, _ = runs
    file = tmp_path / "dark.png"
    Image.fromarray(np.where(ROI, 20, 255).astype(np.uint8)).save(file)
    answer = load_run(home / "plain").score(file.name, file.read_bytes(), "")
    bigan_jax.predict(home / "plain", file, tmp_path / "results", maps=False)
    prediction = next(read_predictions(tmp_path / "results"))
    assert (answer["dark"], answer["score"], prediction.warning) == (True, prediction.score, "dark")


def test_runs_are_resumed_and_evaluated_with_the_same_region_only(runs, tmp_path):
    home, (evaluation, _) = runs
    assert bigan_jax.evaluate(home / "plain")["scores"] == evaluation["scores"]
    same, other = tmp_path / "same.bmp", tmp_path / "other.png"
    Image.fromarray(ROI.astype(np.uint8) * 9).save(same)
    Image.fromarray(~ROI).save(other)
    require_same_roi(home / "plain", same)
    for file in other, "":
        for use in bigan_jax.train, lambda config, folder: bigan_jax.evaluate(folder, config):
            with pytest.raises(UserError, match=r"another region of interest\. Use --config\.data\.roi=.*roi\.png"):
                use(config_with(file), home / "plain")
    with pytest.raises(UserError, match=r"config\.data\.roi=.*gone\.png cannot be read"):
        bigan_jax.train(config_with("gone.png"), tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()


def test_regions_of_a_run_with_folds_are_compared_with_those_of_its_folds(tmp_path):
    files = [tmp_path / name for name in ("mask.png", "other.png")]
    for file, pixels in zip(files, (ROI, ~ROI), strict=True):
        Image.fromarray(pixels).save(file)
    config, other = (configured(mahalanobis, "phantom", {"threshold.folds": 2, "data.roi": str(f)}) for f in files)
    write_config(tmp_path / "run", config)
    for folder, own in fold_configs(config, tmp_path / "run").items():
        write_roi(folder, files[0])
        write_config(folder, own)
    with pytest.raises(UserError, match=r"fold0 was trained with another region of interest\. Use .*fold0.roi\.png"):
        bigan_jax.evaluate(tmp_path / "run", other)


def test_exported_graph_ignores_what_is_outside(runs, tmp_path, monkeypatch):
    """The check compares scores of images that are bright outside."""
    home, _ = runs
    monkeypatch.setattr(phantom, "draw", draw_with_patch)
    draw_with_patch.roi = home / "plain" / "roi.png"
    assert export(home / "plain", tmp_path / "artifact", "stablehlo").images == 10


def test_fitted_detector_in_python_scores_pixels_inside(tmp_path):
    Image.fromarray(ROI).save(tmp_path / "mask.png")
    images = np.random.default_rng(0).integers(90, 130, (40, *ROI.shape), np.uint8)
    detector = bigan_jax.AnomalyDetector(
        "mahalanobis", image_size=SIZE, config={"data.roi": str(tmp_path / "mask.png")}
    )
    detector.fit(images)
    (tmp_path / "mask.png").unlink()
    detector.save(tmp_path / "saved")
    loaded = bigan_jax.AnomalyDetector.load(tmp_path / "saved")
    changed = np.where(ROI, images, 255)
    np.testing.assert_array_equal(loaded.score_samples(changed), detector.score_samples(images))
    np.testing.assert_array_equal(loaded.explain(changed), detector.explain(images))
    changed[:, 10:18, 10:20] = 255  # a defect inside
    assert (loaded.predict(changed) == -1).all()


def test_detectors_that_count_all_pixels_are_refused(tmp_path):
    Image.fromarray(ROI).save(tmp_path / "mask.png")
    fields = {"data.image_size": 64, "data.roi": str(tmp_path / "mask.png")}
    for module, argument in (symmetry, "phantom"), (improved_bigan, "phantom,features"):
        with pytest.raises(UserError, match=r"config\.data\.roi is not for .*: its score counts all pixels"):
            build(parse_settings(configured(module, argument, fields)), 1, 1)
    with pytest.raises(UserError, match=r"config\.score\.symmetry=on compares whole images"):
        parse_settings(configured(fcae, "phantom", fields | {"score.symmetry": "on"}))
    assert build(parse_settings(configured(mahalanobis, "phantom", fields)), 1, 1).detector.fit


def test_command_has_a_short_form():
    arguments = ["fcae:phantom", "--roi=mask.png"]
    values = console.make_command_parser("train", arguments, console.Parser).parse(arguments)
    assert getattr(values, "config.data.roi") == "mask.png"
