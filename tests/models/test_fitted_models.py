"""Properties that all fitted detectors have, and each one against an independent computation."""

import importlib
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf, shrunk_covariance
from sklearn.decomposition import PCA

import bigan_jax
from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.data.streaming import LazyImages
from bigan_jax.data.thumbnails import thumbnails
from bigan_jax.detector import Batch, inference_net
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.scorer import AnomalyScorer, score_names
from bigan_jax.models import mahalanobis, mean_image, nearest_neighbor, patch_gaussian, pca
from bigan_jax.nn import classical, feature_maps
from bigan_jax.nn.feature_maps import FeatureNetwork
from bigan_jax.runtime.stop_signals import Stopped
from bigan_jax.training import fit_loop, fitting
from bigan_jax.training.fitting import Fitter
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.training import assert_near, limit_devices
from tests.models.test_all_models import FITTED, SHAPE

ALL = pytest.mark.parametrize("name", FITTED)
SMALL = {
    "data.image_size": SHAPE[0],
    "data.channels": 1,
    "data.phantom_normal": 60,
    "data.phantom_anomalous": 10,
    "batch_size": 16,
}


class ToyFeatures(nn.Module):
    """Two feature maps of different resolutions."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.tanh(nn.Conv(6, (3, 3), strides=2)(images))
        return x, nn.tanh(nn.Conv(10, (3, 3), strides=2)(x))


def toy_network(*_):
    module = ToyFeatures()
    return FeatureNetwork(module, module.init(jax.random.key(1), jnp.zeros((1, *SHAPE)), train=False))


@pytest.fixture(autouse=True)
def toy_features(monkeypatch):
    monkeypatch.setattr(feature_maps, "vgg16_network", toy_network)


def small_config(name, **fields):
    config = importlib.import_module(f"configs.{name}").get_config("phantom")
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(SMALL | fields)
        small = {
            "images": 128,
            "grid": 4,
            "components": 5,
            "size": 8,
            "candidates": 200,
            "patches": 50,
            "search_components": 3,
        }
        config.model.update({field: value for field, value in small.items() if field in config.model})
    return config


def tiny(name):
    return build(parse_settings(small_config(name)), 1, steps_per_epoch=1).detector


@pytest.fixture(scope="module")
def images():
    """Disks on noise; with an odd number, the last batch has padding."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    center, radius = rng.uniform(10, 22, (21, 2, 1, 1)), rng.uniform(4, 10, (21, 1, 1))
    disks = np.hypot(y - center[:, 0], x - center[:, 1]) < radius
    return (disks * 150 + rng.integers(0, 60, (21, *SHAPE[:2]))).astype(np.uint8)[..., None]


@pytest.fixture
def one_device(monkeypatch):
    limit_devices(monkeypatch, 1)


def fitted(detector, images, batch_size=8):
    return Fitter(detector, SHAPE, batch_size).fit(images, seed=3)


def scorer_of(detector, state):
    return AnomalyScorer(
        detector, state, ScoreFormula({"mse": 0.7, "ssim": 0.3}), SHAPE, batch_size=8, name=score_names(detector)[0]
    )


def net_of(detector, images):
    return inference_net(detector, fitted(detector, images), detector.frozen)


def batch_of(images):
    return Batch(jnp.asarray(images / 255, jnp.float32), jnp.zeros(len(images), jnp.int32))


