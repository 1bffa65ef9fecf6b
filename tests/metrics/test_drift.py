"""Drift of scores: the test against exact ones, its false alarms and what it finds, in simulations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bigan_jax.metrics.drift import LEVEL, MIN_IMAGES, _excess, _independent, find_drift
from bigan_jax.metrics.thresholds import conformal_threshold

samples = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@given(samples, samples)
def test_difference_is_that_of_the_kolmogorov_smirnov_test(first, second):
    first, second = np.sort(np.array(first, float)), np.sort(np.array(second, float))
    expected = stats.ks_2samp(first, second, "greater", method="asymp").statistic
    assert _excess(first, second) == pytest.approx(max(expected, 0))


def exact_p_value(n, m, difference):
    """The probability of a one-sided difference of at least this, over all orders of n and m distinct scores.

    It is the share of lattice paths from (0, 0) to (n, m) with i / n - j / m >= difference at some point.
    """
    below = np.zeros(m + 1)  # probability to get to (i, j) without such a point
    for i in range(n + 1):
        for j in range(m + 1):
            if i * m - j * n >= difference * n * m - 1e-9:
                below[j] = 0
            elif i + j:
                # Backwards, the last of i + j scores belongs to either sample.
                below[j] = below[j] * i / (i + j) + (below[j - 1] * j / (i + j) if j else 0)
            else:
                below[j] = 1
    return 1 - below[m]


def test_p_value_is_never_too_small():
    assert exact_p_value(2, 1, 1) == pytest.approx(1 / 3)
    for n, m in ((MIN_IMAGES, MIN_IMAGES), (MIN_IMAGES, 37), (64, MIN_IMAGES), (50, 75)):
        checked = 0
        for difference in np.unique(np.arange(1, n + 1)[:, None] / n - np.arange(0, m, 5) / m):
            bound = math.exp(-2 * difference**2 * n * m / (n + m)) if difference > 0 else 1
            if 1e-5 < bound < 0.05 and checked < 12:
                assert exact_p_value(n, m, difference) <= bound
                checked += 1
        assert checked > 5


def alarms(p_values):
    """Asserts that p-values are not smaller than uniform ones, at three levels."""
    for level in (LEVEL, 0.01, 0.05):
        assert sum(p < level for p in p_values) <= stats.binom.ppf(1 - 1e-4, len(p_values), level)


def test_false_alarms_are_as_rare_as_promised():
    """With normal images alone, and with defects of which half are missed, wherever these score."""
    rng = np.random.default_rng(0)
    clean, with_defects = [], []
    for _ in range(2500):
        calibration, new = rng.gamma(2, size=50), rng.gamma(2, size=60)
        threshold = np.nextafter(np.sort(calibration)[45], np.inf)  # as the conformal rule for 10 % chooses it
        clean.append(find_drift(calibration, new, threshold, recall=0.9).p_value)
        defects = np.concatenate([np.full(15, threshold + 1), rng.uniform(0.5, 1, 15) * threshold])
        with_defects.append(find_drift(calibration, np.concatenate([new, defects]), threshold, recall=0.5).p_value)
    assert None not in clean + with_defects
    alarms(clean)
    alarms(with_defects)


def test_images_of_a_group_count_as_one():
    rng = np.random.default_rng(0)
    grouped, naive = [], []
    for _ in range(400):
        calibration = np.repeat(rng.normal(size=40), 10) + rng.normal(0, 0.3, 400)
        new = np.repeat(rng.normal(size=30), 10) + rng.normal(0, 0.3, 300)
        threshold = calibration.max() + 1
        groups = np.repeat(np.arange(30), 10).astype(str)
        grouped.append(find_drift(calibration, new, threshold, n_calibration_groups=40, groups=groups).p_value)
        naive.append(find_drift(calibration, new, threshold).p_value)
    alarms(grouped)
    assert np.mean(np.array(naive) < LEVEL) > 0.1
    assert _independent(np.array(["a", "a", "b", "b"])) == 2 and _independent(np.array(["a"] * 9 + ["b"])) < 1.3


def normal_scores(n, seed):
    return np.exp(np.random.default_rng(seed).normal(size=n))


CALIBRATION = normal_scores(100, 0)
THRESHOLD = conformal_threshold(CALIBRATION, 0.05).value
CASES = {
    "brighter": (np.exp(1.2) * normal_scores(300, 1), "higher"),
    "blurred": (np.exp(-1.2) * normal_scores(60, 1), "lower"),
    "frozen": (np.full(60, np.median(CALIBRATION)), "higher"),
    "frozen at a low score": (np.full(60, np.quantile(CALIBRATION, 0.1)), "lower"),
    "the same": (normal_scores(1000, 1), "none"),
    "many defects": (np.concatenate([normal_scores(300, 1), normal_scores(300, 2) + THRESHOLD]), "none"),
    "few": (normal_scores(MIN_IMAGES - 1, 1), "undecided"),
    "all anomalous": (normal_scores(100, 1) + THRESHOLD, "undecided"),
    "none": (normal_scores(0, 1), "undecided"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case):
    scores, verdict = CASES[case]
    result = find_drift(CALIBRATION, scores, THRESHOLD, recall=0.95)
    assert (result.verdict, result.found) == (verdict, verdict in ("higher", "lower"))
    assert result.n_images == len(scores) and result.n_anomalous == (scores >= THRESHOLD).sum()
    assert (result.p_value is not None and result.p_value < LEVEL) == result.found
    if result.found:
        assert f"score {verdict} than the calibration images" in result.sentence
    assert ("if most of them are not defective" in result.sentence) == (case == "all anomalous")


def test_what_cannot_be_compared_gets_no_verdict():
    new, lower = normal_scores(300, 1), CASES["blurred"][0]
    few = find_drift(CALIBRATION[: MIN_IMAGES - 1], new, THRESHOLD)
    assert few.verdict == "undecided" and f"{MIN_IMAGES} independent calibration images" in few.sentence
    mostly = find_drift(CALIBRATION[:12], np.array([9.0] * 4 + [THRESHOLD - 1]), THRESHOLD).sentence
    assert f"{MIN_IMAGES} independent" in mostly and "4 of 5 images are called anomalous" in mostly
    volumes = find_drift(CALIBRATION, new, THRESHOLD, groups=np.repeat(["a.nii", "b.nii", "c.nii"], 100))
    assert volumes.verdict == "undecided" and volumes.n_independent <= 3
    # The lowest score of several detectors is lower without drift.
    assert find_drift(CALIBRATION, lower, THRESHOLD, lowest_of_folds=True).verdict == "none"
    assert find_drift(CALIBRATION, CASES["brighter"][0], THRESHOLD, recall=0.95, lowest_of_folds=True).found
    # A detector that finds no test defect may miss any number of them.
    assert find_drift(CALIBRATION, CASES["brighter"][0], THRESHOLD, recall=0.0).verdict == "undecided"
    assert find_drift(CALIBRATION, new, 0.0).verdict == "undecided"  # nothing is below
