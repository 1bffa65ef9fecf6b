"""The PCA of feature maps against scikit-learn's."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA

from bigan_jax.detector import FITTED
from bigan_jax.models import feature_pca
from tests.helpers import features
from tests.helpers.training import limit_devices

AXES = 5


def create(**fields):
    fields = {"grid": features.GRID, "components": 7, "axes": AXES, "images": 64, "top": 0.2} | fields
    return feature_pca.create(shape=features.SHAPE, network=features.NETWORK, **fields)


@pytest.fixture(scope="module")
def fitted():
    """A detector and its state, fitted on one device on 21 images, which are no multiple of a batch."""
    patch = pytest.MonkeyPatch()
    limit_devices(patch, 1)
    detector = create()
    yield detector, features.fit(detector, features.random_images(21))
    patch.undo()


def reference(state, training, images, axes):
    """Returns the length of each cell's residual, in float64."""
    params = state.params[FITTED]
    rows, new = (features.reference_projection(x, params) for x in (training, images))
    pca = PCA(axes, svd_solver="full").fit(rows.reshape(len(rows), -1))
    flat = new.reshape(len(new), -1)
    residual = flat - pca.inverse_transform(pca.transform(flat))
    return np.linalg.norm(residual.reshape(new.shape), axis=-1)


def test_score_and_map_are_those_of_scikit_learn(fitted):
    detector, state = fitted
    images = features.random_images(6, seed=1)
    score, anomaly_map = features.score(detector, state, images)
    cells = reference(state, features.random_images(21), images, AXES)
    # The kept maps have 11 bits.
    np.testing.assert_allclose(score, np.sort(cells, axis=1)[:, -4:].mean(1), rtol=2e-3)  # 20 % of 16 cells, rounded up
    expected = jax.image.resize(cells.reshape(6, 4, 4), (6, 16, 16), "linear")
    np.testing.assert_allclose(anomaly_map, expected, rtol=2e-3, atol=1e-3)


def test_training_images_fewer_than_axes_have_no_residual(fitted):
    images = features.random_images(4)
    detector = create(axes=9)
    state = features.fit(detector, images)
    axes = state.params[FITTED]["axes"]
    assert (np.abs(axes).sum(1) > 0).tolist() == [True] * 3 + [False] * 6
    own, _ = features.score(detector, state, images)
    new, _ = features.score(detector, state, features.random_images(4, seed=1))
    assert own.max() < 0.02 * new.min()


def test_one_and_four_devices_agree(fitted, monkeypatch):
    detector, state = fitted
    limit_devices(monkeypatch, 4)
    other = features.fit(detector, features.random_images(21))
    images = features.random_images(6, seed=1)
    for one, four in zip(*(features.score(detector, s, images) for s in (state, other)), strict=True):
        np.testing.assert_allclose(one, four, rtol=5e-3)


def test_a_fixed_draw_is_kept_of_more_images(fitted):
    detector = create(images=10)
    training = features.random_images(21)
    state = features.fit(detector, training)
    images = features.random_images(3, seed=1)
    score, _ = features.score(detector, state, images)
    chosen = np.sort(np.random.default_rng(0).choice(21, 10, replace=False))
    cells = reference(state, training[chosen], images, AXES)
    np.testing.assert_allclose(score, np.sort(cells, axis=1)[:, -4:].mean(1), rtol=2e-3)


def test_region_of_interest_leaves_out_other_cells(fitted):
    roi = np.zeros((16, 16), bool)
    roi[4:, 8:] = True
    inside = (np.arange(4)[:, None] > 0) & (np.arange(4) > 1)
    detector = create(roi=roi)
    state = features.fit(detector, features.random_images(21))
    images, params = features.random_images(6, seed=1), state.params[FITTED]
    score, anomaly_map = features.score(detector, state, images)
    training, new = (
        features.reference_projection(x, params)[:, inside.ravel()] for x in (features.random_images(21), images)
    )
    pca = PCA(AXES, svd_solver="full").fit(training.reshape(21, -1))
    flat = new.reshape(6, -1)
    cells = np.linalg.norm((flat - pca.inverse_transform(pca.transform(flat))).reshape(new.shape), axis=-1)
    np.testing.assert_allclose(score, np.sort(cells, axis=1)[:, -2:].mean(1), rtol=2e-3)  # 20 % of 6 cells, rounded up
    grid = np.pad(cells.reshape(6, 3, 2), ((0, 0), (1, 0), (2, 0)), "edge")  # others have the nearest value
    expected = jax.image.resize(grid, (6, 16, 16), "linear")
    np.testing.assert_allclose(anomaly_map, expected, rtol=2e-3, atol=1e-3)
