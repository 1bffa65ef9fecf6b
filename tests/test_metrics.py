"""Metrics against scikit-learn, brute force and simulation."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from sklearn import metrics as sk

from bigan_jax import metrics
from bigan_jax.errors import UserError

# No deadline: a busy machine is not a wrong result.
few = settings(max_examples=40, deadline=None)
scores = st.lists(st.integers(0, 12), min_size=1, max_size=60).map(lambda s: np.array(s) / 8)


@st.composite
def labelled(draw, both=False):
    score = draw(scores)
    label = draw(arrays(bool, len(score)))
    if both:
        score, label = np.append(score, [0.3, 0.9]), np.append(label, [True, False])
    return score, label


# Thresholds


@few
@given(scores, st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5, 0.9]))
def test_conformal_threshold_is_the_smallest_that_keeps_the_rate(calibration, rate):
    threshold = metrics.conformal_threshold(calibration, rate)
    n = len(calibration)
    # The worst exchangeable newcomer ranks anywhere among the n + 1.
    allowed = int((n + 1) * rate + 1e-9)
    alarms = metrics.decide(calibration, threshold.value).sum()
    assert alarms <= max(allowed - 1, 0)
    below = np.nextafter(threshold.value, -np.inf)
    if allowed:
        assert threshold.note is None
        assert metrics.decide(calibration, below).sum() >= allowed
    else:
        assert f"there are {n}" in threshold.note


@pytest.mark.parametrize("n, rate", [(19, 0.05), (50, 0.1), (200, 0.05)])
def test_conformal_promise_holds_in_simulation(n, rate):
    rng = np.random.default_rng(n)
    trials = 4000
    alarms = 0
    for _ in range(trials):
        drawn = rng.gamma(2.0, size=n + 1)
        alarms += drawn[-1] >= metrics.conformal_threshold(drawn[:-1], rate).value
    exact = int((n + 1) * rate + 1e-9) / (n + 1)
    assert abs(alarms / trials - exact) < 4 * np.sqrt(rate / trials)
    assert exact <= rate


def test_conformal_note_says_how_many_pictures_the_promise_needs():
    assert "at least 19 calibration pictures; there are 18" in (
        metrics.conformal_threshold(np.arange(18.0), 0.05).note
    )
    assert metrics.conformal_threshold(np.arange(19.0), 0.05).note is None
    # In floats, 10 * (1 - 0.3) and its like may land beside the integer.
    for rate in (0.1, 0.3, 0.7, 0.01, 0.07):
        need = int(np.ceil(1 / rate - 1e-9)) - 1
        assert metrics.conformal_threshold(np.arange(float(need)), rate).note is None
        if need > 1:
            assert metrics.conformal_threshold(np.arange(need - 1.0), rate).note


def test_float32_scores_at_the_quantile_are_not_alarms():
    calibration = np.full(40, 0.1, np.float32)
    threshold = metrics.conformal_threshold(calibration, 0.05).value
    assert not metrics.decide(calibration, threshold).any()
    assert not (calibration >= threshold).any()
    assert metrics.decide(np.nextafter(calibration, np.float32(1)), threshold).all()


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_impossible_rate_is_named(rate):
    with pytest.raises(UserError, match="false-alarm rate"):
        metrics.conformal_threshold(np.arange(9.0), rate)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="no calibration pictures"):
        metrics.conformal_threshold(np.array([]), 0.05)
    with pytest.raises(ValueError, match="1 of 2 values of the calibration score"):
        metrics.conformal_threshold(np.array([1.0, np.nan]), 0.05)
    with pytest.raises(ValueError, match="score are not finite"):
        metrics.image_metrics(np.array([1.0, np.inf]), np.array([True, False]), 0.5)
    with pytest.raises(UserError, match="manual"):
        metrics.manual_threshold(float("inf"))
    assert metrics.manual_threshold(1) == (1.0, "manual", None)


@few
@given(labelled(both=True))
def test_oracle_is_the_best_of_all_thresholds(data):
    score, label = data
    oracle = metrics.oracle_threshold(score, label)
    every = [(sk.f1_score(label, score >= t), t) for t in np.unique(score)]
    f1 = max(f for f, _ in every)
    assert oracle.f1 == pytest.approx(f1)
    assert oracle.threshold == max(t for f, t in every if f > f1 - 1e-12)
    assert oracle.accuracy == pytest.approx(sk.accuracy_score(label, score >= oracle.threshold))


# Image metrics


@few
@given(labelled(both=True), st.floats(-0.1, 1.7))
def test_image_metrics_equal_scikit_learns(data, threshold):
    score, label = data
    called = score >= threshold
    expected = {
        "auroc": sk.roc_auc_score(label, score),
        "average_precision": sk.average_precision_score(label, score),
        "accuracy": sk.accuracy_score(label, called),
        "precision": sk.precision_score(label, called, zero_division=0.0),
        "recall": sk.recall_score(label, called),
        "f1": sk.f1_score(label, called),
        "specificity": sk.recall_score(~label, ~called),
        "balanced_accuracy": sk.balanced_accuracy_score(label, called),
    }
    assert metrics.image_metrics(score, label, threshold) == pytest.approx(expected)


@few
@given(labelled(both=True))
def test_auroc_is_the_share_of_pairs_won(data):
    score, label = data
    gap = score[label][:, None] - score[~label]
    assert metrics.auroc(score, label) == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean())


@few
@given(scores, st.booleans())
def test_one_class_gives_none_where_nothing_is_defined(score, anomalous):
    found = metrics.image_metrics(score, np.full(len(score), anomalous), 0.5)
    none = {"auroc", "average_precision", "balanced_accuracy"}
    none |= {"specificity"} if anomalous else {"precision", "recall", "f1"}
    assert {name for name, value in found.items() if value is None} == none
    assert metrics.oracle_threshold(score, np.full(len(score), anomalous)) == (None, None, None)


def test_no_pictures_at_all():
    nothing = np.array([]), np.array([], bool)
    assert set(metrics.image_metrics(*nothing, 0.5).values()) == {None}
    assert metrics.predict_all(nothing[1]) == {"f1": None, "accuracy": None}


def test_predict_all_on_bottle_is_the_known_floor():
    label = np.arange(83) < 63
    expected = {"f1": sk.f1_score(label, label | True), "accuracy": 63 / 83}
    assert metrics.predict_all(label) == pytest.approx(expected)
    assert metrics.predict_all(label) == pytest.approx({"f1": 0.863, "accuracy": 0.759}, abs=1e-3)


# Intervals


@few
@given(labelled(both=True), st.integers(1, 9), st.integers(0, 3))
def test_interval_draws_equal_scikit_learn_on_repeated_pictures(data, groups, seed):
    """With one draw the interval is that draw's AUROC: resample by hand and compare."""
    score, label = data
    group = np.arange(len(score)) % groups
    found = metrics.auroc_interval(score, label, group, draws=1, seed=seed)
    positive = np.array([label[group == g].any() for g in np.unique(group)])
    negative = np.array([(~label[group == g]).any() for g in np.unique(group)])
    if min(positive.sum(), negative.sum()) < 2:
        assert found is None
        return
    rng = np.random.default_rng(seed)
    times = np.zeros(len(positive), int)
    for stratum in (positive & ~negative, negative & ~positive, positive & negative):
        if size := stratum.sum():
            times[stratum] = rng.multinomial(size, np.full(size, 1 / size), 1)[0]
    picked = np.repeat(np.arange(len(score)), times[np.unique(group, return_inverse=True)[1]])
    assert found == pytest.approx([sk.roc_auc_score(label[picked], score[picked])] * 2)


