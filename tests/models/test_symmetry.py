"""The symmetry detector: its statistics, score and map against NumPy, and a run from the command to a prediction."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

import bigan_jax
from bigan_jax.configs import symmetry as config_file
from bigan_jax.detector import Batch, inference_net
from bigan_jax.models import symmetry
from bigan_jax.training.fitting import Fitter
from tests.helpers.runs import configured
from tests.nn.test_symmetry import heads, slow_asymmetry

SHAPE = (64, 64, 1)


def asymmetric_heads(count, seed):
    """Heads with noise, as uint8."""
    noise = np.random.default_rng(seed).normal(size=(count, *SHAPE))
    images = heads(count, seed=seed) + 0.5 * gaussian_filter(noise, (0, 2, 2, 0))
    return np.round(255 * images.clip(0, 1)).astype(np.uint8)


def fitted(detector, images):
    state = Fitter(detector, SHAPE, 8).fit(images, 0)
    net = inference_net(detector, state, {})

    def score_and_map(values):
        batch = Batch(jnp.asarray(values, jnp.float32) / 255, jnp.zeros(len(values), jnp.int32))
        return jax.jit(lambda b: detector.score_and_map(net, b, None))(batch)

    return net.fitted, score_and_map


def test_scores_and_maps_equal_numpy():
    train, new = asymmetric_heads(13, 0), asymmetric_heads(5, 1)
    statistics, score_and_map = fitted(symmetry.create(shape=SHAPE), train)
    maps = abs(np.stack([slow_asymmetry(image / 255) for image in train]))
    deviation = gaussian_filter(maps.std(0), 1.5) + 0.2 * maps.std(0).mean()
    np.testing.assert_allclose(statistics.mean, gaussian_filter(maps.mean(0), 1.5), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(statistics.deviation, deviation, rtol=1e-3)

    score, anomaly_map = score_and_map(new)
    difference = np.stack([slow_asymmetry(image / 255) for image in new])
    z = (abs(difference) - gaussian_filter(maps.mean(0), 1.5)) / deviation
    expected = np.sort(z.reshape(5, -1), axis=1)[:, -41:].mean(1)
    np.testing.assert_allclose(score, expected, rtol=2e-3)
    np.testing.assert_allclose(anomaly_map, np.maximum(difference, 0), atol=1e-3)


def test_training_images_are_hardly_known():
    """Their own scores are nearly those of new images, so the statistics need no folds."""
    train, new = asymmetric_heads(200, 2), asymmetric_heads(200, 3)
    _, score_and_map = fitted(symmetry.create(shape=SHAPE), train)
    known, unknown = (np.asarray(score_and_map(images)[0]) for images in (train, new))
    assert abs(known.mean() - unknown.mean()) < 0.4 * unknown.std()


def test_run_finds_defects_of_heads_and_loads(tmp_path):
    fields = {"data.category": "head", "data.image_size": 32, "data.phantom_normal": 90, "data.phantom_anomalous": 30}
    evaluation = bigan_jax.train(configured(config_file, "phantom", fields), tmp_path)
    assert evaluation["scores"].keys() == {"native"} and evaluation["scores"]["native"]["auroc"] > 0.75
    scorer = bigan_jax.load(tmp_path)  # there are no statistics of a calibrated score
    images = asymmetric_heads(3, 0)[:, ::2, ::2]
    prediction = scorer.predict(list(images))
    np.testing.assert_array_equal(prediction.decision, prediction.score >= evaluation["scores"]["native"]["threshold"])
