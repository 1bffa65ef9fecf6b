"""The choice of a coreset against brute force."""

import numpy as np
from scipy.spatial.distance import cdist

from bigan_jax.nn.coreset import k_center_greedy


def brute_force(points, count):
    distances = cdist(points, points)
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int(distances[:, chosen].min(1).argmax()))
    return chosen


def test_choice_is_that_of_brute_force():
    points = np.random.default_rng(0).standard_normal((300, 5)) * [4, 3, 2, 1, 1] + 7
    chosen = k_center_greedy(points, 40)
    assert chosen.tolist() == brute_force(points.astype(np.float32), 40)


def test_points_that_coincide_are_chosen_once():
    distinct = np.random.default_rng(0).integers(0, 4, (12, 3)).astype(np.float32)
    points = np.tile(np.unique(distinct, axis=0), (5, 1))
    chosen = k_center_greedy(points, 50)
    assert len(chosen) == len(np.unique(distinct, axis=0))
    assert len(np.unique(points[chosen], axis=0)) == len(chosen)


def test_no_more_points_are_chosen_than_there_are():
    assert sorted(k_center_greedy(np.arange(6.0)[:, None], 9)) == list(range(6))
    assert k_center_greedy(np.ones((1, 3)), 2).tolist() == [0]