def test_interval_covers_the_true_auroc():
    """Normal scores one apart by sqrt(2) * 0.6745 have AUROC 0.75."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(150):
        label = np.arange(120) < 60
        score = rng.normal(size=120) + label * 0.9539
        low, high = metrics.auroc_interval(score, label, np.arange(120), draws=200, seed=trial)
        covered += low <= 0.75 <= high
    assert 0.87 <= covered / 150 <= 0.99


def test_interval_by_patient_covers_where_one_by_picture_does_not():
    rng = np.random.default_rng(1)
    patients, pictures = 30, 8
    group = np.repeat(np.arange(patients), pictures)
    label = group % 2 == 0
    covered = {"patient": 0, "picture": 0}
    for trial in range(100):
        score = rng.normal(size=patients)[group] + 0.05 * rng.normal(size=len(group))
        for unit, names in (("patient", group), ("picture", np.arange(len(group)))):
            low, high = metrics.auroc_interval(score, label, names, draws=200, seed=trial)
            covered[unit] += low <= 0.5 <= high
    assert covered["patient"] >= 85
    assert covered["picture"] <= 70


def test_interval_edge_cases_and_speed():
    rng = np.random.default_rng(2)
    score, label = rng.normal(size=1000), rng.random(1000) < 0.4
    group = rng.permutation(1000).astype(str)
    begin = time.perf_counter()
    low, high = metrics.auroc_interval(score, label, group)
    assert time.perf_counter() - begin < 2
    assert low < metrics.auroc(score, label) < high
    assert metrics.auroc_interval(score, label, group) == (low, high)
    assert metrics.auroc_interval(score, label & False, group) is None
    assert metrics.auroc_interval(score, label, label.astype(str)) is None
    assert metrics.auroc_interval(label * 1.0, label, group) == (1.0, 1.0)


# Pixels


def brute_force_aupro(maps, masks, limit):
    """Every threshold, every region, one after the other."""
    eight = np.ones((3, 3), bool)
    regions = []
    for index, mask in enumerate(masks):
        named, count = ndimage.label(mask, eight)
        regions += [(index, named == name) for name in range(1, count + 1)]
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
    found = metrics.pixel_metrics(maps.astype(np.float32), masks, limit)
    flat = masks.ravel(), maps.astype(np.float32).ravel()
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(*flat))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(*flat))
    expected = brute_force_aupro(maps.astype(np.float32), masks, limit)
    assert found["aupro"] == pytest.approx(expected)


def test_aupro_bounds_and_diagonal_touch():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 1, 1] = masks[0, 2, 2] = True
    masks[1, 4:, 4:] = True
    assert metrics.pixel_metrics(masks.astype(float), masks)["aupro"] == pytest.approx(1)
    assert metrics.pixel_metrics(1.0 - masks, masks)["aupro"] == pytest.approx(0)
    # The two diagonal pixels are one region: finding that picture alone finds half the regions.
    found = np.zeros(masks.shape)
    found[0] = masks[0]
    assert metrics.pixel_metrics(found, masks)["aupro"] == pytest.approx(0.5 + 0.5 * 0.15)


def test_pixel_metrics_without_defects_are_none():
    maps = np.random.default_rng(0).random((3, 8, 8))
    nothing = {"auroc": None, "average_precision": None, "aupro": None}
    assert metrics.pixel_metrics(maps, np.zeros(maps.shape, bool)) == nothing
    assert metrics.pixel_metrics(maps[:0], np.zeros((0, 8, 8), bool)) == nothing


def test_pixel_metrics_are_fast():
    rng = np.random.default_rng(0)
    maps = rng.random((100, 128, 128), np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:60, 40:60, 50:70] = True
    begin = time.perf_counter()
    metrics.pixel_metrics(maps, masks)
    assert time.perf_counter() - begin < 3
