"""The memory bank against brute force."""

from collections import deque

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bigan_jax.detector import FITTED
from bigan_jax.models import memory_bank
from bigan_jax.nn import classical
from bigan_jax.training.device_layout import first
from bigan_jax.training.fitting import Fitter
from tests.helpers import features
from tests.helpers.training import limit_devices

CELLS = features.GRID**2


def create(**fields):
    fields = {"grid": features.GRID, "components": 7, "candidates": 150, "bank": 40, "top": 0.2} | fields
    return memory_bank.create(shape=features.SHAPE, network=features.NETWORK, **fields)


@pytest.fixture
def one_device(monkeypatch):
    limit_devices(monkeypatch, 1)


def candidates(detector, images):
    """Returns the candidates of a fit's second pass, and the state before it."""
    fitter = Fitter(detector, features.SHAPE, 8)
    state = fitter.init(3)
    (sums,) = deque(fitter.sums(0, state, images), maxlen=1)
    state = fitter.finish(0, state, sums)
    (sums,) = deque(fitter.sums(1, state, images), maxlen=1)
    total, _ = jax.device_get(first(sums))
    return total["cells"], int(total["count"]), state


def test_every_image_has_the_same_number_of_candidates(one_device):
    images = features.random_images(21)
    cells, count, state = candidates(create(), images)
    assert count == 21 * 7 and not cells[count:].any()  # 150 // 21 = 7
    projected = features.reference_projection(images, state.params[FITTED])
    for i, own in enumerate(cells[:count].reshape(21, 7, -1)):
        distance = cdist(own, projected[i])
        np.testing.assert_allclose(distance.min(1), 0, atol=1e-4)
        assert len(set(distance.argmin(1))) == 7  # different cells
    draws = {tuple(cdist(own, projected[i]).argmin(1)) for i, own in enumerate(cells[:count].reshape(21, 7, -1))}
    assert len(draws) > 15  # not the same ones of each image


def test_few_images_give_all_cells(one_device):
    images = features.random_images(3)
    cells, count, state = candidates(create(), images)
    assert count == 3 * CELLS
    expected = features.reference_projection(images, state.params[FITTED]).reshape(-1, 7)
    np.testing.assert_allclose(cdist(cells[:count], expected).min(0), 0, atol=1e-4)


def test_more_images_than_candidates_are_drawn_from(one_device):
    images = features.random_images(21)
    cells, count, state = candidates(create(candidates=8), images)
    chosen = np.sort(np.random.default_rng(0).choice(21, 8, replace=False))
    projected = features.reference_projection(images[chosen], state.params[FITTED])
    assert count == 8
    np.testing.assert_allclose([cdist(c[None], p).min() for c, p in zip(cells, projected, strict=True)], 0, atol=1e-4)


def test_score_and_map_are_distances_to_the_nearest_of_the_bank(one_device):
    detector = create()
    state = features.fit(detector, features.random_images(21))
    fitted = state.params[FITTED]
    assert int(fitted["count"]) == 40 and len(np.unique(fitted["bank"], axis=0)) == 40
    images = features.random_images(5, seed=1)
    projected = features.reference_projection(images, fitted)
    nearest = cdist(projected.reshape(-1, 7), fitted["bank"]).min(1).reshape(5, CELLS)
    score, anomaly_map = features.score(detector, state, images)
    np.testing.assert_allclose(score, np.sort(nearest, axis=1)[:, -4:].mean(1), rtol=1e-4)
    assert anomaly_map.shape == (5, 16, 16)
    expected = jax.image.resize(nearest.reshape(5, 4, 4), (5, 16, 16), "linear")
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-4)


def test_bank_covers_the_candidates_better_than_a_random_one(one_device):
    detector, images = create(), features.random_images(21)
    cells, count, _ = candidates(detector, images)
    bank = features.fit(detector, images).params[FITTED]["bank"]
    assert cdist(bank, cells[:count]).min(1).max() < 1e-6  # it consists of candidates
    radius = cdist(cells[:count], bank).min(1).max()
    random = [np.random.default_rng(i).choice(count, 40, replace=False) for i in range(5)]
    assert radius < min(cdist(cells[:count], cells[r]).min(1).max() for r in random)


def test_one_and_four_devices_agree(monkeypatch):
    """With a place for every candidate, as a choice may depend on rounding."""
    detector = create(bank=150)
    states = []
    for devices in 1, 4:
        limit_devices(monkeypatch, devices)
        states.append(features.fit(detector, features.random_images(21)))
    for one, four in zip(*(jax.tree.leaves(s.params[FITTED]) for s in states), strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5)
    assert int(states[0].params[FITTED]["count"]) == 147


def test_unused_rows_of_the_bank_are_never_the_nearest():
    rng = np.random.default_rng(0)
    bank, x = rng.standard_normal((6, 4), np.float32) + 5, 0.1 * rng.standard_normal((3, 4), np.float32)
    bank[4:] = 0
    among = classical.neighbors(bank, np.zeros(4, np.float32), np.arange(6) < 4)
    np.testing.assert_allclose(
        classical.nearest_distance(jax.numpy.asarray(x), among), cdist(x, bank[:4]).min(1), rtol=1e-5
    )


def test_distance_of_nearly_equal_rows_is_exact():
    rng = np.random.default_rng(0)
    bank = 100 + rng.standard_normal((50, 8)).astype(np.float32)
    x = bank[:20] + np.float32(2**-10)
    distance = classical.nearest_distance(jax.numpy.asarray(x), classical.neighbors(bank, bank.mean(0)))
    np.testing.assert_allclose(distance, np.linalg.norm(x - bank[:20].astype(float), axis=1), rtol=2e-2)
