"""Metrics against scikit-learn, brute force and simulation."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from bigan_jax.errors import UserError
from bigan_jax.metrics import bootstrap
from bigan_jax.metrics.image import (
    auroc,
    by_condition,
    by_defect_type,
    image_metrics,
    oracle_threshold,
    predict_all,
)
from bigan_jax.metrics.thresholds import conformal_threshold, decide, manual_threshold

# No deadline: a busy machine is not a wrong result.
few = settings(max_examples=40, deadline=None)
scores = st.lists(st.integers(0, 12), min_size=1, max_size=60).map(lambda s: np.array(s) / 8)


@st.composite
def labeled(draw, both=False):
    score = draw(scores)
    label = draw(arrays(bool, len(score)))
    if both:
        score, label = np.append(score, [0.3, 0.9]), np.append(label, [True, False])
    return score, label


# Thresholds


@few
@given(scores, st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5, 0.9]))
def test_conformal_threshold_is_the_smallest_that_keeps_the_rate(calibration, rate):
    threshold = conformal_threshold(calibration, rate)
    n = len(calibration)
    # The worst exchangeable newcomer ranks anywhere among the n + 1.
    allowed = int((n + 1) * rate + 1e-9)
    alarms = decide(calibration, threshold.value).sum()
    assert alarms <= max(allowed - 1, 0)
    below = np.nextafter(threshold.value, -np.inf)
    if allowed:
        assert threshold.note is None
        assert decide(calibration, below).sum() >= allowed
    else:
        assert f"there are {n}" in threshold.note


@pytest.mark.parametrize("n, rate", [(19, 0.05), (50, 0.1), (200, 0.05)])
def test_conformal_promise_holds_in_simulation(n, rate):
    rng = np.random.default_rng(n)
    trials = 4000
    alarms = 0
    for _ in range(trials):
        drawn = rng.gamma(2.0, size=n + 1)
        alarms += drawn[-1] >= conformal_threshold(drawn[:-1], rate).value
    exact = int((n + 1) * rate + 1e-9) / (n + 1)
    assert abs(alarms / trials - exact) < 4 * np.sqrt(rate / trials)
    assert exact <= rate


def test_false_alarms_on_fresh_normals_keep_the_promise():
    """A thousand detectors, each with its own calibration pictures and 200 fresh normal ones."""
    rng = np.random.default_rng(5)
    rates = []
    for _ in range(1000):
        threshold = conformal_threshold(rng.gamma(2.0, size=60), 0.05).value
        rates.append(decide(rng.gamma(2.0, size=200), threshold).mean())
    # The exact expectation is 3 / 61; each of the thousand may lie above or below.
    assert abs(np.mean(rates) - 3 / 61) < 4 * np.std(rates) / np.sqrt(1000)
    assert np.mean(rates) <= 0.05 + 4 * np.std(rates) / np.sqrt(1000)


def test_few_groups_are_no_promise_for_a_new_group():
    """Pictures of 4 patients are not 80 patients: the note says so where simulation shows it."""
    rng = np.random.default_rng(6)
    rates = []
    for _ in range(300):
        patients = np.repeat(rng.normal(size=5), 20)
        scores = patients + 0.3 * rng.normal(size=100)
        threshold = conformal_threshold(scores[:80], 0.05, groups=4)
        rates.append(decide(scores[80:], threshold.value).mean())
    assert np.mean(rates) > 0.1
    assert "80 calibration pictures come from 4 groups only" in threshold.note
    assert "Fewer than 19 groups" in threshold.note
    assert conformal_threshold(scores[:80], 0.05, groups=19).note is None
    assert conformal_threshold(scores[:80], 0.05, groups=80).note is None
    # Where each picture is its own group, only their number counts.
    assert "there are 5" in conformal_threshold(scores[:5], 0.05, groups=5).note


def test_conformal_note_says_how_many_pictures_the_promise_needs():
    assert "at least 19 calibration pictures; there are 18" in (
        conformal_threshold(np.arange(18.0), 0.05).note
    )
    assert conformal_threshold(np.arange(19.0), 0.05).note is None
    # In floats, 10 * (1 - 0.3) and its like may land beside the integer.
    for rate in (0.1, 0.3, 0.7, 0.01, 0.07):
        need = int(np.ceil(1 / rate - 1e-9)) - 1
        assert conformal_threshold(np.arange(float(need)), rate).note is None
        if need > 1:
            assert conformal_threshold(np.arange(need - 1.0), rate).note


def test_float32_scores_at_the_quantile_are_not_alarms():
    calibration = np.full(40, 0.1, np.float32)
    threshold = conformal_threshold(calibration, 0.05).value
    assert not decide(calibration, threshold).any()
    assert not (calibration >= threshold).any()
    assert decide(np.nextafter(calibration, np.float32(1)), threshold).all()


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_impossible_rate_is_named(rate):
    with pytest.raises(UserError, match="false_alarm_rate"):
        conformal_threshold(np.arange(9.0), rate)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="no calibration pictures"):
        conformal_threshold(np.array([]), 0.05)
    with pytest.raises(ValueError, match="1 of 2 values of the calibration score"):
        conformal_threshold(np.array([1.0, np.nan]), 0.05)
    with pytest.raises(ValueError, match="score are not finite"):
        image_metrics(np.array([1.0, np.inf]), np.array([True, False]), 0.5)
    with pytest.raises(UserError, match=r"threshold\.value"):
        manual_threshold(float("inf"))
    assert manual_threshold(1) == (1.0, "manual", None)


@few
@given(labeled(both=True))
def test_oracle_is_the_best_of_all_thresholds(data):
    score, label = data
    oracle = oracle_threshold(score, label)
    every = [(sk.f1_score(label, score >= t), t) for t in np.unique(score)]
    f1 = max(f for f, _ in every)
    assert oracle.f1 == pytest.approx(f1)
    assert oracle.threshold == max(t for f, t in every if f > f1 - 1e-12)
    assert oracle.accuracy == pytest.approx(sk.accuracy_score(label, score >= oracle.threshold))


# Image metrics


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
def test_one_class_gives_none_where_nothing_is_defined(score, anomalous):
    found = image_metrics(score, np.full(len(score), anomalous), 0.5)
    none = {"auroc", "average_precision", "balanced_accuracy"}
    none |= {"specificity"} if anomalous else {"precision", "recall", "f1"}
    assert {name for name, value in found.items() if value is None} == none
    assert oracle_threshold(score, np.full(len(score), anomalous)) == (None, None, None)


def test_no_pictures_at_all():
    nothing = np.array([]), np.array([], bool)
    assert set(image_metrics(*nothing, 0.5).values()) == {None}
    assert predict_all(nothing[1]) == {"f1": None, "accuracy": None}


def test_predict_all_on_bottle_is_the_known_floor():
    label = np.arange(83) < 63
    expected = {"f1": sk.f1_score(label, label | True), "accuracy": 63 / 83}
    assert predict_all(label) == pytest.approx(expected)
    assert predict_all(label) == pytest.approx({"f1": 0.863, "accuracy": 0.759}, abs=1e-3)


def test_kinds_and_conditions_equal_their_pictures_alone():
    rng = np.random.default_rng(3)
    label = rng.random(90) < 0.5
    score = rng.random(90) + 0.2 * label
    kind = np.where(label, rng.choice(["crack", "stain"], 90), "good")
    condition = rng.integers(0, 2, 90)
    rows = by_defect_type(score, label, kind, 0.7)
    assert [row["defect_type"] for row in rows] == ["crack", "stain"]
    for row in rows:
        chosen = np.isin(kind, ["good", row["defect_type"]])
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(label[chosen], score[chosen]))
        assert row["n"] == (kind == row["defect_type"]).sum()
        assert row["recall"] == pytest.approx((score[kind == row["defect_type"]] >= 0.7).mean())
    rows = by_condition(score, label, condition, ["tea", "oak", "elm"], 0.7)
    assert [row["condition"] for row in rows] == ["tea", "oak"]  # none of elm is in the test
    for index, row in enumerate(rows):
        own = condition == index
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(label[own], score[own]))
        assert row["specificity"] == pytest.approx((score[own & ~label] < 0.7).mean())
        assert (row["n_normal"], row["n_anomalous"]) == ((own & ~label).sum(), (own & label).sum())
    assert by_defect_type(score, label, np.where(label, "crack", "good"), 0.7) is None
    assert by_condition(score, label, condition * 0, ["tea"], 0.7) is None
    # A condition with normal pictures only has no AUROC, but a specificity.
    rows = by_condition(score, label & (condition == 0), condition, ["tea", "oak"], 0.7)
    assert rows[1]["auroc"] is None and rows[1]["specificity"] is not None


# Intervals


def interval(score, label, group, **options):
    found = bootstrap.bootstrap_intervals(score, label, group, threshold=0.5, **options)
    return found and found["auroc"]


@few
@given(labeled(both=True), st.integers(1, 9), st.integers(0, 3))
def test_interval_draws_equal_scikit_learn_on_repeated_pictures(data, groups, seed):
    """With one draw an interval is that draw's figure: resample by hand and compare."""
    score, label = data
    group = np.arange(len(score)) % groups
    found = bootstrap.bootstrap_intervals(score, label, group, 0.6, draws=1, seed=seed)
    positive = np.array([label[group == g].any() for g in np.unique(group)])
    negative = np.array([(~label[group == g]).any() for g in np.unique(group)])
    strata = np.bincount(positive + 2 * negative, minlength=4)  # none, alone, alone, both
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


