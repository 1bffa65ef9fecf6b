"""Image metrics and intervals against scikit-learn, brute force and simulation."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from bigan_jax.metrics import bootstrap
from bigan_jax.metrics.image import PredictAll, auroc, by_condition, by_defect_type, image_metrics, predict_all
from bigan_jax.metrics.thresholds import Oracle, oracle_threshold

# No deadline: a busy machine must not fail a test.
few = settings(max_examples=40, deadline=None)
scores = st.lists(st.integers(0, 12), min_size=1, max_size=60).map(lambda s: np.array(s) / 8)


@st.composite
def labeled(draw, both=False):
    score = draw(scores)
    label = draw(arrays(bool, len(score)))
    if both:
        score, label = np.append(score, [0.3, 0.9]), np.append(label, [True, False])
    return score, label


# The oracle threshold


@few
@given(labeled(both=True))
def test_oracle_is_the_best_of_all_thresholds(data):
    score, label = data
    oracle = oracle_threshold(score, label)
    all_f1 = [(sk.f1_score(label, score >= t), t) for t in np.unique(score)]
    f1 = max(f for f, _ in all_f1)
    assert oracle.f1 == pytest.approx(f1)
    assert oracle.threshold == max(t for f, t in all_f1 if f > f1 - 1e-12)
    assert oracle.accuracy == pytest.approx(sk.accuracy_score(label, score >= oracle.threshold))


# Image metrics


def test_scores_that_are_not_finite_have_no_metrics():
    with pytest.raises(ValueError, match="score are not finite"):
        image_metrics(np.array([1.0, np.inf]), np.array([True, False]), 0.5)


@few
@given(labeled(both=True), st.floats(-0.1, 1.7))
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
    assert image_metrics(score, label, threshold) == pytest.approx(expected)


@few
@given(labeled(both=True))
def test_auroc_is_the_share_of_pairs_won(data):
    score, label = data
    gap = score[label][:, None] - score[~label]
    assert auroc(score, label) == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean())


@few
@given(scores, st.booleans())
def test_undefined_metrics_are_none_with_one_class(score, anomalous):
    metrics = image_metrics(score, np.full(len(score), anomalous), 0.5)
    undefined = {"auroc", "average_precision", "balanced_accuracy"}
    undefined |= {"specificity"} if anomalous else {"precision", "recall", "f1"}
    assert {name for name, value in metrics.items() if value is None} == undefined
    assert oracle_threshold(score, np.full(len(score), anomalous)) == Oracle(None, None, None)


def test_no_images():
    label = np.array([], bool)
    assert set(image_metrics(np.array([]), label, 0.5).values()) == {None}
    assert predict_all(label) == PredictAll(None, None)


def test_predict_all_on_bottle():
    label = np.arange(83) < 63
    floor = predict_all(label)
    assert (floor.f1, floor.accuracy) == pytest.approx((sk.f1_score(label, label | True), 63 / 83))
    assert (floor.f1, floor.accuracy) == pytest.approx((0.863, 0.759), abs=1e-3)


def test_rows_by_defect_type_and_condition():
    rng = np.random.default_rng(3)
    label = rng.random(90) < 0.5
    score = rng.random(90) + 0.2 * label
    defect_type = np.where(label, rng.choice(["crack", "stain"], 90), "good")
    condition = rng.integers(0, 2, 90)
    rows = by_defect_type(score, label, defect_type, 0.7)
    assert [row.defect_type for row in rows] == ["crack", "stain"]
    for row in rows:
        chosen = np.isin(defect_type, ["good", row.defect_type])
        assert row.auroc == pytest.approx(sk.roc_auc_score(label[chosen], score[chosen]))
        is_type = defect_type == row.defect_type
        assert row.n == is_type.sum()
        assert row.recall == pytest.approx((score[is_type] >= 0.7).mean())
    rows = by_condition(score, label, condition, ["tea", "oak", "elm"], 0.7)
    assert [row.condition for row in rows] == ["tea", "oak"]  # the test set has no elm
    for index, row in enumerate(rows):
        chosen = condition == index
        normal, anomalous = chosen & ~label, chosen & label
        assert row.auroc == pytest.approx(sk.roc_auc_score(label[chosen], score[chosen]))
        assert row.specificity == pytest.approx((score[normal] < 0.7).mean())
        assert (row.n_normal, row.n_anomalous) == (normal.sum(), anomalous.sum())
    assert by_defect_type(score, label, np.where(label, "crack", "good"), 0.7) is None
    assert by_condition(score, label, condition * 0, ["tea"], 0.7) is None
    # A condition with normal pictures only has no AUROC, but a specificity.
    rows = by_condition(score, label & (condition == 0), condition, ["tea", "oak"], 0.7)
    assert rows[1].auroc is None and rows[1].specificity is not None


# Intervals


def auroc_interval(score, label, group, **options):
    intervals = bootstrap.bootstrap_intervals(score, label, group, threshold=0.5, **options)
    return intervals and intervals["auroc"]


@few
@given(labeled(both=True), st.integers(1, 9), st.integers(0, 3))
def test_bootstrap_samples_equal_scikit_learn_on_repeated_images(data, groups, seed):
    """The interval of a single sample is its value: resample by hand and compare."""
    score, label = data
    group = np.arange(len(score)) % groups
    found = bootstrap.bootstrap_intervals(score, label, group, 0.6, n_samples=1, seed=seed)
    positive = np.array([label[group == g].any() for g in np.unique(group)])
    negative = np.array([(~label[group == g]).any() for g in np.unique(group)])
    strata = np.bincount(positive + 2 * negative, minlength=4)  # no class, one, one, both
    if strata[3] < 2 and strata[1:3].min() < 2:
        assert found is None
        return
    rng = np.random.default_rng(seed)
    times = np.zeros(len(positive), int)
    for stratum in (positive & ~negative, negative & ~positive, positive & negative):
        if size := stratum.sum():
            drawn = rng.integers(size, size=size)
            times[stratum] = [(drawn == group).sum() for group in range(size)]
    picked = np.repeat(np.arange(len(score)), times[np.unique(group, return_inverse=True)[1]])
    expected = image_metrics(score[picked], label[picked], 0.6)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx((value, value)), name


def test_intervals_cover_the_true_values():
    """Normal scores from N(0, 1), anomalous ones from N(1, 1): 600,000 give the true values."""
    rng = np.random.default_rng(0)
    truth = np.arange(600_000) < 200_000
    true = image_metrics(rng.normal(size=600_000) + truth, truth, 0.8)
    label = np.arange(120) < 40
    covered = dict.fromkeys(true, 0)
    trials = 200
    for trial in range(trials):
        score = rng.normal(size=120) + label
        found = bootstrap.bootstrap_intervals(score, label, np.arange(120), 0.8, n_samples=200, seed=trial)
        for name, (low, high) in found.items():
            covered[name] += low <= true[name] <= high
    # Four standard errors below 0.95 and a little more: percentiles of 120 images are narrow.
    assert {name: n / trials for name, n in covered.items() if not 0.87 <= n / trials <= 0.995} == {}


def test_interval_by_patient_covers_and_by_image_does_not():
    rng = np.random.default_rng(1)
    patients, images = 30, 8
    group = np.repeat(np.arange(patients), images)
    label = group % 2 == 0
    covered = {"patient": 0, "image": 0}
    for trial in range(100):
        score = rng.normal(size=patients)[group] + 0.05 * rng.normal(size=len(group))
        for unit, names in (("patient", group), ("image", np.arange(len(group)))):
            low, high = auroc_interval(score, label, names, n_samples=200, seed=trial)
            covered[unit] += low <= 0.5 <= high
    assert covered["patient"] >= 85
    assert covered["image"] <= 70


def test_interval_edge_cases_and_speed():
    rng = np.random.default_rng(2)
    score, label = rng.normal(size=1000), rng.random(1000) < 0.4
    group = rng.permutation(1000).astype(str)
    start = time.perf_counter()
    low, high = auroc_interval(score, label, group)
    assert time.perf_counter() - start < 2
    assert low < auroc(score, label) < high
    assert auroc_interval(score, label, group) == (low, high)
    assert auroc_interval(score, label & False, group) is None
    assert auroc_interval(score, label, label.astype(str)) is None
    # One group in each stratum: all bootstrap samples are equal.
    three = np.where(np.arange(1000) < 500, "both", np.where(label, "a", "n"))
    assert auroc_interval(score, label, three) is None
    assert auroc_interval(label * 1.0, label, group) == (1.0, 1.0)
