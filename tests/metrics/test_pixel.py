"""Pixel metrics and thresholds against scikit-learn, brute force and simulation."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sk

from bigan_jax.metrics import bootstrap
from bigan_jax.metrics.pixel import dice, pixel_metrics, region_weights
from bigan_jax.metrics.pixel_bootstrap import pixel_bootstrap_intervals
from bigan_jax.metrics.thresholds import decide

# No deadline: a busy machine must not fail a test.
few = settings(max_examples=40, deadline=None)


def brute_force_aupro(maps, masks, limit):
    """All thresholds and regions, one after the other."""
    neighbors = np.ones((3, 3), bool)
    regions = []
    for index, mask in enumerate(masks):
        region, count = ndimage.label(mask, neighbors)
        regions += [(index, region == number) for number in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(np.unique(maps), reverse=True):
        called = maps >= threshold
        overlap = np.mean([called[index][region].mean() for index, region in regions])
        points.append((called[~masks].mean(), overlap))
    rate, overlap = np.array(points).T
    area = 0.0
    for x0, x1, y0, y1 in zip(rate[:-1], rate[1:], overlap[:-1], overlap[1:], strict=True):
        if x0 >= limit or x1 == x0:
            continue
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@few
@given(st.integers(0, 10_000), st.sampled_from([4, 50, 10_000]), st.sampled_from([0.05, 0.3, 1.0]))
def test_pixel_metrics_equal_brute_force(seed, levels, limit):
    rng = np.random.default_rng(seed)
    masks = ndimage.uniform_filter(rng.random((4, 12, 10)), (1, 3, 3)) > 0.6
    masks[0] = False
    masks[1, 3, 3] = True
    maps = np.round((rng.random(masks.shape) + 0.4 * masks) * levels) / levels
    found = pixel_metrics(maps.astype(np.float32), masks, limit)
    flat = masks.ravel(), maps.astype(np.float32).ravel()
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(*flat))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(*flat))
    expected = brute_force_aupro(maps.astype(np.float32), masks, limit)
    assert found["aupro"] == pytest.approx(expected)


@pytest.mark.parametrize("low, high", [(0, 1e-4), (0.3, 0.31), (-2, 50)])
def test_pixel_metrics_with_16_bits_equal_exact_ones(low, high):
    """Distinct errors of any magnitude, against curves through all of them."""
    rng = np.random.default_rng(0)
    masks = ndimage.uniform_filter(rng.random((6, 64, 64)), (1, 9, 9)) > 0.53
    maps = low + (high - low) * rng.beta(1, 8, masks.shape) + 0.1 * (high - low) * masks
    found = pixel_metrics(maps.astype(np.float32), masks)
    flat = masks.ravel(), maps.ravel()
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(*flat), abs=2e-6)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(*flat), abs=1e-5)


@pytest.mark.parametrize("dtype, low, high", [("int8", -128, 127), ("uint16", 0, 765), ("int64", -9, 5 << 20)])
def test_pixel_metrics_of_integers(dtype, low, high):
    rng = np.random.default_rng(0)
    masks = ndimage.uniform_filter(rng.random((6, 64, 64)), (1, 9, 9)) > 0.53
    maps = rng.integers(low, high, masks.shape, dtype, endpoint=True)
    maps[rng.random(maps.shape) < 0.3 * masks] = high
    maps[0, 0, :2] = low, high
    found = pixel_metrics(maps, masks)
    flat = masks.ravel(), maps.ravel()
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(*flat), abs=2e-6)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(*flat), abs=1e-5)


def test_rounding_a_threshold_changes_no_decision():
    score = np.float32([0.1, 0.3, 0.7])
    between = (float(score[1]) + float(np.nextafter(score[1], np.float32(1)))) / 2
    for threshold in (float(score[1]), np.nextafter(float(score[1]), 1), between, 0.3, 0.7, -np.inf):
        assert decide(score, threshold).tolist() == [float(s) >= threshold for s in score]
    assert decide(np.array([1, 2]), 1.5).tolist() == [False, True]


def test_aupro_bounds_and_diagonal_touch():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 1, 1] = masks[0, 2, 2] = True
    masks[1, 4:, 4:] = True
    assert pixel_metrics(masks.astype(float), masks)["aupro"] == pytest.approx(1)
    assert pixel_metrics(1.0 - masks, masks)["aupro"] == pytest.approx(0)
    # The two diagonal pixels are one region: a map of the first image finds half of the regions.
    maps = np.zeros(masks.shape)
    maps[0] = masks[0]
    assert pixel_metrics(maps, masks)["aupro"] == pytest.approx(0.5 + 0.5 * 0.15)


def test_pixel_metrics_without_defects_are_none():
    maps = np.random.default_rng(0).random((3, 8, 8))
    undefined = {"auroc": None, "average_precision": None, "aupro": None}
    assert pixel_metrics(maps, np.zeros(maps.shape, bool)) == undefined
    assert pixel_metrics(maps[:0], np.zeros((0, 8, 8), bool)) == undefined


def test_region_weights_can_be_shared_by_maps():
    rng = np.random.default_rng(0)
    maps, masks = rng.random((5, 8, 8), np.float32), rng.random((5, 8, 8)) < 0.3
    masks[1] = False
    weights = region_weights(masks)
    assert weights.sum() == pytest.approx(1)
    assert pixel_metrics(maps, masks, weights=weights) == pixel_metrics(maps, masks)
    assert region_weights(masks[1:2]).size == 0


def test_pixel_metrics_are_fast():
    rng = np.random.default_rng(0)
    maps = rng.random((100, 128, 128), np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:60, 40:60, 50:70] = True
    start = time.perf_counter()
    pixel_metrics(maps, masks)
    assert time.perf_counter() - start < 3


def test_aupro_excludes_a_jump_at_the_limit():
    """Three of ten normal pixels are called before any defect pixel: the area up to 0.3 is 0."""
    maps = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 6.5, 6.6]).reshape(1, 3, 4)
    masks = (np.arange(12) >= 10).reshape(1, 3, 4)
    assert pixel_metrics(maps, masks, 0.3)["aupro"] == pytest.approx(0)
    assert pixel_metrics(maps, masks, 0.4)["aupro"] == pytest.approx(0.25)


def test_dice_is_the_f1_of_pixels():
    rng = np.random.default_rng(1)
    maps, masks = rng.random((3, 9, 9)), rng.random((3, 9, 9)) < 0.2
    expected = sk.f1_score(masks.ravel(), maps.ravel() >= 0.7)
    assert dice(maps, masks, 0.7) == pytest.approx(expected)
    assert dice(maps, masks & False, 0.7) is None


# --- intervals ---


@pytest.mark.parametrize("defects", [0.53, 0.6])
def test_intervals_equal_those_of_repeated_images(defects):
    """All pixels of each bootstrap sample, also if few of them are defects."""
    rng = np.random.default_rng(0)
    masks = ndimage.uniform_filter(rng.random((16, 32, 32)), (1, 7, 7)) > defects
    masks[:6] = False
    masks[6:, 3, 3] = True
    maps = (rng.beta(1, 8, masks.shape) + 0.1 * masks * rng.random((16, 1, 1))).astype(np.float32)
    group = np.array([f"g{i // 2}" for i in range(16)])
    weights = region_weights(masks)
    intervals = pixel_bootstrap_intervals(maps, masks, group, weights, n_samples=60)
    group_index, counts = bootstrap.group_resampling(masks.any((1, 2)), group, 60)
    samples = []
    for sample in counts:
        rows = np.repeat(np.arange(16), sample[group_index])
        samples.append(pixel_metrics(maps[rows], masks[rows]))
    for name, (low, high) in intervals.items():
        limits = np.quantile([metrics[name] for metrics in samples], [0.025, 0.975])
        np.testing.assert_allclose((low, high), limits, atol=1e-3)
        assert low < pixel_metrics(maps, masks)[name] < high


def test_no_interval_if_nothing_varies():
    masks = np.zeros((6, 16, 16), bool)
    masks[3:, 4, 4] = True
    maps, weights = np.random.default_rng(0).random(masks.shape), region_weights(masks)
    one_patient = np.array(["a", "b", "c", "d", "d", "d"])
    assert pixel_bootstrap_intervals(maps, masks, one_patient, weights) is None
    empty = np.zeros_like(masks)
    assert pixel_bootstrap_intervals(maps, empty, one_patient, np.zeros(0)) is None