@ALL
def test_images_are_scored_independently(name, images, one_device):
    detector = tiny(name)
    scorer = scorer_of(detector, fitted(detector, images))
    scores, single = scorer.score(images[:9]), scorer.score(images[5:6])
    assert np.isfinite(scores.score).all() and scores.error_map.shape == (9, *SHAPE[:2])
    np.testing.assert_allclose(single.score[0], scores.score[5], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(single.error_map[0], scores.error_map[5], rtol=1e-3, atol=1e-4)


@ALL
def test_one_and_four_devices_agree(name, images, monkeypatch):
    states = []
    for devices in (1, 4):
        limit_devices(monkeypatch, devices)
        states.append(fitted(tiny(name), images))
    _assert_same_scores(name, images, *states)


def test_streamed_images_and_other_batches_give_the_same_fit(images, one_device):
    detector = tiny("patch_gaussian")
    lazy = LazyImages(lambda i: images[i], [str(i) for i in range(len(images))], SHAPE)
    _assert_same_scores("patch_gaussian", images, fitted(detector, images), fitted(detector, lazy, batch_size=5))


def _assert_same_scores(name, images, *states):
    """Compares scores: factors of matrices may differ where products do not."""
    detector = tiny(name)
    scores = [scorer_of(detector, state).score(images[:4]) for state in states]
    assert_near(scores[0].score, scores[1].score, 1e-3)
    assert_near(scores[0].error_map, scores[1].error_map, 1e-3)


@ALL
def test_run_trains_evaluates_predicts_and_is_compared(name, tmp_path, one_device):
    evaluation = bigan_jax.train(small_config(name), tmp_path / "run")
    passes = [row["phase"] for row in read_train_log(tmp_path / "run")]
    assert passes == [fit_pass.name for fit_pass in tiny(name).fit.passes]
    assert evaluation["epochs"] == len(passes)
    assert set(evaluation["scores"]) == set(score_names(tiny(name)))
    assert bigan_jax.evaluate(tmp_path / "run")["scores"] == evaluation["scores"]
    scorer = bigan_jax.load(tmp_path / "run")
    prediction = scorer.predict([np.zeros((40, 30), np.uint8)])
    assert np.isfinite(prediction.score).all() and prediction.error_map.shape == (1, *SHAPE[:2])
    result = bigan_jax.compare(tmp_path / "run", tmp_path / "comparison")
    (row,) = result.datasets[0].rows
    assert row.values["auroc"].mean == evaluation["scores"][evaluation["score_name"]]["auroc"]


@pytest.mark.parametrize("how", ["signal", "crash"])
def test_resumed_fit_equals_uninterrupted_one(how, tmp_path, monkeypatch, one_device):
    config = small_config("patch_gaussian", batch_size=4)
    monkeypatch.setattr(fit_loop, "_SAVE_EVERY", 0.0)
    bigan_jax.train(config, tmp_path / "uninterrupted")
    original, calls = Fitter.sums, []

    def sums(self, *arguments):
        for value in original(self, *arguments):
            calls.append(1)
            if len(calls) in (3, 14):  # in both passes
                if how == "crash":
                    yield value
                    raise RuntimeError("crash")
                os.kill(os.getpid(), signal.SIGTERM)
            yield value

    monkeypatch.setattr(Fitter, "sums", sums)
    stops = 0
    while not (tmp_path / "resumed" / "evaluation.json").exists():
        try:
            bigan_jax.train(config, tmp_path / "resumed")
        except (Stopped, RuntimeError):
            stops += 1
            names = CheckpointManager(tmp_path / "resumed", read_only=True).names()
            assert names[-1][1] > 0  # within a pass
    assert stops == 2
    for file in ("scores.csv",):
        contents = [(tmp_path / run / file).read_bytes() for run in ("uninterrupted", "resumed")]
        assert contents[0] == contents[1]


def test_unfinished_fit_is_not_evaluated(tmp_path, monkeypatch, one_device):
    def crash(self, number, *_):
        raise RuntimeError("crash")

    finish = Fitter.finish
    monkeypatch.setattr(
        Fitter, "finish", lambda self, number, *rest: crash(self, number) if number else finish(self, number, *rest)
    )
    with pytest.raises(RuntimeError, match="crash"):
        bigan_jax.train(small_config("patch_gaussian"), tmp_path)
    with pytest.raises(bigan_jax.UserError, match="fitted 1 of 2 passes"):
        bigan_jax.evaluate(tmp_path)


def test_sums_keep_the_digits_of_many_images():
    """A plain float32 sum of 100,000 terms of 1 + 1e-4 loses them all but for three digits."""
    terms = np.full(10_000, 1 + 1e-4, np.float32)
    add = jax.jit(
        lambda sums: jax.lax.fori_loop(0, len(terms), lambda i, s: fitting._add(*s, jnp.asarray(terms)[i]), sums)
    )
    total, lost = add((jnp.float32(1e6), jnp.float32(0)))
    exact = 1e6 + terms.astype(np.float64).sum()
    assert fitting._in_float64(np.asarray(total), np.asarray(lost)) == pytest.approx(exact, abs=0.02)
    plain = np.float32(1e6)
    for term in terms:
        plain += term
    assert abs(plain - exact) > 0.5


def test_mean_image(images, one_device):
    net = net_of(mean_image.create(shape=SHAPE), images)
    np.testing.assert_allclose(net.fitted["mean"], (images / 255.0).mean(0), atol=1e-6)


def test_pca_is_that_of_scikit_learn(images, one_device):
    detector = pca.create(shape=SHAPE, components=3, images=64)
    reference = PCA(3).fit((images / 255.0).reshape(len(images), -1))
    flat = (images[:5] / 255.0).reshape(5, -1)
    expected = np.clip(reference.inverse_transform(reference.transform(flat)), 0, 1)
    actual = detector.reconstruct(net_of(detector, images), batch_of(images[:5]), None)
    np.testing.assert_allclose(np.asarray(actual).reshape(5, -1), expected, atol=1e-3)


def test_pca_of_fewer_images_than_components(images, one_device):
    detector = pca.create(shape=SHAPE, components=64, images=64)
    actual = detector.reconstruct(net_of(detector, images), batch_of(images), None)
    np.testing.assert_allclose(actual, images / 255, atol=1e-3)


def test_nearest_neighbor_is_that_of_brute_force(images, one_device):
    detector = nearest_neighbor.create(shape=SHAPE, images=64)
    actual = detector.reconstruct(net_of(detector, images[:15]), batch_of(images[15:]), None)
    distance = cdist(images[15:].reshape(6, -1) / 255.0, images[:15].reshape(15, -1) / 255.0)
    np.testing.assert_allclose(actual, images[distance.argmin(1)] / 255, atol=1e-6)


def test_mahalanobis_distance_is_that_of_scikit_learn(images, one_device):
    detector = mahalanobis.create(shape=SHAPE, size=4)
    score, maps = detector.score_and_map(net_of(detector, images), batch_of(images[:6]), None)
    small = thumbnails(images / 255.0, 4)
    expected = LedoitWolf().fit(small).mahalanobis(small[:6])
    np.testing.assert_allclose(score, expected, rtol=1e-3)
    # Each pixel of a thumbnail is enlarged to 8x8.
    np.testing.assert_allclose(np.asarray(maps).sum((1, 2)) / 64, expected, rtol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_ledoit_wolf_from_sums(offset):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 7)) @ rng.normal(size=(7, 7)) + offset
    reference = LedoitWolf().fit(x)
    weight = np.r_[np.ones(40), np.zeros(5)]
    normal, shrinkage = classical.ledoit_wolf(classical.moment_sums(np.r_[x, rng.normal(size=(5, 7))], weight))
    assert shrinkage == pytest.approx(reference.shrinkage_)
    np.testing.assert_allclose(normal.mean, reference.location_)
    np.testing.assert_allclose(np.linalg.inv(normal.whitening @ normal.whitening), reference.covariance_)