def test_intervals_cover_the_true_figures():
    """Normals from N(0, 1), anomalies from N(1, 1): the true figures are those of 600,000."""
    rng = np.random.default_rng(0)
    truth = np.arange(600_000) < 200_000
    true = image_metrics(rng.normal(size=600_000) + truth, truth, 0.8)
    label = np.arange(120) < 40
    covered = dict.fromkeys(true, 0)
    trials = 200
    for trial in range(trials):
        score = rng.normal(size=120) + label
        found = bootstrap.bootstrap_intervals(
            score, label, np.arange(120), 0.8, draws=200, seed=trial
        )
        for name, (low, high) in found.items():
            covered[name] += low <= true[name] <= high
    # Four standard errors below 0.95, less a little: percentiles of 120 pictures are a bit narrow.
    assert {
        name: n / trials for name, n in covered.items() if not 0.87 <= n / trials <= 0.995
    } == {}


def test_interval_by_patient_covers_where_one_by_picture_does_not():
    rng = np.random.default_rng(1)
    patients, pictures = 30, 8
    group = np.repeat(np.arange(patients), pictures)
    label = group % 2 == 0
    covered = {"patient": 0, "picture": 0}
    for trial in range(100):
        score = rng.normal(size=patients)[group] + 0.05 * rng.normal(size=len(group))
        for unit, names in (("patient", group), ("picture", np.arange(len(group)))):
            low, high = interval(score, label, names, draws=200, seed=trial)
            covered[unit] += low <= 0.5 <= high
    assert covered["patient"] >= 85
    assert covered["picture"] <= 70


def test_interval_edge_cases_and_speed():
    rng = np.random.default_rng(2)
    score, label = rng.normal(size=1000), rng.random(1000) < 0.4
    group = rng.permutation(1000).astype(str)
    begin = time.perf_counter()
    low, high = interval(score, label, group)
    assert time.perf_counter() - begin < 2
    assert low < auroc(score, label) < high
    assert interval(score, label, group) == (low, high)
    assert interval(score, label & False, group) is None
    assert interval(score, label, label.astype(str)) is None
    # A group of each kind alone, and one of both: no draw differs from another.
    three = np.where(np.arange(1000) < 500, "both", np.where(label, "a", "n"))
    assert interval(score, label, three) is None
    assert interval(label * 1.0, label, group) == (1.0, 1.0)
