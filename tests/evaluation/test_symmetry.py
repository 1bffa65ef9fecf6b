"""The test for symmetric data against SciPy, and the asymmetry in the calibrated score."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

import bigan_jax
from bigan_jax.commands.build import build
from bigan_jax.commands.load import make_scorer
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import mean_image
from bigan_jax.data import loading
from bigan_jax.errors import UserError
from bigan_jax.evaluation import symmetry
from bigan_jax.evaluation.anomaly_score import ScoreSettings
from bigan_jax.evaluation.assess import assess
from bigan_jax.evaluation.result import SymmetryResult
from bigan_jax.training.fitting import Fitter
from tests.helpers.runs import configured
from tests.nn.test_symmetry import heads, slow_asymmetry, slow_shift


def as_uint8(images):
    return np.round(255 * images.clip(0, 1)).astype(np.uint8)


def slow_ratio(images, group):
    """By loops over images [n 64 64 c] in float64."""
    gray = images.astype(np.float64).mean(-1) / 255
    smoothed = [gaussian_filter(x, 3) for x in gray]
    mirrors = [gaussian_filter(np.roll(np.fliplr(x), slow_shift(x), axis=1), 3) for x in gray]
    ratios = []
    for x, mirror, own in zip(smoothed, mirrors, group, strict=True):
        others = [y.ravel() for y, other in zip(smoothed, group, strict=True) if other != own]
        ratios.append(((x - mirror) ** 2).sum() / cdist([x.ravel()], others, "sqeuclidean").min())
    return np.median(ratios)


# --- the test ---


@pytest.mark.parametrize("channels", [1, 3])
def test_ratio_equals_loops_and_nearest_images_of_scipy(channels):
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(23, 64, 64, channels)), (0, 2, 2, 0))
    images = as_uint8(heads(23) + 0.3 * noise)
    group = np.array([f"patient{i // 3}" for i in range(23)])
    images[1] = images[0]  # the nearest image is of the same group
    assert symmetry.symmetry_ratio(images, group) == pytest.approx(slow_ratio(images, group), rel=1e-4)


def test_symmetric_heads_are_and_phantoms_are_not():
    """The domain `head` lies between: its folds differ between left and right nearly as much as between heads."""
    images = as_uint8(heads(30) + 0.01 * np.random.default_rng(0).normal(size=(30, 64, 64, 1)))
    assert symmetry.symmetry_ratio(images, np.arange(30)) < symmetry.LIMIT / 2
    for category in "bottle", "leaf":
        fields = {"data.category": category, "data.phantom_normal": 60, "data.phantom_anomalous": 2}
        config = configured(mean_image, "phantom", fields)
        train = loading.load_dataset(parse_settings(config).data).train
        assert symmetry.symmetry_ratio(train.image, train.group) > 1.5 * symmetry.LIMIT


def test_ratio_hardly_depends_on_the_image_size():
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(20, 64, 64, 1)), (0, 3, 3, 0))
    images = as_uint8(heads(20) + 0.5 * noise)
    larger = images.repeat(2, 1).repeat(2, 2)
    expected = symmetry.symmetry_ratio(images, np.arange(20))
    assert symmetry.symmetry_ratio(larger, np.arange(20)) == pytest.approx(expected)
    smaller = as_uint8((images / 255).reshape(20, 32, 2, 32, 2, 1).mean((2, 4)))
    assert symmetry.symmetry_ratio(smaller, np.arange(20)) == pytest.approx(expected, rel=0.1)


def test_ratio_is_undefined_without_another_group_or_differences():
    images = as_uint8(heads(5))
    assert symmetry.symmetry_ratio(images, np.zeros(5)) is None
    assert symmetry.symmetry_ratio(images[:1], np.zeros(1)) is None
    assert symmetry.symmetry_ratio(images[[0] * 5], np.arange(5)) is None


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ((0.2964, True, True), ["These data are symmetric: ratio 0.296, below 0.5", "The calibrated score includes"]),
        ((0.2964, True, False), ["These data are symmetric: ratio 0.296, below 0.5"]),
        ((1.5, False, False), ["These data are not symmetric: ratio 1.500, not below 0.5"]),
        ((None, False, True), ["The calibrated score includes"]),
        ((None, False, False), []),
    ],
)
def test_notes_state_the_ratio_and_what_depends_on_it(result, expected):
    notes = list(symmetry.notes(SymmetryResult(*result)))
    assert [note.startswith(start) for note, start in zip(notes, expected, strict=True)] == [True] * len(expected)


# --- the score ---

SMALL = {"data.image_size": 32, "data.phantom_normal": 120, "data.phantom_anomalous": 10, "batch_size": 16}


def one_sided(images, where):
    """Brightens the left half of some images."""
    changed = images.astype(np.float64)
    changed[where, 10:16, 8:14] += 60
    return changed.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted():
    """Settings, a dataset of symmetric heads with defects on one side, and the detector and state of its mean image."""
    config = configured(mean_image, "phantom", SMALL)
    settings = parse_settings(config)
    dataset = loading.load_dataset(settings.data)
    replaced = []
    for seed, images in enumerate((dataset.train, dataset.calibration, dataset.test)):
        noise = np.random.default_rng(seed).normal(size=(len(images.label), 32, 32, 1))
        heads_of_split = as_uint8(heads(len(images.label), 32, seed=seed) + 0.02 * noise)
        replaced.append(images._replace(image=one_sided(heads_of_split, images.label)))
    dataset = dataset._replace(train=replaced[0], calibration=replaced[1], test=replaced[2])
    detector = build(settings, 1, steps_per_epoch=1).detector
    state = Fitter(detector, settings.data.image_shape, 16).fit(dataset.train.image, 0)
    return settings, dataset, detector, state


def assessed(fitted, mode, **replaced):
    settings, dataset, detector, state = fitted
    score = dataclasses.replace(settings.score, symmetry=mode)
    scorer = make_scorer(settings, detector, state, name=score.name)
    identity = settings.identity
    return scorer, assess(scorer, dataset._replace(**replaced), score, settings.threshold, identity)


def test_symmetric_data_switch_asymmetry_on(fitted):
    _, dataset, *_ = fitted
    scorer, automatic = assessed(fitted, "auto")
    _, off = assessed(fitted, "off")
    assert automatic.result.symmetry.symmetric and automatic.result.symmetry.used
    assert off.result.symmetry == SymmetryResult(automatic.result.symmetry.ratio, symmetric=True, used=False)

    maps = abs(np.stack([slow_asymmetry(image / 255) for image in dataset.train.image]))
    mean, deviation = gaussian_filter(maps.mean(0), 1.5), gaussian_filter(maps.std(0), 1.5) + 0.2 * maps.std(0).mean()
    z = (abs(np.stack([slow_asymmetry(image / 255) for image in dataset.test.image])) - mean) / deviation
    expected = np.sort(np.maximum(z, 0).reshape(len(z), -1) ** 2, axis=1)[:, -11:].mean(1)
    np.testing.assert_allclose(automatic.test.asymmetry, expected, rtol=5e-3)
    np.testing.assert_allclose(automatic.test.columns["asymmetry"], expected, rtol=5e-3)
    by_name, without = automatic.test.by_name, off.test.by_name
    np.testing.assert_allclose(by_name["calibrated"], without["calibrated"] + automatic.test.asymmetry, rtol=1e-5)
    np.testing.assert_array_equal(by_name["paper"], without["paper"])
    np.testing.assert_array_equal(automatic.test.error_map, off.test.error_map)
    assert off.test.asymmetry is None and "asymmetry" not in off.test.columns

    label = dataset.test.label
    assert roc_auc_score(label, by_name["calibrated"]) > roc_auc_score(label, without["calibrated"])
    used = [row.auroc for row in automatic.result.score_table if row.used]
    assert used == pytest.approx([automatic.result.main.auroc])
    # The baseline of this detector has the same score.
    baseline = automatic.result.main.baselines["mean_image"]
    assert baseline != off.result.main.baselines["mean_image"]
    assert baseline == pytest.approx(roc_auc_score(label, by_name["calibrated"]), abs=0.02)
    again = scorer.score(dataset.test.image[:3])
    np.testing.assert_allclose(again.by_name["calibrated"], by_name["calibrated"][:3], rtol=1e-4)


def test_statistics_depend_on_training_images_alone(fitted):
    """What sets the threshold has no part in them: the promise would not hold."""
    _, dataset, *_ = fitted
    first, _ = assessed(fitted, "auto")
    other = {
        name: getattr(dataset, name)._replace(image=255 - getattr(dataset, name).image)
        for name in ("calibration", "test")
    }
    second, _ = assessed(fitted, "auto", **other)
    np.testing.assert_array_equal(first.asymmetry, second.asymmetry)


def test_other_data_keep_their_scores(fitted):
    settings, _, detector, _ = fitted
    dataset = loading.load_dataset(settings.data)
    state = Fitter(detector, settings.data.image_shape, 16).fit(dataset.train.image, 0)
    results = {}
    for mode in "auto", "off", "on":
        scorer, assessment = assessed((settings, dataset, detector, state), mode)
        results[mode] = assessment
        assert assessment.result.symmetry.used == (scorer.asymmetry is not None) == (mode == "on")
        assert len(scorer.all_statistics) == 1 + (mode == "on")
    contents = [results[mode].result.as_dict() for mode in ("auto", "off")]
    for content in contents:
        assert content["score"].pop("symmetry") in ("auto", "off")
    assert contents[0] == contents[1]
    for name, values in results["auto"].test.by_name.items():
        np.testing.assert_array_equal(values, results["off"].test.by_name[name])
    assert (results["on"].test.by_name["calibrated"] > results["off"].test.by_name["calibrated"]).all()


def test_run_with_asymmetry_loads_with_the_same_scores(tmp_path):
    config = configured(mean_image, "phantom", SMALL | {"score.symmetry": "on"})
    evaluation = bigan_jax.train(config, tmp_path)
    assert evaluation["symmetry"]["used"] and not evaluation["symmetry"]["symmetric"]
    scorer = bigan_jax.load(tmp_path)
    calibration = loading.load_dataset(parse_settings(config).data).calibration
    scores = evaluation["scores"]["calibrated"]["calibration_scores"]
    np.testing.assert_allclose(scorer.score(calibration.image).by_name["calibrated"], scores, rtol=1e-4)
    evaluation["symmetry"]["used"] = False
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    with pytest.raises(UserError, match=r"pixel_statistics\.npy is missing or not what an evaluation writes"):
        bigan_jax.load(tmp_path)


def test_folds_include_asymmetry(tmp_path):
    fields = SMALL | {"score.symmetry": "on", "threshold.folds": 2}
    evaluation = bigan_jax.train(configured(mean_image, "phantom", fields), tmp_path)
    assert evaluation["symmetry"]["used"]
    scorer = bigan_jax.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    of_folds = [bigan_jax.load(tmp_path / f"fold{k}").score(images).by_name["calibrated"] for k in range(2)]
    np.testing.assert_array_equal(scorer.score(images).by_name["calibrated"], np.min(of_folds, axis=0))


def test_unknown_mode_is_refused():
    with pytest.raises(UserError, match=r"config.score.symmetry.*'of'.*Did you mean 'off'"):
        ScoreSettings({"mse": 1.0}, symmetry="of")