def _numpy_features(network, images, grid):
    """Features of each layer on the grid in float64, [n cells c], computed pixel by pixel."""
    layers = []
    for maps in network.module.apply(network.variables, jnp.asarray(images / 255, jnp.float32), train=False):
        maps = np.asarray(maps, np.float64)
        padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
        h, w = maps.shape[1:3]
        averaged = sum(padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9
        cells = averaged.reshape(len(maps), grid, h // grid, grid, w // grid, -1).mean((2, 4))
        layers.append(cells.reshape(len(maps), grid * grid, -1))
    return layers


def test_patch_gaussian_against_float64(images, one_device):
    network, grid = toy_network(), 4
    detector = patch_gaussian.create(shape=SHAPE, network=network, grid=grid, components=5, top=0.1)
    net = net_of(detector, images)
    layers = _numpy_features(network, images, grid)
    scaled = []
    for x in layers:
        flat = x.reshape(-1, x.shape[-1])
        scaled.append((x - flat.mean(0)) / np.sqrt(flat.var(0).sum()))
    projected = np.concatenate(scaled, -1) @ np.asarray(net.fitted["projection"], np.float64)

    def parts(train, test):
        """Returns the logarithms of the local and the global part, and the cells' distances."""
        distance = np.empty((len(test), grid * grid))
        for cell in range(grid * grid):
            x = projected[train, cell]
            covariance = shrunk_covariance(np.cov(x.T, bias=True), 0.05) + 1e-6 * np.eye(5)
            offset = projected[test, cell] - x.mean(0)
            distance[:, cell] = np.sqrt(np.einsum("bi,ij,bj->b", offset, np.linalg.inv(covariance), offset))
        means = [x.mean(1) for x in scaled]
        squared = sum(LedoitWolf().fit(m[train]).mahalanobis(m[test]) for m in means)
        local = np.sort(distance)[:, -2:].mean(1)  # a tenth of 16 cells, rounded up
        return np.log(np.stack([local, squared], 1)), distance

    everything = np.arange(len(images))
    fold = everything * 5 // len(images)
    held_out = np.concatenate([parts(everything[fold != k], everything[fold == k])[0] for k in range(5)])
    logs, distance = parts(everything, everything[:6])
    expected = ((logs - held_out.mean(0)) / held_out.std(0)).max(1)
    score, maps = detector.score_and_map(net, batch_of(images[:6]), None)
    np.testing.assert_allclose(score, expected, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(maps, feature_maps.to_image_size(jnp.asarray(distance), SHAPE), rtol=0.02)
