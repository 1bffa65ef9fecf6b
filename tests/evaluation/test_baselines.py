"""Baselines against closed forms, and against values measured on the bottle images."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks import splits
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import fcae
from bigan_jax.data import thumbnails
from bigan_jax.data.loading import load_dataset
from bigan_jax.errors import UserError
from bigan_jax.evaluation import anomaly_score, baselines
from bigan_jax.evaluation.anomaly_score import ScoreFormula, ScoreTerms
from bigan_jax.evaluation.calibrated_score import MapMoments, calibrated_score
from bigan_jax.nn import classical
from tests.helpers.runs import configured

BOTTLE = Path(__file__).parents[3] / "shared/data/mvtec_ad/bottle"


RECONSTRUCTING = "mean_image", "pca_8", "pca_64", "nearest_neighbor"
FORMULA = ScoreFormula({"mse": 1.0})


def squared_error(images, reconstructions):
    return ((images - reconstructions) ** 2).mean((1, 2, 3))


def compute_terms(images, reconstructions):
    maps = ((images - reconstructions) ** 2).mean(-1)
    return ScoreTerms({"mse": maps.mean((1, 2))}, {"mse": maps})


def paper_scores(train, test):
    """By the squared error."""
    return baselines.baseline_scores(train, test, compute_terms, FORMULA)["paper"]


def random_images(count, size=32, channels=1, seed=0):
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("size, channels", [(32, 1), (20, 3), (12, 1)])
def test_all_baselines_score_all_images(size, channels):
    train, test = random_images(30, size, channels), random_images(7, size, channels, seed=1)
    both = baselines.baseline_scores(train, test, compute_terms, FORMULA)
    assert list(both) == ["paper", "calibrated"]
    for scores in both.values():
        assert list(scores) == [*RECONSTRUCTING, "mahalanobis_16", "mean_intensity", "corner_pixels"]
        for name, score in scores.items():
            assert score.shape == (7,) and np.isfinite(score).all(), name
    for name in both["paper"]:  # two scores of a reconstruction, one of everything else
        assert (both["paper"][name] != both["calibrated"][name]).any() == (name in RECONSTRUCTING)


def test_closed_forms():
    train, test = random_images(9), random_images(4, seed=1)
    test[0] = train[5]
    scores = paper_scores(train, test)
    unit = train / 255, test / 255
    assert scores["mean_image"] == pytest.approx(squared_error(unit[1], unit[0].mean(0)), rel=1e-4)
    assert scores["mean_intensity"] == pytest.approx(unit[1].mean((1, 2, 3)), rel=1e-5)
    corners = [unit[1][:, y, x] for y in (slice(2), slice(-2, None)) for x in ([0, 1], [-2, -1])]
    assert scores["corner_pixels"] == pytest.approx(np.mean(corners, (0, 2, 3, 4)), rel=1e-5)
    nearest = [min(squared_error(image, unit[0])) for image in unit[1]]
    assert scores["nearest_neighbor"] == pytest.approx(nearest, rel=1e-4)
    assert scores["nearest_neighbor"][0] == 0
    # Eight components span nine centered images: a training image is reconstructed exactly.
    assert scores["pca_64"][0] == pytest.approx(0, abs=1e-8)
    assert scores["pca_64"] == pytest.approx(scores["pca_8"])


@pytest.mark.parametrize("max_exact, tolerance", [(classical.MAX_EXACT, 1e-3), (0, 1e-2)])
def test_pca_equals_the_singular_value_decomposition(monkeypatch, max_exact, tolerance):
    monkeypatch.setattr(classical, "MAX_EXACT", max_exact)
    train, test = random_images(60, 16), random_images(5, 16, seed=1)
    # A low-rank trend, as in real images: noise alone has no leading components.
    trend = np.linspace(0, 1, 60)[:, None, None, None] * np.arange(16)[:, None] * 12
    train = (train // 8 + trend).astype(np.uint8)
    scores = paper_scores(train, test)
    flat, new = train.reshape(60, -1) / 255, test.reshape(5, -1) / 255
    mean = flat.mean(0)
    all_axes = np.linalg.svd(flat - mean, full_matrices=False)[2]
    for name, axes in (("pca_8", all_axes[:8]), ("pca_64", all_axes[:59])):
        reconstruction = np.clip(mean + (new - mean) @ axes.T @ axes, 0, 1)
        assert scores[name] == pytest.approx(((new - reconstruction) ** 2).mean(1), rel=tolerance)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_calibrated_scores_are_cross_fitted(count):
    """Each fold of training images is reconstructed by the mean of the others, or by the nearest of them."""
    train, test = random_images(count, 12), random_images(4, 12, seed=1)
    scores = baselines.baseline_scores(train, test, compute_terms, FORMULA)["calibrated"]
    unit, new = train / 255, test / 255
    fold = np.arange(count) * 5 // count
    maps = {"mean_image": [], "nearest_neighbor": []}
    for i, image in enumerate(unit):
        others = unit[fold != fold[i]]
        nearest = others[squared_error(others, image).argmin()]
        for name, other in ("mean_image", others.mean(0)), ("nearest_neighbor", nearest):
            maps[name].append(((image - other) ** 2).mean(-1))
    nearest = unit[[squared_error(unit, image).argmin() for image in new]]
    for name, reconstruction in ("mean_image", unit.mean(0)), ("nearest_neighbor", nearest):
        moments = MapMoments(["mse"])
        moments.add({"mse": np.array(maps[name])})
        expected = calibrated_score(((new - reconstruction) ** 2).mean(-1), moments.statistics({"mse": 1.0}))
        assert scores[name] == pytest.approx(expected, rel=1e-3), name


def test_identical_images_have_no_axes():
    train = np.full((5, 12, 12, 1), 100, np.uint8)
    test = np.stack([train[0], train[0] + 50])
    scores = paper_scores(train, test)
    expected = [0, (50 / 255) ** 2]
    for name in ("mean_image", "pca_8", "pca_64", "nearest_neighbor"):
        assert scores[name] == pytest.approx(expected, abs=1e-6), name


def test_test_images_do_not_affect_each_other():
    train, test = random_images(30), random_images(6, seed=1)
    together = baselines.baseline_scores(train, test, compute_terms, FORMULA)
    alone = baselines.baseline_scores(train, test[2:3], compute_terms, FORMULA)
    for score, by_baseline in together.items():
        for name, values in by_baseline.items():
            assert alone[score][name][0] == pytest.approx(values[2], rel=1e-4), (score, name)


def test_thumbnails_average_areas():
    images = np.random.default_rng(0).random((2, 64, 32, 3)).astype(np.float32)
    blocks = images.reshape(2, 16, 4, 16, 2, 3).mean((2, 4)).reshape(2, -1)
    assert thumbnails.thumbnails(images) == pytest.approx(blocks, rel=1e-5)
    odd = np.random.default_rng(0).random((2, 50, 23, 1)).astype(np.float32)
    assert thumbnails.thumbnails(odd).mean(1) == pytest.approx(odd.mean((1, 2, 3)), rel=1e-5)
    assert thumbnails.thumbnails(np.ones((1, 10, 37, 1), np.float32)) == pytest.approx(1)


def test_corners_are_eight_pixels_at_128():
    image = np.zeros((1, 128, 128, 1), np.float32)
    image[0, :8, :8], image[0, :8, -8:], image[0, -8:, :8], image[0, -8:, -8:] = 1, 2, 3, 4
    assert thumbnails.corners(image).tolist() == [[1, 2, 3, 4]]


def test_only_brightness_gets_its_better_sign():
    label = np.array([False, False, True, True])
    descending = np.array([4.0, 3.0, 2.0, 1.0])
    aurocs = baselines.baseline_aurocs({"mean_image": descending, "mean_intensity": descending}, label)
    assert aurocs == {"mean_image": 0.0, "mean_intensity": 1.0}
    assert baselines.baseline_aurocs({"mean_intensity": descending}, label & False) == {"mean_intensity": None}


def test_invalid_input():
    with pytest.raises(UserError, match="at least two training"):
        paper_scores(random_images(1), random_images(2))
    with pytest.raises(UserError, match="at least one test"):
        paper_scores(random_images(3), random_images(0))
    with pytest.raises(UserError, match=r"got \(32, 32, 1\) and \(16, 16, 1\)"):
        paper_scores(random_images(2), random_images(2, 16))


def read(paths):
    images = (Image.open(path).convert("L") for path in paths)
    resized = [image.resize((128, 128), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in resized])[..., None]


@pytest.mark.skipif(not BOTTLE.is_dir(), reason=f"no bottle images at {BOTTLE}")
def test_bottle_gives_the_known_values():
    @jax.jit
    def terms(images, reconstructions):
        return anomaly_score.terms(images, reconstructions)

    def compute_terms(images, reconstructions):
        return jax.tree.map(np.asarray, terms(images, reconstructions))

    formula = ScoreFormula({"mse": 0.7, "ssim": 0.3})
    paths = sorted(BOTTLE.glob("test/*/*.png"))
    label = np.array([path.parent.name != "good" for path in paths])
    train = read(sorted(BOTTLE.glob("train/good/*.png")))
    scores = baselines.baseline_scores(train, read(paths), compute_terms, formula)
    aurocs = baselines.baseline_aurocs(scores["paper"], label)
    del aurocs["pca_8"]
    assert aurocs == pytest.approx(
        {
            "mean_image": 0.789,
            "pca_64": 0.966,
            "nearest_neighbor": 0.845,
            "mahalanobis_16": 0.994,
            "mean_intensity": 0.559,
            "corner_pixels": 0.500,
        },
        abs=0.005,
    )


def test_each_split_has_its_own_row():
    """By the mean intensity, which is quickly had without the table."""
    fields = {"data.image_size": 32, "data.phantom_normal": 60, "data.phantom_anomalous": 20}
    config = configured(fcae, "phantom", fields)
    found = splits.table(config, 2)
    column = [name for _, name in found.columns].index("mean_intensity")
    values = []
    for split, row in enumerate(found.rows[:2]):
        dataset = load_dataset(dataclasses.replace(parse_settings(config).data, split_seed=split))
        assert row[:3] == [str(split), len(dataset.train.label), len(dataset.calibration.label)]
        means = dataset.test.image.mean((1, 2, 3))
        value = roc_auc_score(dataset.test.label, means)
        values.append(max(value, 1 - value))
        assert row[column] == pytest.approx(values[-1])
    assert values[0] != values[1]
    assert found.rows[2][column].mean == pytest.approx(np.mean(values))
